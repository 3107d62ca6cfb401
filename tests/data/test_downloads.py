"""Downloads of archives, from a server on this machine."""

import hashlib
import http.server
import runpy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers import archives
from helpers.paths import ROOT
from helpers.prepared_sets import (
    made,
)
from twotower.config import DownloadConfig
from twotower.data.prepared_set import load_prepared
from twotower.data.sources.download import download

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder served by this machine, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{one.server_port}"
        one.shutdown()
        thread.join()


def test_downloads_are_compared_with_their_checksums(tmp_path: Path, server: tuple[Path, str]) -> None:
    """A right file is kept and not fetched again. Wrong, missing and unreachable ones give a sentence."""
    served, address = server
    content = archives.tar_bytes(archives.tree_files(), "w:gz")
    (served / "a.tgz").write_bytes(content)
    root = tmp_path / "root"
    source = archives.tree_source(root, "a.tgz")
    right = DownloadConfig("a.tgz", f"{address}/a.tgz", f"sha256:{hashlib.sha256(content).hexdigest()}")
    said: list[str] = []

    source.downloads = [DownloadConfig("a.tgz", f"{address}/a.tgz", f"md5:{'0' * 32}")]
    with pytest.raises(ValueError, match=rf"{address}/a\.tgz did not arrive as it should be: .*hash"):
        download(source, said.append)
    assert not list(root.glob("*"))
    source.downloads = [DownloadConfig("a.tgz", f"{address}/none.tgz", right.checksum)]
    with pytest.raises(
        ValueError, match=r"none\.tgz could not be reached \(404 .*\); get a\.tgz elsewhere and put it"
    ):
        download(source, said.append)
    source.downloads = [DownloadConfig("a.tgz", "http://127.0.0.1:9/a.tgz", right.checksum)]
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/a\.tgz could not be reached"):
        download(source, said.append)
    source.downloads = [right]
    download(source, said.append)
    assert (root / "a.tgz").read_bytes() == content
    (served / "a.tgz").unlink()
    download(source, said.append)
    assert said.count(f"downloading {right.url}") == 2
    assert len(made(source, tmp_path / "set").train) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenette", "cifar10"])
def test_a_download_needs_no_folder(
    name: str,
    tmp_path: Path,
    server: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The documented command, with the archive on this machine: source=NAME download=true output=DIR."""
    served, address = server
    monkeypatch.chdir(tmp_path)
    held_out = {"imagenette": "val", "cifar10": "test"}[name]
    files = [(path.replace("/val/", f"/{held_out}/"), image) for path, image in archives.tree_files()]
    content = archives.tar_bytes(files, "w:gz")
    file = str(OmegaConf.load(ROOT / "conf" / "source" / f"{name}.yaml").downloads[0].file)
    (served / file).write_bytes(content)
    arguments = [f"source={name}", "size=64", "output=datasets/mine", "workers=1"]
    arguments += ["++source.expected.train=null", "++source.expected.val=null"]
    here = f"{{file: {file}, url: '{address}/{file}', checksum: 'sha256:{hashlib.sha256(content).hexdigest()}'}}"

    def launch(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments, *more])
        monkeypatch.setattr("twotower.ground.processes.catch_stops", lambda: None)
        runpy.run_path(str(ROOT / "launch" / "prepare_data.py"), run_name="__main__")

    with pytest.raises(SystemExit, match=rf"source={name} needs source\.root=DIR, .*, or download=true"):
        launch()
    launch(f"source.downloads=[{here}]", "download=true")
    assert (tmp_path / "datasets" / "downloads" / name / file).read_bytes() == content
    assert len(load_prepared(tmp_path / "datasets" / "mine").train) == 6
    (served / file).unlink()
    launch(f"source.downloads=[{here}]", "download=true")
    assert "is finished already" in capsys.readouterr().out
    arguments = ["source=ilsvrc2012", "output=datasets/other"]
    with pytest.raises(SystemExit, match=r"ilsvrc2012 cannot be downloaded, only by hand from https.*root=DIR"):
        launch("download=true")
