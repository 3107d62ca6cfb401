"""Preparing at first use: unusable folders, undecodable files, what is fitted and stored, drawn shapes."""

import contextlib
import hashlib
import json
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from twotower.config import DataConfig
from twotower.data.dataset import DataSet
from twotower.data.folder import FolderIndex, index_folder
from twotower.data.load_data import load
from twotower.data.preparing.examiner import Findings
from twotower.data.preparing.first_use import prepare
from twotower.data.preparing.mean_and_pca import Fit
from twotower.data.shapes import draw_shapes


def save_image(path: Path, stream: np.random.Generator, size: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stream.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three training and two validation images each."""
    stream = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                save_image(tmp_path / "set" / split / name / f"{i}.jpg", stream)
    return tmp_path / "set"


class InThisProcess:
    """An examiner without the half second that a process takes to start. test_examine.py has the processes."""

    num_requests = 0

    def __init__(self, decoder: type, size: int, patience: float) -> None:
        self._decoder = decoder(1, size)

    def examine(self, paths: list[Path], fit: bool) -> Findings:
        images, rejects = self._decoder.decode(paths)
        sums = Fit(self._decoder.size)
        for image in images if fit else ():
            sums.add(image)
        return Findings(sums, {str(path): reason for path, reason in rejects.items()}, self._decoder.needs_resize)

    def kill(self) -> None:
        pass

    close = kill


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("twotower.data.preparing.examine_folder"), "Examiner", InThisProcess)


def folder(root: Path, **options: Any) -> DataConfig:
    return DataConfig(kind="folder", root=str(root), **options)


def quietly(data: DataConfig) -> DataSet:
    return prepare(data, progress=False)


def contents(root: Path) -> dict[str, str]:
    """Every path below a folder, with a digest of its content."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(root.rglob("*"))
    }


def assert_nothing_half_written(*folders: Path) -> None:
    left = [path for folder in folders for path in folder.rglob("*") if "pending" in path.name]
    assert not left


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(index: FolderIndex, *_: Any, **__: Any) -> None:
        raise AssertionError(f"decoded again: {index.root}")

    monkeypatch.setattr(import_module("twotower.data.preparing.first_use"), "examine", examine)


# Folders


def test_classes_are_numbered_by_name(root: Path) -> None:
    """A class has the same number in train and val, in whatever order the file system lists it."""
    stream = np.random.default_rng(1)
    for split in ("train", "val"):
        for name in ("zebra", "ant", "Bee"):
            save_image(root / split / name / "x.png", stream)
    dataset = quietly(folder(root))
    assert dataset.classes == ["Bee", "ant", "cat", "dog", "zebra"]
    for split in (dataset.train, dataset.val):
        assert len(split) == len(split.paths) == len(split.labels)
        assert split.labels.dtype == np.int64
        for path, label in zip(split.paths, split.labels, strict=True):
            assert path.split("/")[1] == dataset.classes[label]
            assert (split.root / path).is_file()
    assert len(dataset.train) == 9
    assert len(dataset.val) == 7
    assert {path.split("/")[0] for path in dataset.train.paths} == {"train"}
    assert {path.split("/")[0] for path in dataset.val.paths} == {"val"}


def test_only_images_count(root: Path) -> None:
    """Hidden folders are no classes, files of other kinds are no images, and a suffix may be in capitals."""
    save_image(root / "train" / "cat" / "B.PNG", np.random.default_rng(2))
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / "cat" / "sub.jpg").mkdir()
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "list.csv").write_text("x")
    index = index_folder(root)
    assert index.classes == ["cat", "dog"]
    assert index.files["train"]["cat"] == ["0.jpg", "1.jpg", "2.jpg", "B.PNG"]
    assert index.num_ignored == 1


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=\S*absent does not exist.*train/<class>/\* and val/<class>/\*"):
        index_folder(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"data\.root=\S*file .*is no folder"):
        index_folder(tmp_path / "file")


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_split(root: Path, split: str) -> None:
    shutil.rmtree(root / split)
    with pytest.raises(ValueError, match=rf"data\.root={re.escape(str(root))} has no folder {split};"):
        quietly(folder(root))


def test_no_classes(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    with pytest.raises(ValueError, match=rf"{re.escape(str(root / 'train'))} is empty"):
        quietly(folder(root))


def test_class_missing_in_val(root: Path) -> None:
    shutil.rmtree(root / "val" / "dog")
    with pytest.raises(ValueError, match=r"Class dog is in \S*train but not in val"):
        quietly(folder(root))


def test_unknown_class_in_val(root: Path) -> None:
    save_image(root / "val" / "cow" / "0.jpg", np.random.default_rng(3))
    with pytest.raises(ValueError, match=r"Class cow is in \S*val but not in train"):
        quietly(folder(root))


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_without_images(root: Path, split: str) -> None:
    for path in (root / split / "cat").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(ValueError, match=rf"{split}/cat has no images; they must be named \.jpg, \.jpeg, \.png"):
        quietly(folder(root))


def test_loading_before_preparing_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="has not been prepared"):
        load(folder(root))


# Files that cannot be decoded


def truncated_jpeg(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def text_file(path: Path) -> None:
    path.write_text("This is no picture.\n")


def stump_of_a_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


SPOILERS = [truncated_jpeg, empty_file, text_file, stump_of_a_file]


@pytest.mark.parametrize("spoil", SPOILERS)
@pytest.mark.parametrize("file", ["train/dog/1.jpg", "val/cat/0.jpg"])
def test_undecodable_file_stops_the_preparation(root: Path, spoil: Any, file: str) -> None:
    """The decoder sees batches, and the sentence must name the one file, in validation as well."""
    spoil(root / file)
    with pytest.raises(ValueError, match=rf"{re.escape(str(root / file))} cannot be decoded.*data\.on_error=skip"):
        quietly(folder(root))
    with pytest.raises(ValueError, match="has not been prepared"):
        load(folder(root))
    assert_nothing_half_written(root)


def test_undecodable_files_can_be_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each reject is listed with a reason. The others keep their labels, and no reject counts in what is fitted."""
    bad = ["train/cat/1.jpg", "train/dog/0.jpg", "train/dog/2.jpg", "val/dog/1.jpg"]
    for spoil, file in zip(SPOILERS, bad, strict=True):
        spoil(root / file)
    dataset = prepare(folder(root, on_error="skip"))
    assert sorted(dataset.rejects) == bad
    assert all(reason.strip() for reason in dataset.rejects.values())
    assert dataset.train.paths == ["train/cat/0.jpg", "train/cat/2.jpg", "train/dog/1.jpg"]
    assert dataset.train.labels.tolist() == [0, 0, 1]
    assert dataset.val.paths == ["val/cat/0.jpg", "val/cat/1.jpg", "val/dog/0.jpg"]
    assert dataset.val.labels.tolist() == [0, 0, 1]
    output = capsys.readouterr().out
    for file in bad:
        assert f"left out: {file} ({dataset.rejects[file]})" in output
    with pytest.raises(ValueError, match=r"cannot be decoded.*data\.on_error=skip"):
        quietly(folder(root, on_error="stop"))
    assert sorted(quietly(folder(root, on_error="skip")).rejects) == bad  # the refusal before has not changed this
    for file in bad:
        (root / file).unlink()
    clean = quietly(folder(root))
    assert clean.rejects == {}
    assert clean.mean_image is not None
    assert dataset.mean_image is not None
    np.testing.assert_array_equal(clean.mean_image, dataset.mean_image)
    np.testing.assert_array_equal(clean.eigenvalues, dataset.eigenvalues)


def test_reasons_tell_something(root: Path) -> None:
    """A reason that names only the operator that failed says nothing about the file."""
    for spoil, file in zip(SPOILERS, ("0", "1", "2"), strict=False):
        spoil(root / "train" / "cat" / f"{file}.jpg")
    save_image(root / "train" / "cat" / "good.png", np.random.default_rng(4))
    reasons = quietly(folder(root, on_error="skip")).rejects
    assert "empty" in reasons["train/cat/1.jpg"]
    assert len(reasons) == 3
    for reason in reasons.values():
        assert "\n" not in reason
        assert "Error in CPU operator" not in reason
        assert "pipeline" not in reason


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_must_keep_an_image(root: Path, split: str) -> None:
    for path in (root / split / "dog").iterdir():
        text_file(path)
    with pytest.raises(ValueError, match=rf"No image of \S*{split}/dog can be decoded"):
        quietly(folder(root, on_error="skip"))
    assert_nothing_half_written(root)


# The second time


def test_the_second_time_nothing_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quietly(folder(root))
    forbid_decoding(monkeypatch)
    for again in (quietly(folder(root)), load(folder(root))):
        assert again.classes == first.classes
        assert again.train.paths == first.train.paths
        assert again.val.paths == first.val.paths
        np.testing.assert_array_equal(again.train.labels, first.train.labels)
        for name in ("mean_image", "eigenvalues", "eigenvectors"):
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_rejects_are_remembered_without_decoding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_file(root / "train" / "cat" / "0.jpg")
    quietly(folder(root, on_error="skip"))
    forbid_decoding(monkeypatch)
    assert list(quietly(folder(root, on_error="skip")).rejects) == ["train/cat/0.jpg"]
    with pytest.raises(ValueError, match=r"train/cat/0\.jpg cannot be decoded"):
        quietly(folder(root, on_error="stop"))


def add(root: Path) -> None:
    shutil.copy(root / "train" / "cat" / "0.jpg", root / "train" / "cat" / "9.jpg")


def remove(root: Path) -> None:
    (root / "val" / "dog" / "0.jpg").unlink()


def rename(root: Path) -> None:
    (root / "val" / "dog" / "0.jpg").rename(root / "val" / "dog" / "7.jpg")


def replace_file(root: Path) -> None:
    save_image(root / "train" / "dog" / "2.jpg", np.random.default_rng(5), size=60)


def move(root: Path) -> None:
    (root / "train" / "dog" / "2.jpg").rename(root / "train" / "cat" / "5.jpg")


@pytest.mark.parametrize("change", [add, remove, rename, replace_file, move])
def test_a_changed_folder_is_prepared_anew(root: Path, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that is trusted for ever would train on a mean and on paths that the folder no longer has."""
    before = quietly(folder(root))
    change(root)
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        with pytest.raises(AssertionError, match="decoded again"):
            quietly(folder(root))
    after = quietly(folder(root))
    listed = [path.relative_to(root).as_posix() for path in sorted(root.glob("*/*/*.jpg"))]
    assert after.train.paths + after.val.paths == listed
    changed_train = change in (add, replace_file)
    assert before.mean_image is not None
    assert after.mean_image is not None
    assert (not np.array_equal(before.mean_image, after.mean_image)) == changed_train
    assert_nothing_half_written(root)


@pytest.mark.parametrize("content", ["", "{", '{"format": 0}'])
def test_a_broken_index_is_made_anew(root: Path, content: str) -> None:
    first = quietly(folder(root))
    (root / ".twotower" / "index.json").write_text(content)
    assert quietly(folder(root)).train.paths == first.train.paths
    json.loads((root / ".twotower" / "index.json").read_text())


# What is fitted


def save_256(root: Path, train: list[NDArray[np.uint8]], val: list[NDArray[np.uint8]]) -> None:
    for split, images in (("train", train), ("val", val)):
        (root / split / "a").mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(root / split / "a" / f"{i:02d}.png", compress_level=1)


def test_mean_and_axes_equal_numpys(tmp_path: Path) -> None:
    """The fit covers training images only, in RGB, unscaled, over more than one batch of the decoder."""
    stream = np.random.default_rng(6)
    mixing = np.array([[60, 10, 5], [50, -20, 8], [40, 5, -15]])
    train = []
    for i in range(35):
        colours = stream.normal(size=(256, 256, 3)) @ mixing.T + (140, 110, 60 + i)
        train.append(colours.clip(0, 255).astype(np.uint8))
    val = [np.full((256, 256, 3), (0, 255, 0), np.uint8)]
    save_256(tmp_path / "set", train, val)
    dataset = quietly(folder(tmp_path / "set"))
    stack = np.stack(train)
    assert dataset.mean_image is not None
    assert dataset.mean_image.shape == (256, 256, 3)
    assert dataset.mean_image.dtype == np.float32
    np.testing.assert_array_equal(dataset.mean_image, stack.mean(axis=0, dtype=np.float64).astype(np.float32))
    covariance = np.cov(stack.reshape(-1, 3).T.astype(np.float64), bias=True)
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(dataset.eigenvalues, values, rtol=1e-4)
    for ours, theirs in zip(dataset.eigenvectors.T, vectors.T, strict=True):  # compares columns, whose sign is free
        assert abs(ours @ theirs) == pytest.approx(1, abs=1e-6)
    rebuilt = dataset.eigenvectors @ np.diag(dataset.eigenvalues) @ dataset.eigenvectors.T
    np.testing.assert_allclose(rebuilt, covariance, rtol=1e-3, atol=0.05)


def test_axes_are_unit_vectors_where_two_channels_are_alike(tmp_path: Path) -> None:
    """The components of the axis (1, -1, 0) add up to zero, so a sign taken from their sum would be lost."""
    image = np.random.default_rng(7).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image[..., 2] = 7
    save_256(tmp_path / "set", [image, np.ascontiguousarray(image[..., [1, 0, 2]])], [image])
    axes = quietly(folder(tmp_path / "set")).eigenvectors
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)


def test_axes_of_grey_images_are_unit_vectors(tmp_path: Path) -> None:
    """Two eigenvalues are zero there, and the file must not hold vectors of length zero or NaN."""
    grey = np.random.default_rng(8).integers(0, 256, (256, 256, 1), dtype=np.uint8).repeat(3, axis=2)
    save_256(tmp_path / "set", [grey], [grey])
    dataset = quietly(folder(tmp_path / "set"))
    np.testing.assert_allclose(dataset.eigenvectors.T @ dataset.eigenvectors, np.eye(3), atol=1e-6)
    variance = 3 * grey[..., 0].astype(np.float64).var()
    np.testing.assert_allclose(dataset.eigenvalues, [0, 0, variance], atol=1e-4 * variance)


# Where it is stored


def test_cache_elsewhere_leaves_the_root_untouched(root: Path, tmp_path: Path) -> None:
    """The folder of a data set is often read-only."""
    before = contents(root)
    inside = quietly(folder(root, cache=str(tmp_path / "far" / "away")))
    assert contents(root) == before
    assert (tmp_path / "far" / "away" / "index.json").is_file()
    assert load(folder(root, cache=str(tmp_path / "far" / "away"))).train.paths == inside.train.paths
    with pytest.raises(ValueError, match="has not been prepared"):
        load(folder(root))
    assert_nothing_half_written(tmp_path)


def test_default_cache_is_the_only_thing_added(root: Path) -> None:
    before = contents(root)
    quietly(folder(root))
    after = contents(root)
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[0] for path in after.keys() - before.keys()} == {".twotower"}
    assert_nothing_half_written(root)


@pytest.mark.parametrize("cache", ["file/cache", "file"])
def test_blocked_cache_is_refused(root: Path, tmp_path: Path, cache: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / cache))} cannot be written .*data\.cache=DIR"):
        quietly(folder(root, cache=str(tmp_path / cache)))
    assert (tmp_path / "file").read_text() == "mine"
    assert_nothing_half_written(tmp_path)


def test_full_disk_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: Any) -> int:
        with path.open("wb") as file:
            file.write(bytes(content)[:100])
        if "mean_image" in path.name:
            raise OSError(28, "No space left on device")
        return len(content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        with pytest.raises(ValueError, match=r"No space left on device.*data\.cache=DIR"):
            quietly(folder(root))
    assert_nothing_half_written(root)
    assert not list((root / ".twotower").glob("*"))
    quietly(folder(root))


def test_nothing_foreign_in_the_cache_is_deleted(root: Path, tmp_path: Path) -> None:
    """data.cache=HOME must not empty that folder, whether it is refused or used."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with contextlib.suppress(ValueError):
        quietly(folder(root, cache=str(tmp_path / "home")))
    assert (tmp_path / "home" / "thesis.txt").read_text() == "mine"


def test_root_as_cache_does_not_delete_the_data(root: Path) -> None:
    before = contents(root)
    with contextlib.suppress(ValueError):
        quietly(folder(root, cache=str(root)))
    after = contents(root)
    assert {path: after.get(path) for path in before} == before


# Shapes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn") / "shapes"
    draw_shapes(root, num_train=36, num_val=12)
    return root


def test_the_same_bytes_are_drawn_again(drawn: Path, tmp_path: Path) -> None:
    """No picture depends on how many there are, or on which thread drew it."""
    draw_shapes(tmp_path / "again", num_train=36, num_val=12)
    assert contents(tmp_path / "again") == contents(drawn)
    draw_shapes(tmp_path / "smaller", num_train=24, num_val=12)
    smaller = {path: digest for path, digest in contents(tmp_path / "smaller").items() if path.endswith(".jpg")}
    assert len(smaller) == 36
    assert smaller.items() <= contents(drawn).items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "smaller"]


def test_twelve_classes_are_balanced(drawn: Path) -> None:
    classes = {f"{colour}_{form}" for colour in ("red", "green", "blue") for form in ("circle", "square", "star")}
    classes |= {f"{colour}_triangle" for colour in ("red", "green", "blue")}
    for split, each in (("train", 3), ("val", 1)):
        assert {path.name for path in (drawn / split).iterdir()} == classes
        assert {len(list(path.glob("*.jpg"))) for path in (drawn / split).iterdir()} == {each}
    digests = [digest for path, digest in contents(drawn).items() if path.endswith(".jpg")]
    assert len(digests) == len(set(digests)) == 48  # no image comes twice, and none of train is in val


def test_sizes_and_aspect_ratios_differ(drawn: Path) -> None:
    sizes = []
    for path in drawn.glob("*/*/*.jpg"):
        with Image.open(path) as image:
            assert image.mode == "RGB"
            sizes.append(image.size)
    shorter = [min(size) for size in sizes]
    assert 120 <= min(shorter) < 160
    assert 220 < max(shorter) <= 260
    ratios = [width / height for width, height in sizes]
    assert min(ratios) < 0.8
    assert max(ratios) > 1.25
    assert len(set(sizes)) > 40


@pytest.mark.parametrize("colour", ["red", "green", "blue"])
def test_forms_have_the_colour_of_their_class(drawn: Path, colour: str) -> None:
    """Among the saturated pixels, the class's own channel is the largest in most."""
    channel = ["red", "green", "blue"].index(colour)
    paths = list(drawn.glob(f"train/{colour}_*/*.jpg"))
    assert len(paths) == 12
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image).astype(int).reshape(-1, 3)
        saturated = pixels[np.ptp(pixels, axis=1) > 0.6 * pixels.max(axis=1)]
        assert len(saturated) > 0.03 * len(pixels)
        assert (saturated.argmax(axis=1) == channel).mean() > 0.5


def test_shapes_are_drawn_and_prepared_at_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(kind="shapes", root=str(tmp_path / "shapes"), num_train=24, num_val=12)
    dataset = quietly(data)
    assert len(dataset.classes) == 12
    assert np.bincount(dataset.train.labels).tolist() == [2] * 12
    assert np.bincount(dataset.val.labels).tolist() == [1] * 12
    assert dataset.rejects == {}
    before = contents(tmp_path)
    forbid_decoding(monkeypatch)
    quietly(data)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("counts", [(24, 12), (36, 24)])
def test_another_number_of_shapes_is_refused(drawn: Path, counts: tuple[int, int]) -> None:
    """Training on the old number without a word would make the configuration wrong."""
    before = contents(drawn)
    sentence = rf"data\.num_train={counts[0]} and data\.num_val={counts[1]}; delete that folder or .*data\.root"
    with pytest.raises(ValueError, match=sentence):
        quietly(DataConfig(kind="shapes", root=str(drawn), num_train=counts[0], num_val=counts[1]))
    assert contents(drawn) == before


def test_a_folder_of_something_else_is_refused(root: Path) -> None:
    before = contents(root)
    with pytest.raises(ValueError, match=r"something else than the shapes.*give data=folder"):
        draw_shapes(root, num_train=12, num_val=12)
    assert contents(root) == before


@pytest.mark.parametrize(("counts", "key"), [((11, 12), "num_train"), ((12, 11), "num_val"), ((0, 0), "num_train")])
def test_fewer_shapes_than_classes_are_refused(tmp_path: Path, counts: tuple[int, int], key: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{key}=\d+ is fewer than the 12 classes"):
        draw_shapes(tmp_path / "shapes", *counts)
    assert not list(tmp_path.iterdir())


def test_shapes_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"cannot be drawn into .*data\.root"):
        draw_shapes(tmp_path / "file" / "shapes", num_train=12, num_val=12)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("size", "expected"), [((256, 256), False), ((256, 300), True), ((300, 300), True)])
def test_images_of_the_right_size_are_not_resized(tmp_path: Path, size: tuple[int, int], expected: bool) -> None:
    """One image of another size is enough to need resizing."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (256, 256)).save(tmp_path / split / name / "0.png")
    Image.new("RGB", size).save(tmp_path / "val" / "b" / "1.png")
    assert quietly(folder(tmp_path)).needs_resize is expected
