"""Files that are named as images and are something else: preparation goes on whatever they do to the decoder."""

import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import fake_decoders
from twotower.config import DataConfig
from twotower.data.folder import index_folder
from twotower.data.preparing.examine_folder import BATCH, Examiners, examine
from twotower.data.preparing.examiner import Findings
from twotower.data.preparing.first_use import prepare
from twotower.data.preparing.mean_and_pca import Fit

SIZE = 4
PATIENCE = 2.0  # seconds; a fake decoder needs none


def write(folder: Path, contents: list[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    return paths


def examined(paths: list[Path], decoder: type = fake_decoders.Fake, patience: float = PATIENCE) -> Findings:
    together = Findings(Fit(SIZE))
    with Examiners(decoder, SIZE, 2, patience) as examiners:
        for length, findings in examiners.examine(paths, fit=True):
            assert length <= BATCH
            together.merge(findings)
    return together


def assert_sums(fit: Fit, values: list[int]) -> None:
    """Each image has one value everywhere. No image is missing, and none is counted twice."""
    assert fit.num_images == len(values)
    np.testing.assert_array_equal(fit.image_sum, np.full((SIZE, SIZE, 3), sum(values)))
    products = SIZE**2 * sum((value - 128) ** 2 for value in values)
    np.testing.assert_array_equal(fit.products, np.full((3, 3), products))


# Processes that die


@pytest.mark.slow
def test_every_file_that_kills_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Deadly files: first, amid and last in a batch, two side by side, one alone in its batch."""
    deeds = {0: "crash", 40: "exit", 41: "crash", 63: "raise", 64: "crash"}
    contents = [deeds.get(number, f"pixel {number}") for number in range(65)]
    contents[7] = "reject it is a poem"
    paths = write(tmp_path, contents)
    findings = examined(paths)
    reasons = findings.rejects
    assert list(reasons) == [str(paths[number]) for number in (0, 7, 40, 41, 63, 64)]
    assert reasons[str(paths[7])] == "it is a poem"
    for number in (0, 41, 64):
        assert reasons[str(paths[number])] == "decoding it ends the process with SIGSEGV"
    assert reasons[str(paths[40])] == "decoding it ends the process with status 3"
    assert reasons[str(paths[63])] == "decoding it fails with KeyError: 'no such tile'"
    assert_sums(findings.fit, [number for number in range(65) if number not in (0, 7, 40, 41, 63, 64)])
    assert not findings.needs_resize


@pytest.mark.slow
def test_a_file_that_never_ends_is_named(tmp_path: Path) -> None:
    paths = write(tmp_path, ["hang", "pixel 5", "resize"])
    findings = examined(paths)
    assert findings.rejects == {str(paths[0]): "decoding it did not come to an end within 2 seconds"}
    assert_sums(findings.fit, [5, 0])
    assert findings.needs_resize


def test_nobody_is_blamed_for_what_came_before(tmp_path: Path) -> None:
    """A decoder may survive the file that ruins it and die of the next one, which is sound."""
    findings = examined(write(tmp_path, ["pixel 1", "poison", "pixel 2", "pixel 3"]))
    assert findings.rejects == {}
    assert_sums(findings.fit, [1, 0, 2, 3])


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (fake_decoders.Unusable, "ImportError: libcodec.so is missing"),
        (fake_decoders.StillBorn, "starting it ends the process with SIGILL"),
    ],
)
def test_a_decoder_that_is_not_there_is_no_files_fault(tmp_path: Path, decoder: type, words: str) -> None:
    paths = write(tmp_path, ["pixel 1"])
    with pytest.raises(OSError, match=rf"could not be started \({re.escape(words)}\)"):
        examined(paths, decoder)


@pytest.mark.slow
def test_refusal_names_the_file_that_kills(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split / "a", ["pixel 1", "pixel 2"])
    bad = tmp_path / "val" / "a" / "001.jpg"
    bad.write_text("crash")
    index = index_folder(tmp_path)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(bad))} cannot be decoded \(.* SIGSEGV\); .*on_error=skip"
    ):
        examine(index, SIZE, "stop", progress=False, decoder=fake_decoders.Fake)
    fit, rejects, _ = examine(index, SIZE, "skip", progress=False, decoder=fake_decoders.Fake)
    assert list(rejects) == ["val/a/001.jpg"]
    assert_sums(fit, [1, 2])  # those of training images only


# The end of the parent process

ASKING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what the shell starts in the background ignores it
from pathlib import Path
from helpers.fake_decoders import Fake
from twotower.data.preparing.examine_folder import Examiners
with Examiners(Fake, 4, 1) as examiners:
    sum(1 for _ in examiners.examine([Path(sys.argv[1])], fit=True))
"""


def children_of(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def runs(pid: int) -> bool:
    """Whether a process is still running, even if nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked up as Linux lists them")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_asks(tmp_path: Path, how: signal.Signals) -> None:
    """Even a process that hangs within a library ends; Ctrl-C is noticed at once."""
    (path,) = write(tmp_path, ["hang"])
    asking = subprocess.Popen(
        [sys.executable, "-c", ASKING, str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120  # it imports torch first
        children: list[int] = []
        while not children and time.monotonic() < deadline:
            children = children_of(asking.pid)
            time.sleep(0.02)
        assert len(children) == 1
        time.sleep(0.3)  # it has started by then or not; both must end
        os.killpg(asking.pid, how)  # a terminal sends it to the whole group, too
        _, errors = asking.communicate(timeout=60)
        assert asking.returncode == -how
        assert ("KeyboardInterrupt" in errors) == (how == signal.SIGINT)
        while runs(children[0]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not runs(children[0])
    finally:
        asking.kill()


# DALI


def saved(form: str, size: tuple[int, int] = (90, 70)) -> bytes:
    file = io.BytesIO()
    stream = np.random.default_rng(0)
    Image.fromarray(stream.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, form)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "nothing to see" * 100)
    return file.getvalue()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


NO_IMAGES = {
    "page": b"<!DOCTYPE html>\n<html><body>404 not found</body></html>\n",
    "program": b"\x7fELF" + bytes(range(256)) * 20,
    "archive": zipped(),
    "zeros": bytes(5000),
    "animation": saved("GIF"),
    "icon": saved("ICO"),
    "cut": saved("PNG")[:60],
    "start": flipped(saved("JPEG"), 0),
    "marker": flipped(saved("JPEG"), 3),
    "half": saved("JPEG")[:900],
}


@pytest.fixture(scope="module")
def motley(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photographs and ten other files, all named as JPEGs."""
    root = tmp_path_factory.mktemp("motley")
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
        for number in range(20):
            (root / split / "a" / f"{number:02d}.jpg").write_bytes(saved("JPEG", (70 + number, 80)))
    for number, (name, content) in enumerate(NO_IMAGES.items()):
        (root / ("train", "val")[number % 2] / "a" / f"1{name}.jpg").write_bytes(content)
    return root


@pytest.mark.slow
def test_what_is_no_image_is_left_out_and_said_in_words(motley: Path) -> None:
    dataset = prepare(DataConfig(kind="folder", root=str(motley), on_error="skip"), progress=False)
    reasons = {Path(path).stem[1:]: reason for path, reason in dataset.rejects.items()}
    assert reasons.keys() == NO_IMAGES.keys()
    assert len(dataset.train) == len(dataset.val) == 20
    for reason in reasons.values():
        assert "nvImageCodec" not in reason
        assert "failure" not in reason
        assert len(reason.split()) > 5
    assert "it begins with '<!DOCTYPE html>" in reasons["page"]
    for name, form in (("animation", "GIF"), ("icon", "ICO"), ("half", "JPEG")):
        assert f"it is a {form} that DALI cannot decode" in reasons[name]


@pytest.mark.slow
def test_what_is_no_image_stops_by_its_name(motley: Path) -> None:
    """Runs in a process of its own, because DALI may end it."""
    with pytest.raises(ValueError, match=r"train/a/1\w+\.jpg cannot be decoded \(it is .*\); .*data\.on_error=skip"):
        prepare(DataConfig(kind="folder", root=str(motley), cache=str(motley / "other")), progress=False)
    assert not (motley / "other").exists()
