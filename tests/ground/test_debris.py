"""What a killed process leaves half written goes at the next start, and what a running one is writing stays."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from twotower.ground.files import DiskFullError, Lines, filled_whole, remove_abandoned, write_whole, written_folder
from twotower.ground.scratch import OWNER, scratch_folder
from twotower.ground.tensor_files import write_tensors

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing can be locked and written there at once")

WRITERS = {
    "file": "written_whole(folder / 'a.json', shared=True)",
    "only writer": "written_whole(folder / 'a.json')",
    "folder": "written_folder(folder / 'a.json')",
    "scratch": "scratch_folder()",
}
PROGRAM = """
import sys, tempfile, time
from pathlib import Path
from twotower.ground.files import written_folder, written_whole
from twotower.ground.scratch import scratch_folder
folder = Path(sys.argv[1])
tempfile.tempdir = str(folder)
with {writer} as place:
    if place.is_dir():
        (place / "inside").write_text("half")
    else:
        place.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@contextmanager
def writer(how: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has begun to write in `folder`."""
    program = PROGRAM.format(writer=WRITERS[how])
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.wait()


def begin_again(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the next start does."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    if how == "scratch":
        with scratch_folder():
            pass
    elif how == "folder":
        with written_folder(folder / "a.json"):
            pass
        (folder / "a.json").rmdir()
    else:
        remove_abandoned(folder)


@pytest.mark.parametrize("how", list(WRITERS))
def test_only_what_nobody_writes_any_more_is_removed(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer(how, tmp_path) as process:
        (half,) = tmp_path.iterdir()
        begin_again(how, tmp_path, monkeypatch)
        assert half.exists(), "it is being written"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(tmp_path.iterdir()) == [half], "a kill leaves it"
        begin_again(how, tmp_path, monkeypatch)
        assert list(tmp_path.iterdir()) == []


def test_writing_a_file_removes_what_was_left_of_it_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / f".a.json.{'0' * 32}.pending"
    others = [tmp_path / f".b.json.{'0' * 32}.pending", tmp_path / ".a.json.notes.pending", tmp_path / ".a.json"]
    for path in (left, *others):
        path.write_text("half")
    write_whole(tmp_path / "a.json", b"whole", shared=True)
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "a.json"])


def test_a_folder_of_an_earlier_version_goes_when_it_is_a_day_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, new, other = (tmp_path / name for name in ("twotower-old", "twotower-new", "elsewhere"))
    for folder in (old, new, other):
        folder.mkdir()
        (folder / "rendezvous").write_text("")
    for folder in (old, other):
        os.utime(folder, (0, 0))
    with scratch_folder() as own:
        assert (own / OWNER).exists()
        assert sorted(tmp_path.iterdir()) == sorted([new, other, own])
    assert sorted(tmp_path.iterdir()) == sorted([new, other])


@pytest.fixture
def limited() -> Iterator[int]:
    """No file may be larger than this many bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_without_room_is_a_sentence_with_the_bytes_and_the_old_one_stays(tmp_path: Path, limited: int) -> None:

    (tmp_path / "a").write_bytes(b"before")
    writes = {
        "1,001": lambda: write_whole(tmp_path / "a", bytes(limited + 1)),
        "4,101": lambda: write_tensors(tmp_path / "a", {"w": torch.zeros(1000)}, {"k": ""}),
    }
    for needed, write in writes.items():
        with pytest.raises(
            DiskFullError, match=rf"/a cannot be written \(.+\): it takes {needed} bytes, and [\d,]+ are"
        ):
            write()
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_bytes() == b"before"


def test_a_line_without_room_is_not_there_at_all(tmp_path: Path, limited: int) -> None:
    lines = Lines(tmp_path / "metrics", append=False)
    lines.write("x" * 600)
    with pytest.raises(DiskFullError, match=r"metrics cannot be written .* takes 601 bytes"):
        lines.write("y" * 600)
    lines.write("z" * 300)
    lines.close()
    assert (tmp_path / "metrics").read_text() == "x" * 600 + "\n" + "z" * 300 + "\n"


def test_files_of_before_stay_until_all_new_ones_are_there(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("before")
    stop = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill() -> None:
        with filled_whole(tmp_path, last="page") as pending:
            (pending / "page").write_text("after")
            raise stop

    with pytest.raises(OSError, match="No space"):
        fill()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"page": "before"}
    with filled_whole(tmp_path, last="page") as pending:
        (pending / "page").write_text("after")
        (pending / "table").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"page": "after", "table": "new"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_of_tensors_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a", {"w": torch.zeros(3)})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
