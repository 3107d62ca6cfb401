"""Nodes of a cluster, all on this machine: one torchrun each, which meet on loopback, with no file in common."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.commands import DEADLINE, draw_images, environment
from helpers.paths import ROOT

# As docs/clusters.md says, so that a node may come back.
VARIABLES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
# A mount namespace of its own, in which what follows sees the node's folder at the place that all nodes name.
_OWN_VIEW = ("--mount", "sh", "-c", 'mount --bind "$0" "$1" && cd "$1" && shift && exec "$@"')


def find_own_view() -> tuple[str, ...] | None:
    """How a command begins that sees another folder at a place than others do; None where that is not allowed.

    Two nodes need it to have no file in common: on one machine each would else see the folder of the other one.
    """
    if shutil.which("unshare") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for privilege in ((), ("--user", "--map-root-user")):
            begin = ("unshare", *privilege, *_OWN_VIEW)
            if subprocess.run([*begin, folder, folder, "true"], capture_output=True, check=False).returncode == 0:
                return begin
    return None


@dataclass(frozen=True)
class Disks:
    """The folders of two nodes, of which each sees its own at `place`. Node 0 keeps the run.

    As torchrun numbers nodes of one address by their process ids, and node 0 is started first.
    """

    place: Path
    own: tuple[Path, Path]
    view: tuple[str, ...]


def draw_disks(folder: Path, view: tuple[str, ...]) -> Disks:
    """Two disks, each with images of its own."""
    disks = Disks(folder / "disk", (folder / "node0", folder / "node1"), view)
    disks.place.mkdir(parents=True)
    for disk in disks.own:
        draw_images(disk / "images")
        (disk / "tmp").mkdir()
    return disks


def find_port() -> int:
    """A port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Node:
    """A torchrun and what it has printed, in a file, as nobody reads while the others are waited for."""

    process: subprocess.Popen[bytes]
    output: Any

    def read(self) -> str:
        self.output.seek(0)
        return str(self.output.read().decode(errors="replace"))

    def kill(self) -> None:
        """SIGKILL to torchrun and its workers, as when a machine loses its power."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self, seconds: float = 2 * DEADLINE) -> tuple[int, str]:
        """Exit status and output."""
        try:
            self.process.wait(seconds)
        finally:
            self.kill()
        return self.process.returncode, self.read()


def start_node(arguments: Sequence[str], disks: Disks, number: int, port: int, nodes: str = "2") -> Node:
    """Starts `torchrun --nnodes=2 --nproc-per-node=2 ... launch/two_gpu.py` with these arguments.

    Args:
        number: that of the node; the processes of both nodes meet at 0.
        nodes: 2, or 1:2.
    """
    flags = [
        f"--nnodes={nodes}",
        "--nproc-per-node=2",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        "--rdzv-id=test",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        f"--rdzv-conf=is_host={number == 0},last_call_timeout=1",
        "--local-addr=127.0.0.1",
        "--monitor-interval=0.2",
    ]
    output = tempfile.TemporaryFile()  # noqa: SIM115, as the node keeps it
    process = subprocess.Popen(
        [
            *(*disks.view, str(disks.own[number]), str(disks.place)),
            *(sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / "launch" / "two_gpu.py"), *arguments),
        ],
        env=environment() | VARIABLES | {"TMPDIR": str(disks.place / "tmp")},
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return Node(process, output)
