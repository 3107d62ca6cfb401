"""Links that lead out of a folder, and pipes, folders and links in the place of files that are written."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.contents import contents
from twotower.ground.files import Lines, write_json, write_whole
from twotower.ground.links import refuse_links
from twotower.ground.locks import HeldError, held
from twotower.ground.wording import word_error

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links are for administrators there")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a folder in it, and another folder of somebody beside it."""
    (tmp_path / "run" / "a" / "b").mkdir(parents=True)
    (tmp_path / "run" / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    return tmp_path / "run"


@pytest.mark.parametrize("place", ["a", "a/b/c", ".hidden", "a/.file.pending", "dangling\x1b[31m"])
@pytest.mark.parametrize(
    "target", ["mine", "mine/file", "mine/new", "nowhere/at/all", "run/../mine/file", "/dev/null"]
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_that_leads_out_is_refused(folder: Path, place: str, target: str, absolute: bool) -> None:
    link, leads_to = folder / place, folder.parent / target
    if link.is_dir():
        link.rename(folder / "moved")
    link.symlink_to(leads_to if absolute else os.path.relpath(leads_to, os.path.realpath(link.parent)))
    with pytest.raises(
        ValueError, match=r"is a link that leads out of .*/run, to .*; put there what it leads"
    ) as told:
        refuse_links(folder)
    assert place.replace("\x1b", r"\x1b") in str(told.value)
    assert "\x1b" not in str(told.value)
    assert "\n" not in str(told.value)


def test_other_links_are_none_of_anybodys_business(folder: Path) -> None:
    (folder / "inside").symlink_to("a/b")
    (folder / "a" / "up").symlink_to(folder / "file")
    (folder / "dangling").symlink_to("not yet")
    (folder / "circle").symlink_to("circle")
    logs = folder / "wandb" / "offline-run-1" / "logs"  # W&B's own
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(folder.parent / "mine" / "log")
    refuse_links(folder)
    (folder.parent / "way").symlink_to(folder)
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "up").symlink_to(folder.parent)
    for way in (folder.parent / "way", folder.parent / "other" / "up" / "run", folder.parent / "missing"):
        refuse_links(way)
    (logs / "debug.log").symlink_to(folder.parent / "mine" / "log")
    with pytest.raises(ValueError, match=r"debug\.log is a link that leads out"):
        refuse_links(folder)


def test_one_entry_or_the_entries_alone(folder: Path) -> None:
    (folder / "a" / "out").symlink_to("../../mine")
    refuse_links(folder, below=False)
    refuse_links(folder, "file")
    refuse_links(folder, "missing")
    with pytest.raises(ValueError, match=r"run/a/out is a link that leads out of .*/run, to .*/mine"):
        refuse_links(folder, "a")
    (folder / "link").symlink_to("../mine")
    for refuse in (lambda: refuse_links(folder, below=False), lambda: refuse_links(folder, "link")):
        with pytest.raises(ValueError, match="run/link is a link that leads out"):
            refuse()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # as their names have to be short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def make_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "mine" / "file")


def make_dangling(path: Path) -> None:
    path.symlink_to(path.parent.parent / "mine" / "new")


def hold(path: Path) -> None:
    with held(path, "it is held"):
        raise AssertionError("it was held")


WRITERS: dict[str, Callable[[Path], object]] = {
    "a lock": hold,
    "lines anew": lambda path: Lines(path, append=False),
    "lines": lambda path: Lines(path, append=True),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("make", [make_pipe, make_socket, make_link, make_dangling, Path.mkdir])
def test_what_stands_in_a_files_place_is_neither_waited_for_nor_followed(
    folder: Path, writer: str, make: Callable[[Path], None]
) -> None:
    before = contents(folder.parent / "mine")
    make(folder / "place")
    kind = {make_link: "a link", make_dangling: "a link", Path.mkdir: "a folder"}.get(make, "a pipe or a device")
    with pytest.raises(ValueError, match=rf"run/place is {kind}, and a file is to be .* place; delete it\.$") as told:
        WRITERS[writer](folder / "place")
    assert not isinstance(told.value, HeldError)
    assert contents(folder.parent / "mine") == before


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [make_pipe, make_link, make_dangling])
def test_a_half_written_file_is_no_way_out(folder: Path, make: Callable[[Path], None]) -> None:
    """The names of files that only one process writes can be foreseen."""
    before = contents(folder.parent / "mine")
    make(folder / ".a.json.pending")
    if make is make_pipe:  # which nobody writes to, so it is taken for what a killed process has left
        write_json(folder / "a.json", {})
    else:
        with pytest.raises(ValueError, match=r"\.a\.json\.pending is a link, and a file"):
            write_json(folder / "a.json", {})
    assert contents(folder.parent / "mine") == before


def word(action: Callable[[], object]) -> str:
    """The words for what an action of this system fails with."""
    try:
        action()
    except OSError as error:
        return word_error(error)
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("shared", [True, False])
def test_errors_of_the_system_name_the_file_and_say_what_to_do(folder: Path, shared: bool) -> None:
    (folder / "folder.json").mkdir()
    (folder / "folder.json" / "full").touch()
    in_place = "so move it away or delete it."
    sentences = {
        f"{folder}/folder.json cannot be used (Is a directory); a folder has the place of a file, {in_place}": (
            lambda: write_whole(folder / "folder.json", b"", shared)
        ),
        f"{folder}/no/x cannot be used (No such file or directory); check the path, or give one in a folder that is "
        "there.": lambda: write_whole(folder / "no" / "x", b"", shared),
        f"{folder}/file/x cannot be used (Not a directory); a file has the place of a folder, {in_place}": (
            lambda: write_whole(folder / "file" / "x", b"", shared)
        ),
        f"{folder}/{'x' * 240} cannot be used (File name too long); give a shorter name.": (
            lambda: write_whole(folder / ("x" * 240), b"", shared=True)
        ),
    }
    for sentence, action in sentences.items():
        assert word(action) == sentence
    assert word_error(OSError("a sentence.")) == word_error(ValueError("a sentence.")) == "a sentence."
