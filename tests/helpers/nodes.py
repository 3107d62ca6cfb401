"""Nodes of a cluster, all on this machine: one torchrun each, which meet on loopback."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.commands import DEADLINE, environment
from helpers.paths import ROOT

# As docs/clusters.md says, so that a node may come back.
VARIABLES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


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


def start_node(
    arguments: Sequence[str],
    cwd: Path,
    port: int,
    is_host: bool,
    processes: int = 2,
    nodes: str = "2",
    restarts: int = 3,
) -> Node:
    """Starts `torchrun --nnodes=2 --nproc-per-node=2 ... launch/two_gpu.py` with these arguments.

    Args:
        is_host: whether the processes of all nodes meet at this one.
        nodes: 2, or 1:2.
    """
    flags = [
        f"--nnodes={nodes}",
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
        "--rdzv-backend=c10d",
        "--rdzv-id=test",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        f"--rdzv-conf=is_host={is_host},last_call_timeout=1",
        "--local-addr=127.0.0.1",
        "--monitor-interval=0.2",
    ]
    output = tempfile.TemporaryFile()  # noqa: SIM115, as the node keeps it
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *flags, str(ROOT / "launch" / "two_gpu.py"), *arguments],
        cwd=cwd,
        env=environment() | VARIABLES,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return Node(process, output)
