"""Figure 4: features against the oracle, neighbours against a search in float64, names, numbers, and the command."""

import csv
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from helpers import oracle
from helpers.fake_runs import NUM_CLASSES, draw_images, fake_config, fake_run
from helpers.paths import ROOT
from twotower.config import EvaluateConfig
from twotower.data.decode import cut_square
from twotower.evaluation import neighbours
from twotower.evaluation.neighbours import nearest
from twotower.evaluation.stored_features import FOLDER, last_hidden, make_features
from twotower.evaluation.subject import Subject, open_subject
from twotower.figures import figure4
from twotower.figures.neighbour_precision import count_precision
from twotower.figures.photographs import find_image, read_class_names, shorten
from twotower.runs import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
Floats = NDArray[np.float32]


def by_brute_force(queries: Floats, base: Floats, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One query at a time, all differences in float64, a stable sort."""
    places, distances = [], []
    for query in queries.astype(np.float64):
        lengths = np.linalg.norm(base.astype(np.float64) - query, axis=1)
        order = np.argsort(lengths, kind="stable")[:k]
        places.append(order)
        distances.append(lengths[order])
    return np.array(places), np.array(distances)


def by_the_fast_formula(queries: Floats, base: Floats, k: int) -> NDArray[np.int64]:
    """|q|^2 - 2 q.b + |b|^2 in float32, the wrong way to compute distances."""
    between = (queries**2).sum(1)[:, None] - 2 * queries @ base.T + (base**2).sum(1)
    return np.argsort(between, axis=1, kind="stable")[:, :k]


def spread(distance: float, count: int, width: int, seed: int) -> Floats:
    """Rows around one point that is far from zero."""
    stream = np.random.default_rng(seed)
    centre = 100 * np.random.default_rng(0).normal(size=width)
    return (centre + distance * stream.normal(size=(count, width))).astype(np.float32)


@pytest.mark.parametrize("distance", [100.0, 0.01])
def test_neighbours_are_those_of_a_search_in_float64(distance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at 800 from zero and 0.1 from each other, where float32 cancels and the fast formula mixes them up."""
    monkeypatch.setattr(neighbours, "BASE_BLOCK", 256)
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", 16)
    base, queries = spread(distance, 1000, 64, 1), spread(distance, 40, 64, 2)
    places, distances = nearest(queries, base, 6)
    expected, expected_distances = by_brute_force(queries, base, 6)
    assert np.array_equal(places, expected)
    assert np.allclose(distances, expected_distances, rtol=1e-12)
    wrong = (by_the_fast_formula(queries, base, 6) != expected).any(1).mean()
    assert wrong > 0.9 if distance == 0.01 else wrong < 0.1, "what the search in float64 is there for"


def test_of_equal_rows_the_first_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Duplicates within a block and across blocks, and a base of nothing but duplicates."""
    monkeypatch.setattr(neighbours, "BASE_BLOCK", 32)
    base = spread(1.0, 100, 16, 1)
    base[[7, 30, 64, 99]] = base[50]
    places, distances = nearest(base[50:51], base, 6)
    assert places[0, :5].tolist() == [7, 30, 50, 64, 99]
    assert distances[0, :5].tolist() == [0] * 5
    assert distances[0, 5] > 0
    same = np.repeat(spread(1.0, 1, 16, 3), 100, axis=0)
    assert nearest(base[:2], same, 3)[0].tolist() == [[0, 1, 2]] * 2
    assert nearest(same[:2], same, 3)[0].tolist() == [[0, 1, 2]] * 2


def test_tiny_and_zero_values_have_neighbours() -> None:
    """Products of 1e-25 are zero in float32, and the rows of a dead layer are zero themselves."""
    stream = np.random.default_rng(0)
    base, queries = (stream.normal(size=(count, 8)).astype(np.float32) * np.float32(1e-25) for count in (50, 5))
    assert np.array_equal(nearest(queries, base, 4)[0], by_brute_force(queries, base, 4)[0])
    assert nearest(np.zeros((1, 8), np.float32), np.zeros((9, 8), np.float32), 4)[0].tolist() == [[0, 1, 2, 3]]


class Counting:
    """A base that records how many rows were read at a time, and in which order."""

    def __init__(self, rows: Floats) -> None:
        self.rows, self.shape = rows, rows.shape
        self.asked: list[tuple[int, int]] = []

    def __getitem__(self, rows: slice) -> Floats:
        assert isinstance(rows, slice), "single rows out of a file would be slow"
        self.asked.append((rows.start, min(rows.stop, len(self.rows))))
        return self.rows[rows]


def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is read once from front to back in blocks; no matrix or difference is larger than its limit."""
    monkeypatch.setattr(neighbours, "BASE_BLOCK", 100)
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", 8)
    monkeypatch.setattr(neighbours, "REFINED_BYTES", 10 * 16 * 8)
    base, queries = Counting(np.repeat(spread(1.0, 430, 16, 1), 2, axis=0)), spread(1.0, 20, 16, 2)
    sizes: list[int] = []
    of_numpy = np.square

    def square_of(values: NDArray[np.float64], out: NDArray[np.float64]) -> NDArray[np.float64]:
        sizes.append(len(values))
        return np.asarray(of_numpy(values, out=out))

    monkeypatch.setattr(neighbours.np, "square", square_of)
    places, _ = nearest(queries, base, 6)
    assert np.array_equal(places, by_brute_force(queries, base.rows, 6)[0])
    assert base.asked == [(begin, min(begin + 100, 860)) for begin in range(0, 860, 100)]
    assert len(sizes) > 10
    assert max(sizes) <= 10


@pytest.mark.parametrize(
    ("change", "k", "sentence"),
    [
        (lambda q, b: (q, b), 21, "21 neighbours are asked of 20 rows; ask for 1 to 20"),
        (lambda q, b: (q, b), 0, "0 neighbours"),
        (lambda q, b: (q[:, :3], b), 2, "the queries have 3 values a row and the base 4"),
        (lambda q, b: (q * np.nan, b), 2, "row 0 of the queries has values that are not finite"),
        (lambda q, b: (q, np.where(np.arange(20)[:, None] == 7, 1e30, b)), 2, "row 7 of the base has values"),
    ],
)
def test_what_has_no_neighbours_is_refused(
    change: Callable[[Floats, Floats], tuple[Floats, Floats]], k: int, sentence: str
) -> None:
    queries, base = change(np.ones((2, 4), np.float32), np.ones((20, 4), np.float32))
    with pytest.raises(ValueError, match=sentence):
        nearest(queries.astype(np.float32), base.astype(np.float32), k)


def open_run(run: Path) -> Subject:
    return open_subject(str(run), EvaluateConfig(run=str(run)))


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's two towers, narrow, on images of 64 pixels and raw files."""
    folder = tmp_path_factory.mktemp("figure4")
    return fake_run(folder / "run", draw_images(folder / "images"), "logging=no_wandb")


def whole_network(run: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.find(run)
    towers = [load_file(path / f"tower{tower}.safetensors") for tower in range(2)]
    return oracle.merge(*({name: t for name, t in one.items() if "/" not in name} for one in towers))


def centre_crops(subject: Subject, split: str) -> torch.Tensor:
    """float32 [N, 3, 64, 64], less the mean: decoded by Pillow."""
    crops = []
    mean = subject.dataset.mean_image
    assert mean is not None
    size = subject.config.input.crop_size
    begin = (len(mean) - size) // 2
    for path in sorted((Path(str(subject.config.data.root)) / split).glob("*/*.png")):
        with Image.open(path) as image:
            pixels = cut_square(np.array(image.convert("RGB")), len(mean)).astype(np.float32) - mean
        crops.append(pixels[begin : begin + size, begin : begin + size])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def test_features_are_what_the_classifier_reads(paper_run: Path) -> None:
    """The oracle's network with an identity in place of fc8 puts out what fc8 reads, tower 0's units first."""
    subject = open_run(paper_run)
    parameters = whole_network(paper_run)
    units = len(parameters["fc7.bias"])
    headless = parameters | {"fc8.weight": torch.eye(units), "fc8.bias": torch.zeros(units)}
    for split, count in (("train", NUM_CLASSES), ("val", 3 * NUM_CLASSES)):
        features = make_features(subject, split, "fc7")
        assert (features.values.shape, features.values.dtype) == ((count, units), np.float32)
        expected = oracle.logits(headless, centre_crops(subject, split), oracle.PRESETS["alexnet_2012"], masks=None)
        assert (features.values > 0).mean() > 0.1, "not all dead"
        # The two resizing filters differ by up to a grey level.
        assert oracle.deviation(torch.from_numpy(np.array(features.values)), expected) < 0.02
        swapped = torch.cat(list(reversed(expected.chunk(2, dim=1))), dim=1)
        assert oracle.deviation(torch.from_numpy(np.array(features.values)), swapped) > 0.2, "the other order is seen"


def test_features_are_computed_once_and_again_for_another_checkpoint(
    paper_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = open_run(paper_run)
    first = make_features(subject, "val", "fc6")
    again = make_features(subject, "val", "fc6")
    assert isinstance(again.values, np.memmap)
    assert (first.stored, again.stored) == (False, True)
    assert np.array_equal(first.values, again.values)
    other = replace(subject, identity={**subject.identity, "checkpoint": {"tower0.safetensors": "another"}})
    assert not make_features(other, "val", "fc6").stored
    assert not make_features(subject, "val", "fc6").stored, "what another checkpoint left is not taken"
    path = paper_run / FOLDER / "step-00000001-val-fc6.npy"
    path.write_bytes(path.read_bytes()[:200])
    assert not make_features(subject, "val", "fc6").stored, "a table that was cut short is not taken"
    assert not list((paper_run / FOLDER).glob("*.pending"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    path.unlink()
    with pytest.raises(ValueError, match=r"bytes free, and the features of all images take"):
        make_features(subject, "val", "fc6")
    assert not list((paper_run / FOLDER).glob("*.pending"))


def test_a_network_of_one_tower_whose_last_hidden_layer_is_a_convolution(tmp_path: Path) -> None:
    small = ("network=cifar_four_layer", "network.width=0.5", "network.image_size=32")
    run = fake_run(tmp_path / "run", draw_images(tmp_path / "images"), *small)
    subject = open_run(run)
    assert last_hidden(subject.config.network) == "conv3"
    values = make_features(subject, "train", "conv3").values
    assert values.shape[0] == NUM_CLASSES
    assert values.shape[1] == 32 * 4 * 4
    assert np.isfinite(values).all()


def test_precision_is_that_of_a_loop() -> None:
    stream = np.random.default_rng(0)
    train_labels, labels = stream.integers(0, 3, 50), stream.integers(0, 3, 20)
    places = stream.integers(0, 50, (20, 6))
    precision = count_precision(places, labels, train_labels)
    firsts = sum(train_labels[places[i, 0]] == labels[i] for i in range(20))
    all_six = sum(train_labels[places[i, j]] == labels[i] for i in range(20) for j in range(6))
    chance = sum((train_labels == label).sum() for label in labels)
    assert (precision.at_1, precision.at_k) == pytest.approx((100 * firsts / 20, 100 * all_six / 120))
    assert (precision.by_chance, precision.num_queries, precision.k) == (pytest.approx(100 * chance / 1000), 20, 6)


def test_names_are_for_people(paper_run: Path, tmp_path: Path) -> None:
    words = ["tench, Tinca tinca", "crane", "crane, bird", "n3", "English springer", "a", "b"]
    shard = {"file": "00000.tar", "sha256": ""}
    described = {
        "format": 1,
        "settings": {"size": 256, "source": "folder"},
        "classes": [{"name": f"n{i}", "words": w} for i, w in enumerate(words)],
        "splits": {split: {"images": 1, "index_sha256": "", "shards": [shard]} for split in ("train", "val")},
        "rejects": [],
        "mean_image_sha256": "",
        "eigenvalues": [1.0] * 3,
        "eigenvectors": [[1.0] * 3] * 3,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    subject = open_run(paper_run)
    assert read_class_names(subject) == subject.dataset.classes
    prepared = replace(subject.config.data, root=str(tmp_path))
    named = replace(subject, config=replace(subject.config, data=prepared))
    assert read_class_names(named) == ["tench", "crane", "crane, bird", "n3", "English springer", "a", "b"]
    assert shorten("English springer spaniel", 16) == "English springe…"
    assert shorten("tench") == "tench"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("4", 4),
        ("c1/2.png", 5),
        ("val/c1/2", 5),
        ("21", "choose 0 to 20"),
        ("-1", "choose 0 to 20"),
        ("2.png", "7 images of the validation set are called 2.png; give the folder too, as in val/c0/2.png"),
        ("dog.png", "no image of the validation set is called dog.png"),
    ],
)
def test_images_are_found_by_place_or_name(given: str, expected: int | str, paper_run: Path) -> None:
    val = open_run(paper_run).dataset.val
    if isinstance(expected, int):
        assert find_image(val, given) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            find_image(val, given)


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["figure.py", *arguments])
    runpy.run_path(str(ROOT / "launch" / "figure.py"), run_name="__main__")


def test_the_command_writes_the_picture_and_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figure goes into the run's own folder, whose name may have commas; its data name what was drawn."""
    run = fake_run(tmp_path / "ablation=none,seed=0", draw_images(tmp_path / "images"), "logging=no_wandb")
    monkeypatch.chdir(tmp_path)
    launch(monkeypatch, "figure4", "run=ablation=none,seed=0", "images=[3,c1/2.png]", "seed=2")
    printed = capsys.readouterr().out
    numbers = json.loads((run / "figures" / "figure4.json").read_text())
    validation = numbers["validation"]
    assert f"21 validation images: {validation['precision_at_1']:.1f} % of the nearest" in printed
    assert (numbers["layer"], validation["queries"], numbers["shown"]["queries"]) == ("fc7", 21, 5)
    assert validation["by_chance"] == pytest.approx(100 / NUM_CLASSES)
    rows = list(csv.DictReader((run / "figures" / "figure4.csv").open()))
    classes = [row for row in rows if row["part"] == "classes"]
    assert [row["image"] for row in classes] == ["val/c1/0.png"] * 5 + ["val/c1/2.png"] * 5
    stored = load_file(run / "predictions" / "step-00000001-val-centre.safetensors")
    expected = stored["log_probabilities"][3].exp().sort(descending=True)
    assert [float(row["probability"]) for row in classes[:5]] == pytest.approx(expected.values[:5].tolist(), rel=1e-5)
    assert [row["class"] for row in classes[:5]] == [f"c{label}" for label in expected.indices[:5]]
    assert [row["is_right"] for row in classes[:5]] == ["01"[label == 1] for label in expected.indices[:5]]
    pairs = [row for row in rows if row["part"] == "neighbours"]
    assert len(pairs) == 5 * 6
    subject = open_run(run)
    of_val, of_train = (np.array(make_features(subject, split, "fc7").values) for split in ("val", "train"))
    asked = [find_image(subject.dataset.val, row["image"]) for row in pairs[::6]]
    places, distances = by_brute_force(of_val[asked], of_train, 6)
    assert [row["neighbour"] for row in pairs] == [f"train/c{place}/0.png" for place in places.ravel()]
    assert [float(row["distance"]) for row in pairs] == pytest.approx(distances.ravel().tolist(), rel=1e-5)
    assert all(int(row["is_right"]) == (row["class"] in row["image"]) for row in pairs)
    of_all = by_brute_force(of_val, of_train, 1)[0][:, 0]
    assert validation["precision_at_1"] == pytest.approx(100 * (of_all == np.arange(21) // 3).mean())
    with Image.open(run / "figures" / "figure4.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 22) or []) > 1000, "photographs in colour"


def test_large_sets_are_counted_in_part(paper_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precision counts as many validation images as the work allows; a shown query does not count for being shown."""
    subject = open_run(paper_run)
    base = make_features(subject, "train", "fc7").values
    monkeypatch.setattr(figure4, "WORK", 4.5 * base.size)
    figure = figure4.make_figure4(subject, ["0"], ["1", "5"], seed=0)
    assert (figure.validation.num_queries, figure.shown.num_queries) == (4, 2)


def leave_synthetic_run(folder: Path, run: Path) -> None:
    """A copy of a run, as if it had been trained on random tensors."""
    shutil.copytree(run, folder)
    config = OmegaConf.load(folder / "config.yaml")
    config.data = {"kind": "synthetic", "num_train": 9, "num_val": 9, "num_classes": NUM_CLASSES}
    OmegaConf.save(config, folder / "config.yaml")
    manifest = checkpoint.find(folder) / "manifest.json"
    classes = [f"class{label}" for label in range(NUM_CLASSES)]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"classes": classes}))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("figure4", "run=run", "images=[99]"), "image 99 is not in the validation set; choose 0 to 20"),
        (("figure4", "run=run", "seed=-1"), "seed=-1 is not possible"),
        (("figure4", "run=run", "layer=conv1"), "layer= is for activations; figure4 has no such option"),
        (("figure4", "run=nothing*"), "matches no run"),
        (("figure4",), r"give the runs to draw: python launch/figure.py figure4 RUN"),
        (("figure4", "run=run", "runs=[run]"), "not both"),
        (("figure4", "runs=[run,images]"), "figure4 draws one run, and 2 were given, the first two run and images"),
        (("figure4", "run=images"), "is not the folder of a run"),
        (("figure4", "run=untrained"), "untrained holds no complete checkpoint"),
        (("figure4", "run=timed"), "trained on data=synthetic, which has no images"),
        (("figure4", "run=run", "output=a.jpg"), r"must end in one of \.png"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, paper_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = paper_run.parent
    monkeypatch.chdir(folder)
    if "run=untrained" in arguments:
        (folder / "untrained").mkdir()
        (folder / "untrained" / "config.yaml").write_text((paper_run / "config.yaml").read_text())
    if "run=timed" in arguments:
        leave_synthetic_run(folder / "timed", paper_run)
    with pytest.raises(SystemExit, match=sentence):
        launch(monkeypatch, *arguments)
    assert not (folder / "images" / "figures").exists(), "a folder that is no run is left as it is"


def test_a_network_of_one_layer_has_no_hidden_one() -> None:
    network = fake_config(Path("nowhere"), "network=half_tower").network
    assert last_hidden(network) == "fc7"
    alone = replace(network, layers={"fc8": network.layers["fc8"]})
    with pytest.raises(ValueError, match="has no layer before its classifier fc8"):
        last_hidden(alone)
