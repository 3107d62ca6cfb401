"""Preparing a set is interrupted, repeated, or begun by another process: the same command goes on."""

import errno
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from helpers import archives
from helpers.archives import Here, contents, prepare_here
from helpers.paths import ROOT
from helpers.prepared_sets import (
    SIZE,
    Command,
    made,
    overrides_of,
)
from twotower.config import DataConfig, PrepareConfig, SourceConfig, register_schemas
from twotower.data.preparing.build_set import build
from twotower.data.preparing.first_use import prepare
from twotower.ground.files import write_whole

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.slow]  # many sets are built


def test_a_finished_set_is_not_touched(tmp_path: Path) -> None:
    """The same command does nothing; one with other settings is refused."""
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    made(source, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    said = prepare_here(source, tmp_path / "set", size=SIZE, quality=100)
    assert said == [f"{tmp_path / 'set'} is finished already, from mini; verify=true checks it."]
    with pytest.raises(ValueError, match=r"output=\S*set is finished with size=64, not 32; choose another output"):
        made(source, tmp_path / "set", size=32)
    with pytest.raises(ValueError, match=r"is finished with quality=100, not 95"):
        made(source, tmp_path / "set", quality=95)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before


def test_a_begun_set_goes_on_only_with_its_own_settings_and_archives(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(archives.tar_bytes([*archives.tree_files(), ("set/val/cat/9.jpg", b"x")]))
    source = archives.tree_source(tmp_path, "one.tar")
    with pytest.raises(ValueError, match="1 of 11 images cannot be used"):
        made(source, tmp_path / "set")
    with pytest.raises(ValueError, match="was begun with images_per_shard=1024, not 5"):
        made(source, tmp_path / "set", images_per_shard=5)
    with (tmp_path / "one.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=r"was begun with archives=\[.*one\.tar.*\], not \["):
        made(source, tmp_path / "set", max_rejects=1)


def test_two_processes_do_not_build_in_one_folder(tmp_path: Path) -> None:
    """The second one is refused while the first one is at work. A lock that was left behind does not count."""
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())

    def second(*args: Any) -> None:
        made(source, tmp_path / "set")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.build_set.convert_set", second)
        with pytest.raises(ValueError, match=r"is being built by another process \(.+\); wait for it or stop it"):
            made(source, tmp_path / "set")
    assert (tmp_path / "set" / "work" / "lock").exists()
    assert len(made(source, tmp_path / "set").train) == 6


def change_sums(**arrays: Any) -> Callable[[Path], None]:
    """A shard's sums with other arrays."""

    def change(path: Path) -> None:
        with np.load(path) as file:
            whole = dict(file)
        np.savez(path, **{name: array for name, array in {**whole, **arrays}.items() if array is not None})

    return change


def compress(path: Path) -> None:
    with np.load(path) as file:
        np.savez_compressed(path, **dict(file))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "change",
    [
        make_pipe,
        compress,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes()[:300] + b"x" * 400 + path.read_bytes()[700:]),
        change_sums(about=None),
        change_sums(about=np.frombuffer(b"[" * 100_000, np.uint8)),
        change_sums(about=np.frombuffer(b'{"sha256": 1, "rejects": []}', np.uint8)),
        change_sums(index=np.zeros(3)),
        change_sums(image_sum=np.zeros((2, 2, 3), np.uint32)),
        change_sums(image_sum=None),
        change_sums(products=np.zeros((3, 3), np.float32)),
        change_sums(products=np.array([[{}]], object)),
        change_sums(**{"shown-x": np.zeros((2, 2, 3), np.uint8)}),
    ],
)
def test_a_damaged_shard_of_an_interrupted_set_is_named(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """One sentence, and once it is deleted the set is made to its end."""
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.build_set.finish_set", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(source, tmp_path / "set", images_per_shard=4)
    sums = tmp_path / "set" / "work" / "train-00001.npz"
    change(sums)
    with pytest.raises(ValueError, match=r"work/train-00001\.npz is damaged \(.*\); delete it, and the same") as told:
        made(source, tmp_path / "set", images_per_shard=4)
    assert "\n" not in str(told.value)
    sums.unlink()
    made(source, tmp_path / "set", images_per_shard=4)
    made(source, tmp_path / "whole", images_per_shard=4)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_the_work_is_not_waited_for(tmp_path: Path) -> None:
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    made(source, tmp_path / "set")
    os.mkfifo(tmp_path / "set" / "work")
    made(source, tmp_path / "set")
    assert not (tmp_path / "set" / "work").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", [None, b"\xff\n", b"[]]\n", b"[" * 100_000, "another file", "above"])
def test_a_damaged_list_of_an_interrupted_set_is_named(tmp_path: Path, content: bytes | str | None) -> None:
    """Also one that names files that are none of the source's: they would become images of the set."""
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    private = tmp_path / "private.jpg"
    private.write_bytes(archives.picture(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.build_set.convert_set", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(source, tmp_path / "set")
    path = tmp_path / "set" / "work" / "train.jsonl"
    text, sentence = path.read_text(), r"work/train\.jsonl is damaged \(.*\); delete .*set/work, and run the command"
    path.unlink()
    if content is None:
        os.mkfifo(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        entries = json.loads(text)
        entries[0][0] = str(private if content == "another file" else f"{source.root}/../private.jpg")
        path.write_text(json.dumps(entries) + "\n")
        sentence = r"set/work names .*private\.jpg, which is no file of source\.root=.*; delete that folder"
    with pytest.raises(ValueError, match=sentence) as told:
        made(source, tmp_path / "set")
    assert "\n" not in str(told.value)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    before = contents(tmp_path / "folder")
    with pytest.raises(ValueError, match="folder holds something else; give a new or empty folder"):
        made(source, tmp_path / "folder")
    assert contents(tmp_path / "folder") == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file cannot be written"):
        made(source, tmp_path / "file")


def test_another_folder_does_not_count_as_finished(tmp_path: Path) -> None:
    for name in ("one", "two"):
        archives.write_tree(tmp_path / name, archives.tree_files())
    prepare_here(archives.tree_source(tmp_path / "one"), tmp_path / "set", size=SIZE)
    with pytest.raises(ValueError, match="is finished with folder=one, not two; choose another output"):
        prepare_here(archives.tree_source(tmp_path / "two"), tmp_path / "set", size=SIZE)


# Interruptions


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    """Ninety images, which are 45 shards of two."""
    return archives.ilsvrc(tmp_path_factory.mktemp("many"), 2012, train=24, val=18)


@pytest.fixture(scope="module")
def whole(many: SourceConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes of an uninterrupted run in one process, with the command's settings."""
    output = tmp_path_factory.mktemp("whole") / "set"
    register_schemas()
    with (
        pytest.MonkeyPatch.context() as patch,
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
    ):
        patch.setattr("twotower.data.preparing.shard_worker.ProcessPoolExecutor", Here)
        config = OmegaConf.to_object(compose("prepare_data", overrides_of(many, output)))
        assert isinstance(config, PrepareConfig)
        build(config, lambda line: None)
    return contents(output)


@pytest.mark.timeout(240)
def test_killed_and_interrupted_at_random_moments_it_ends_with_the_same_bytes(
    many: SourceConfig, whole: dict[str, str], tmp_path: Path
) -> None:
    """kill -9 while workers start, a file that cannot be written, three more kills, Ctrl-C, then to the end.

    One or two workers, the bytes of all files, even of the picture, are those of one go in one process; another byte
    would be noticed. No worker outlives the process that was killed. Ctrl-C, which a terminal sends to all processes,
    is answered with one line and a status that is not 0.
    """
    output, stream = tmp_path / "set", random.Random(0)

    def command(workers: int, **options: Any) -> Command:
        return Command(*overrides_of(many, output, f"workers={workers}"), folder=tmp_path, **options)

    def done() -> int:
        return len(list(output.glob("work/*-*.npz")))

    first = command(1)
    first.wait_for(lambda: any("spawn_main" in line for line in first.processes().values()))
    first.kill()
    assert (output / "work" / "plan.json").exists()
    assert done() == 0
    status, _, err = command(1, largest_file=40_000).finish()  # enough for the shards of val, which come first
    assert status == 1
    assert re.fullmatch(
        rf"error: {output}/work/train-\d+\.npz cannot be written \(File too large\): it takes [\d,]+ bytes, "
        r"and [\d,]+ are free on its disk\. Nothing is lost: the same command goes on from here\.\n",
        err,
    ), err
    assert done() == 9
    interrupted = 0
    for _ in range(3):
        before, wanted = done(), done() + stream.randint(1, 4)
        run = command(stream.choice((1, 2)))
        run.wait_for(lambda wanted=wanted: done() >= wanted)  # type: ignore[misc]
        time.sleep(stream.uniform(0, 0.02))
        run.kill()
        assert done() > before or (output / "dataset.json").exists()
        interrupted += not (output / "dataset.json").exists()
    assert interrupted >= 2, "otherwise this shows little"

    with pytest.raises(ValueError, match=r"is not finished; run launch/prepare_data\.py for it again"):
        prepare(DataConfig(kind="folder", root=str(output)), progress=False)
    last = command(2)
    last.wait_for(lambda: any("spawn_main" in line for line in last.processes().values()))
    time.sleep(0.7)  # now the workers are importing, and an unhandled Ctrl-C would print a traceback
    os.killpg(last.process.pid, signal.SIGINT)
    status, _, err = last.finish()
    assert status != 0
    assert err == "stopped; the same command goes on from here\n"
    assert not last.processes()
    status, out, err = command(2).finish()
    assert status == 0, err
    assert re.search(r"going on: \d+ of 90 images were done before", out)
    assert out.splitlines()[-1] == f"3 classes, 0 rejects, listed in {output / 'dataset.json'}"
    assert len(whole) == 45 + 2 + 3
    assert contents(output) == whole
    status, out, err = Command(f"output={output}", "verify=true", "workers=1", folder=tmp_path).finish()
    assert (status, err) == (0, "")
    assert out == f"{output}: 90 images, all checksums are right and every image can be decoded.\n"
    with (output / "train" / "00000.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"xy")
    assert contents(output) != whole


@pytest.mark.parametrize("state", ["plan", "sums"])
def test_what_was_half_written_counts_for_nothing(tmp_path: Path, state: str) -> None:
    """A plan or a shard without its last file, as a power cut leaves it, is made again."""
    source = archives.ilsvrc(tmp_path / "source", 2012)
    made(source, tmp_path / "whole", images_per_shard=3)
    stopped = ValueError("stopped here")

    def stop(path: Path, content: Any) -> None:
        if path.name == ("plan.json" if state == "plan" else "train-00001.npz"):
            path.with_name(f".{path.name}.pending").write_bytes(bytes(content)[:100])
            raise stopped
        write_whole(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.build_set.write_whole", stop)
        patch.setattr("twotower.data.preparing.shard_worker.write_whole", stop)
        with pytest.raises(ValueError, match="stopped here"):
            made(source, tmp_path / "set", images_per_shard=3)
    made(source, tmp_path / "set", images_per_shard=3)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["00002.tar", "train-00001.npz", "plan.json", "mean_image.npy", "dataset.json"])
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A full disk at any file gives one sentence, and the same command goes on to the same bytes."""
    source = archives.ilsvrc(tmp_path / "source", 2012)
    made(source, tmp_path / "whole", images_per_shard=3)
    full = True

    def write(path: Path, content: Any, shared: bool = False) -> None:
        if full and path.name == name:
            path.with_name(f".{path.name}.pending").write_bytes(bytes(content)[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_whole(path, content)

    for module in (
        "ground.files",
        "data.preparing.build_set",
        "data.preparing.finish_set",
        "data.preparing.shard_worker",
    ):
        monkeypatch.setattr(f"twotower.{module}.write_whole", write)
    sentence = (
        r"output=\S*set cannot be written \(No space left on device\). Nothing is lost: the same command goes on"
    )
    with pytest.raises(OSError, match=sentence):
        made(source, tmp_path / "set", images_per_shard=3)
    full = False
    made(source, tmp_path / "set", images_per_shard=3)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
