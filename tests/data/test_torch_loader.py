"""The input without DALI: the same order and changes, prepared images bit for bit, others closely."""

import os
import runpy
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from helpers.commands import NO_WANDB, SMALL, command, finish, numbers
from helpers.fake_runs import draw_images, fake_config, fake_run
from helpers.paths import ROOT
from twotower.config import DataConfig, EvaluateConfig, InputConfig, PrepareConfig, SourceConfig, check_input
from twotower.data import dali_loader
from twotower.data.batch import Batch, Feed, Share
from twotower.data.choose_loader import adapt_to_machine, choose_loader, describe_loader, notice_fallback
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.feed import open_train, open_validation
from twotower.data.load_data import load
from twotower.data.preparing.build_set import build
from twotower.data.preparing.dali_decoder import Decoder
from twotower.data.preparing.first_use import prepare
from twotower.data.preparing.torch_decoder import TorchDecoder
from twotower.evaluation import predictions
from twotower.evaluation.evaluate import make_predictions
from twotower.evaluation.subject import open_subject
from twotower.training.ready_run import get_ready

CPU = torch.device("cpu")
SIZE, CROP = 48, 40
TORCH = InputConfig(loader="torch", crop_size=CROP, offsets=9, mean="aligned", images_per_draw=3, colour_noise="2012")
DALI = replace(TORCH, loader="dali")
PLAIN = replace(TORCH, colour_noise="none", mean="central")
Pixels = NDArray[np.uint8]


def photograph(stream: np.random.Generator, width: int, height: int, cells: int = 48) -> Image.Image:
    small = Image.fromarray(stream.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def data_of(root: Path, names: list[str], size: int = SIZE, needs_resize: bool = False) -> DataSet:
    """These files as both splits, labelled 0, 1, ..., with a mean of noise."""
    split = FileSplit(root, names, np.arange(len(names)))
    mean = np.random.default_rng(1).uniform(0, 255, (size, size, 3)).astype(np.float32)
    axes = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    eigenvalues = np.array([90.0, 800.0, 9000.0])
    return DataSet(["a"], split, split, mean, eigenvalues, axes, needs_resize=needs_resize, size=size)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """14 squares in all encodings of JPEG and PNG."""
    root, stream = tmp_path_factory.mktemp("prepared"), np.random.default_rng(9)
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("420.jpg", "RGB", {"quality": 85}),
        ("422.jpg", "RGB", {"subsampling": 1}),
        ("444.jpg", "RGB", {"subsampling": 0, "quality": 95}),
        ("progressive.jpg", "RGB", {"progressive": True}),
        ("restarts.jpg", "RGB", {"restart_marker_rows": 1, "quality": 50}),
        ("grey.jpg", "L", {}),
        ("cmyk.jpg", "CMYK", {}),
        ("rgb.png", "RGB", {}),
        ("grey.png", "L", {}),
        ("palette.png", "P", {}),
        ("alpha.png", "RGBA", {}),
    ]
    for name, mode, options in ways:
        photograph(stream, SIZE, SIZE).convert(mode).save(root / name, **options)
    names = [name for name, _, _ in ways]
    for i in range(3):
        names.append(f"{i}.jpg")
        photograph(stream, SIZE, SIZE).save(root / names[-1])
    return data_of(root, names)


def share(**options: Any) -> Share:
    usual: dict[str, Any] = {"batch_size": 4, "replica": 0, "num_replicas": 1, "device": CPU, "threads": 2}
    return Share(**(usual | options))


def train(dataset: DataSet, config: InputConfig, count: int, first_step: int = 0, **options: Any) -> list[Batch]:
    with closing(open_train(dataset, config, share(**options), seed=3, first_step=first_step)) as feed:
        return list(islice(feed, count))


def validate(dataset: DataSet, config: InputConfig, crops: str = "centre", **options: Any) -> list[Batch]:
    with closing(open_validation(dataset, config, share(**options), crops=crops)) as feed:
        return list(feed)


def alike(ours: list[Batch], theirs: list[Batch]) -> bool:
    assert ours, "nothing to compare"
    return len(ours) == len(theirs) and all(
        torch.equal(a.labels, b.labels) and torch.equal(a.images, b.images) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture
def no_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaves as if DALI were not installed."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)

    def used(*_: Any) -> None:
        raise AssertionError("DALI is used")  # modules that were imported before must not help

    monkeypatch.setattr(dali_loader, "_pipeline", used)
    monkeypatch.setattr(Decoder, "decode", used)


# The same bits


@pytest.mark.parametrize("changes", [{}, {"flip": False}, {"random_crop": False, "mean": "central"}])
def test_training_from_prepared_images_is_dalis_bit_for_bit(prepared: DataSet, changes: dict[str, Any]) -> None:
    """Over three epochs, with the noise ending in the second. One other draw or one other image fails."""
    ours, theirs = (replace(config, colour_noise_epochs=1.5, **changes) for config in (TORCH, DALI))
    for replica, num_replicas in ((0, 1), (1, 2)):
        at = {"replica": replica, "num_replicas": num_replicas, "batch_size": 3}
        assert alike(train(prepared, ours, 9, **at), train(prepared, theirs, 9, **at))
    assert not alike(train(prepared, ours, 2), train(prepared, theirs, 2, first_step=1))


@pytest.mark.parametrize(("crops", "batch_size"), [("centre", 4), ("centre", 14), ("ten", 5)])
def test_evaluation_of_prepared_images_is_dalis_bit_for_bit(prepared: DataSet, crops: str, batch_size: int) -> None:
    """Every image once, the last partial batch included, also for a part of the replicas."""
    ours, theirs = (validate(prepared, c, crops, batch_size=batch_size) for c in (TORCH, DALI))
    assert alike(ours, theirs)
    assert [int(n) for batch in ours for n in batch.labels] == list(range(14))
    second = {"replica": 1, "num_replicas": 3, "batch_size": batch_size}
    assert alike(*(validate(prepared, config, crops, **second) for config in (TORCH, DALI)))


@pytest.mark.parametrize("first_step", [1, 4, 7])
def test_training_goes_on_from_any_step(prepared: DataSet, first_step: int) -> None:
    through = train(prepared, TORCH, 9)
    assert alike(train(prepared, TORCH, 9 - first_step, first_step, threads=1), through[first_step:])


@dataclass
class Neighbour:
    """The other tower, whose images a loader has decoded before."""

    tower: int
    theirs: list[torch.Tensor]

    def swap_images(self, mine: torch.Tensor, num_theirs: int) -> torch.Tensor:
        self.theirs.append(mine.clone())
        found = self.theirs.pop(0)
        assert len(found) == num_theirs
        return found


@pytest.mark.parametrize("other", [TORCH, DALI])
def test_each_tower_decodes_half_of_a_batch(prepared: DataSet, other: InputConfig) -> None:
    """Tower 0 without DALI and tower 1 with or without it get the batch that one would have decoded alone."""
    halves = [torch.empty(2, CROP, CROP, 3, dtype=torch.uint8) for _ in range(3)]
    of_other = Neighbour(1, list(halves))
    train(prepared, other, 3, partner=of_other)
    both = train(prepared, TORCH, 3, partner=Neighbour(0, of_other.theirs[-3:]))
    assert alike(both, train(prepared, TORCH, 3))


# Images that are resized


def differences(root: Path, size: tuple[int, int], seed: int, cells: int) -> tuple[Pixels, Pixels]:
    """The difference in grey levels between the loaders, and between squares that are a pixel apart."""
    stream = np.random.default_rng(seed)
    photograph(stream, *size, cells).save(root / "a.png")
    dataset = data_of(root, ["a.png"], 256, needs_resize=True)
    whole = replace(PLAIN, crop_size=256, offsets=1)
    ours, theirs = (
        validate(dataset, replace(whole, loader=one))[0].images[0].permute(1, 2, 0) for one in ("torch", "dali")
    )
    ten = [validate(dataset, replace(PLAIN, crop_size=224, loader=one), "ten")[0].images for one in ("torch", "dali")]
    assert float((ten[0] - ten[1]).abs().mean()) < 0.3
    between, moved = (ours - theirs).abs(), (ours[:, 1:] - theirs[:, :-1]).abs()
    return between.round().to(torch.uint8).numpy(), moved.round().to(torch.uint8).numpy()


@pytest.mark.parametrize(
    ("size", "cells"), [((500, 375), 60), ((375, 501), 400), ((1100, 700), 90), ((300, 257), 64), ((100, 171), 40)]
)
def test_resized_images_are_dalis_within_two_levels_and_the_edge(
    tmp_path: Path, size: tuple[int, int], cells: int
) -> None:
    """The mean differs by less than 0.3 of 255 levels, no pixel within the square by more than 2.

    At the edge the filters differ: DALI continues the edge, and this one is cut there. On noise from pixel to pixel,
    the worst there is, the outermost rows differ by a fifth. An image that is off by a pixel is far off.
    """
    between, moved = differences(tmp_path, size, size[0], cells)
    assert between.mean() < 0.3
    assert between[1:-1, 1:-1].max() <= 2
    assert between.max() <= 51
    assert moved.mean() > 3
    assert moved[1:-1, 1:-1].max() > 20


def test_a_square_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    between, _ = differences(tmp_path, (256, 301), 5, 256)
    assert not between.any()


@pytest.mark.slow
def test_the_mean_image_and_the_colours_are_fitted_alike(tmp_path: Path) -> None:
    """data=folder, examined by both: the same images, means within 0.2 of a level, covariances within a hundredth."""
    root = draw_images(tmp_path / "set", num_val=1)
    found = []
    for loader in ("torch", "dali"):
        data = DataConfig(kind="folder", root=str(root), cache=str(tmp_path / loader))
        found.append(prepare(data, progress=False, loader=loader))
    ours, theirs = found
    assert ours.train.paths == theirs.train.paths  # type: ignore[attr-defined]
    assert ours.needs_resize is theirs.needs_resize is True
    assert ours.mean_image is not None
    assert theirs.mean_image is not None
    assert np.abs(ours.mean_image - theirs.mean_image).mean() < 0.2
    covariances = [one.eigenvectors @ np.diag(one.eigenvalues) @ one.eigenvectors.T for one in found]
    np.testing.assert_allclose(covariances[0], covariances[1], rtol=1e-2, atol=1e-3 * theirs.eigenvalues[-1])


# Files that cannot be decoded


def spoilt(root: Path) -> list[Path]:
    """The files good, cut, empty, text, missing, small, in this order."""
    stream, names = np.random.default_rng(0), ("good", "cut", "empty", "text", "missing", "small")
    paths = [root / f"{name}.jpg" for name in names]
    for path in paths:
        photograph(stream, SIZE, SIZE).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:600])
    paths[2].write_bytes(b"")
    paths[3].write_text("no photograph")
    paths[4].unlink()
    photograph(stream, 20, 20).save(paths[5])
    return paths


def test_a_file_of_which_no_part_can_be_decoded_is_left_out(tmp_path: Path) -> None:
    """DALI decodes the whole of a BMP that is cut short, and refuses the parts that training asks for."""
    whole, cut = tmp_path / "whole.bmp", tmp_path / "cut.bmp"
    Image.new("RGB", (40, 50), (200, 100, 50)).save(whole)
    content = bytearray(whole.read_bytes())
    content[10:14] = (len(content) - 100).to_bytes(4, "little")  # where its pixels begin
    cut.write_bytes(content)
    images, rejects = Decoder(1, 32).decode([whole, cut, whole])
    assert images.shape == (2, 32, 32, 3)
    assert (images == [200, 100, 50]).all()
    assert rejects == {
        cut: "it is a BMP that DALI cannot decode: damaged, cut short, or of a kind that it does not know"
    }


def test_files_are_examined_as_by_dali(tmp_path: Path) -> None:
    paths = spoilt(tmp_path)
    ours, theirs = TorchDecoder(2, SIZE), Decoder(2, SIZE)
    images, rejects = ours.decode(paths)
    same, wanted = theirs.decode(paths)
    assert list(rejects) == paths[1:5]
    assert set(rejects) == set(wanted)
    assert rejects[paths[2]] == wanted[paths[2]] == "the file is empty"
    assert rejects[paths[4]] == wanted[paths[4]]
    assert images.shape == same.shape == (2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(images[0], same[0])
    assert ours.needs_resize is theirs.needs_resize is True
    assert TorchDecoder(2, SIZE).decode(paths[2:3])[0].shape == (0, SIZE, SIZE, 3)
    alone = TorchDecoder(1, SIZE)
    alone.decode(paths[:1])
    assert alone.needs_resize is False


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("cut", RuntimeError, r"cut\.jpg cannot be decoded any more: "),
        ("empty", RuntimeError, r"empty\.jpg cannot be decoded any more: the file is empty"),
        ("text", RuntimeError, r"text\.jpg cannot be decoded any more: no image"),
        ("missing", FileNotFoundError, r"missing\.jpg"),
        ("small", RuntimeError, r"small\.jpg cannot be decoded any more: it has 20 x 20 pixels, not 48 x 48"),
    ],
)
def test_a_file_that_has_changed_is_named(tmp_path: Path, name: str, kind: Any, told: str) -> None:
    """The error comes in the file's own batch, after those before it, and names no other file."""
    spoilt(tmp_path)
    dataset = data_of(tmp_path, [*["good.jpg"] * 6, f"{name}.jpg", "good.jpg"])
    feed = open_validation(dataset, TORCH, share(batch_size=2))
    with closing(feed):
        assert len(list(islice(feed, 3))) == 3
        with pytest.raises(kind, match=told):
            next(feed)


def test_closed_feeds_leave_no_threads(prepared: DataSet) -> None:
    def ours() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith(("read", "decode", "order"))]

    def opened() -> Feed:
        return open_train(prepared, TORCH, share(), seed=3, first_step=0)

    assert not ours()
    feed = opened()
    next(feed)
    assert {name.split("_")[0] for name in ours()} == {"read", "decode", "order"}
    feed.close()
    feed.close()
    opened().close()  # nothing was taken
    assert not ours()


# Where DALI is missing


def test_the_loader_is_chosen_by_what_can_be_imported(no_dali: None) -> None:
    assert choose_loader("auto") == "torch"
    assert describe_loader("auto") == "by torch, without DALI"
    notice = notice_fallback("auto")
    assert notice is not None
    assert "DALI cannot be imported here" in notice
    assert "nvidia.dali" in notice
    assert "\n" not in notice
    assert notice_fallback("torch") is None
    with pytest.raises(
        ValueError, match=r"input\.loader=dali needs DALI, which cannot be imported here \(.*loader=auto"
    ):
        choose_loader("dali")
    with pytest.raises(ValueError, match=r"machine\.loader_device=gpu needs DALI"):
        choose_loader("auto", "gpu")


def test_the_loader_is_dali_where_it_is() -> None:
    assert choose_loader("auto") == "dali"
    assert choose_loader("torch") == "torch"
    assert describe_loader("auto") == "by DALI"
    assert notice_fallback("auto") is None
    with pytest.raises(ValueError, match=r"machine\.loader_device=gpu is for input\.loader=dali"):
        choose_loader("torch", "gpu")
    with pytest.raises(ValueError, match=r"input\.loader=pillow is not known; choose one of auto, dali, torch"):
        check_input(InputConfig(loader="pillow"))


def test_a_run_is_refused_before_anything_is_drawn(no_dali: None, tmp_path: Path) -> None:
    config = fake_config(tmp_path / "nothing", "input.loader=dali", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(ValueError, match=r"input\.loader=dali needs DALI"), get_ready(config, 1):
        pass
    assert not list(tmp_path.iterdir())


def test_a_run_is_evaluated_elsewhere() -> None:
    """Another machine may lack the DALI of a run. Settings that suit any machine stay."""
    assert adapt_to_machine(InputConfig(loader="dali")) == InputConfig()
    for config in (InputConfig(), InputConfig(loader="torch")):
        assert adapt_to_machine(config) == config


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 256 x 256 JPEGs, seven classes with two training and two validation images."""
    root, stream = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(7):
            for i in range(2):
                path = root / split / f"c{label}" / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                photograph(stream, 256, 256, 8).save(path, quality=95)
    return root


def launch(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / "launch" / script), run_name="__main__")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_evaluation_and_figures_without_dali(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_dali: None
) -> None:
    """A run that used DALI; with DALI its predictions are found again bit for bit."""
    run = fake_run(tmp_path / "run", squares, "input.loader=dali")
    launch("evaluate.py", f"run={run}", "crops=ten", "batch_size=8", "device=cpu", monkeypatch=monkeypatch)
    assert capsys.readouterr().out.count("DALI cannot be imported here") == 1
    launch("figure.py", "activations", f"run={run}", monkeypatch=monkeypatch)
    assert (run / "figures" / "activations.png").exists()
    stored = {path: path.read_bytes() for path in (run / "predictions").glob("*.safetensors")}
    assert len(stored) == 2
    monkeypatch.undo()
    settings = EvaluateConfig(run=str(run), crops="ten", batch_size=8, device="cpu")
    subject = open_subject(str(run), settings)
    assert choose_loader(subject.config.input) == "dali"
    found = make_predictions(subject, settings)
    assert all(one.stored for one in found.values())
    anew = make_predictions(subject, replace(settings, fresh=True))
    for view, one in anew.items():
        assert not one.stored
        assert torch.equal(one.log_probabilities, found[view].log_probabilities)


def test_predictions_from_resized_images_are_not_taken_for_dalis(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", draw_images(tmp_path / "images", num_val=1))
    subject = open_subject(str(run), EvaluateConfig(run=str(run)))
    assert "loader" not in subject.identity["input"]
    config = replace(subject.config, input=replace(subject.config.input, loader="torch"))
    manifest: Any = type("Manifest", (), {"sha256": {}})
    for needs_resize, told in ((True, "torch"), (False, None)):
        dataset = replace(subject.dataset, needs_resize=needs_resize)
        identity = predictions.identify_predictions(manifest, config, dataset, "val", torch.device("cpu"))
        assert identity["input"].get("loader") == told


def test_predictions_of_a_gpu_are_not_those_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order of sums, another decoder: some images of thousands fall on the other side."""
    run = fake_run(tmp_path / "run", draw_images(tmp_path / "images", num_val=1))
    subject = open_subject(str(run), EvaluateConfig(run=str(run), device="cpu"))
    assert "gpu" not in subject.identity  # so what earlier versions stored still counts
    identities = []
    for name in ("NVIDIA A100", "NVIDIA H100"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        manifest, config, dataset = subject.manifest, subject.config, subject.dataset
        gpu = torch.device("cuda")
        identities.append(predictions.identify_predictions(manifest, config, dataset, "val", gpu))
    assert identities[0] != identities[1]
    assert subject.identity not in identities


@pytest.mark.slow
def test_a_set_is_prepared_without_dali(squares: Path, tmp_path: Path, no_dali: None) -> None:
    """The picture is drawn through the loader; the set is then read by both."""
    source = SourceConfig(name="folder", kind="tree", root=str(squares), splits={"train": "train", "val": "val"})
    picture = {"training": InputConfig()}
    build(PrepareConfig(source=source, output=str(tmp_path / "set"), workers=1, picture=picture), lambda line: None)
    dataset = load(DataConfig(kind="folder", root=str(tmp_path / "set")))
    assert dataset.picture is not None
    config = replace(TORCH, crop_size=224)
    trained = train(dataset, config, 3)
    assert len({float(batch.images.sum()) for batch in trained}) == 3


@pytest.mark.slow
def test_two_towers_train_the_same_with_and_without_dali(squares: Path, tmp_path: Path) -> None:
    """Every loss and error of a run on prepared images is the same to the last bit with both loaders."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text("import sys\nsys.modules['nvidia.dali'] = None\n")
    path = os.pathsep.join([str(tmp_path / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])])
    short = ["schedule.epochs=2", "schedule.drop_epochs=[]", "optim.batch_size=4", "network.image_size=64"]
    outputs = {}
    started = {
        name: command(
            *SMALL, f"data.root={squares}", *NO_WANDB, *short, f"data.cache={name}-cache", f"run_dir={name}",
            cwd=tmp_path, variables=variables,
        )
        for name, variables in (("dali", {}), ("torch", {"PYTHONPATH": path}))
    }  # fmt: skip
    for name, process in started.items():
        status, outputs[name] = finish(process)
        assert status == 0, outputs[name]
    assert "1 thread each, images by DALI\n" in outputs["dali"]
    assert "cannot be imported" not in outputs["dali"]
    assert "1 thread each, images by torch, without DALI\n" in outputs["torch"]
    assert outputs["torch"].count("DALI cannot be imported here") == 1
    ours, theirs = numbers(tmp_path / "torch"), numbers(tmp_path / "dali")
    assert len([event for event in ours if event["event"] == "validation"]) == 2
    assert ours == theirs
