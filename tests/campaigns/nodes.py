"""Two nodes on this machine, of which one dies again and again, in every way and at any time.

    python -m campaigns.nodes --count 30 --seed 0      from the folder tests/

Each trial trains a small network to its end, with both nodes, or with what is left of them, and compares the last
checkpoint with that of one machine: the same bits, or where the number of replicas has changed, to rounding.

The nodes meet on loopback and have no file in common: at one path each sees a folder of its own, for images and run.
That takes unshare and the right to mount, as root or in a user namespace.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from campaigns import FAILURES, HITS, Say, run_alone
from helpers.commands import NO_WANDB, SMALL, command, draw_images, find_children, finish
from helpers.nodes import Disks, Node, draw_disks, find_own_view, find_port, start_node
from twotower.runs import checkpoint
from twotower.runs.elsewhere import ELSEWHERE
from twotower.runs.failure import FAILURE

STEPS = 9
SHORT, FULL = 2, 30  # trials; each takes half a minute on two idle cores
TRIAL_SECONDS = 600.0
# What happens to which node; the others go on, or all begin again where the store was lost.
DEATHS = ("node dies", "worker dies", "worker stalls", "host dies", "node leaves for good", "node joins late")
ELASTIC = DEATHS[-2:]  # with --nnodes=1:2
ROUNDING = 0.01  # relative difference of all weights after STEPS steps; 0.002 was seen


def read_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.find(run_dir)
    return {f"{t}/{k}": v for t in (0, 1) for k, v in load_file(path / f"tower{t}.safetensors").items()}


def compare(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], same_bits: bool) -> bool:
    if ours.keys() != theirs.keys():
        return False
    if same_bits:
        return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    # Velocities are sums of the last gradients, of which rounding changes far more: single ReLUs flip.
    names = [name for name in ours if "velocity" not in name]
    change = torch.cat([(ours[name] - theirs[name]).flatten() for name in names])
    return bool(change.norm() <= ROUNDING * torch.cat([theirs[name].flatten() for name in names]).norm())


def find_run_files(run_dir: Path) -> set[str]:
    """What stands in the folder of a node that does not keep the run, but for its notes about that and a failure."""
    return {path.name for path in run_dir.glob("*")} - {ELSEWHERE, FAILURE}


def wait_for_step(run_dir: Path, step: int, nodes: list[Node]) -> None:
    end = time.monotonic() + TRIAL_SECONDS
    while not any(found >= step for found in checkpoint.checkpoint_steps(run_dir / "checkpoints")):
        if time.monotonic() > end or all(node.process.poll() is not None for node in nodes):
            raise TimeoutError("\n".join(node.read() for node in nodes))
        time.sleep(0.02)


def end_one(death: str, step: int, disks: Disks, arguments: tuple[str, ...]) -> bool:
    """One trial. Returns whether there was something to end.

    Raises: TimeoutError with what was printed, unless all finish that should.
    """
    port, is_hit = find_port(), True
    is_elastic = death in ELASTIC

    def start(number: int) -> Node:
        return start_node(arguments, disks, number, port, nodes="1:2" if is_elastic else "2")

    nodes = [start(0)] if death == "node joins late" else [start(0), start(1)]
    try:
        wait_for_step(disks.own[0] / "run", step, nodes)
        waited = nodes
        if death == "node joins late":
            nodes.append(start(1))
            waited = nodes[:1]  # the other one may come too late, and then has nothing to do
        elif death == "node leaves for good":
            nodes[1].kill()
            waited = nodes[:1]
        elif death == "node dies":
            nodes[1].kill()
            nodes[1] = start(1)
        elif death == "host dies":  # and with it the store, so that both are started again
            nodes[0].kill()
            nodes[1].finish(TRIAL_SECONDS)
            port = find_port()
            waited = nodes = [start(0), start(1)]
        else:
            workers = find_children(nodes[step % 2].process.pid, b"two_gpu.py")
            is_hit = bool(workers)
            if workers:
                os.kill(workers[0], signal.SIGKILL if death == "worker dies" else signal.SIGSTOP)
        statuses = [node.finish(TRIAL_SECONDS)[0] for node in waited]
        if any(statuses):
            raise TimeoutError("\n".join(node.read() for node in waited))
        return is_hit
    finally:
        for node in nodes:
            node.kill()


def run(count: int, seed: int, say: Say) -> dict[str, int]:
    """`count` trials. Returns how often each death ended well, and under "failures" how often one did not."""
    stream, outcomes = random.Random(seed), Counter({FAILURES: 0, HITS: 0})
    view = find_own_view()
    if view is None:
        raise RuntimeError("no process may have a view of its own on the files here: unshare --mount is refused")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = draw_images(root / "images")
        common = ("optim.global_batch_size=8", f"schedule.max_steps={STEPS}", "run_dir=run")
        (root / "whole").mkdir()
        alone = (*SMALL, *NO_WANDB, f"data.root={images}", *common, "machine.replicas=2")
        status, output = finish(command(*alone, cwd=root / "whole"), TRIAL_SECONDS)
        if status != 0:
            raise RuntimeError(output)
        whole = read_weights(root / "whole" / "run")
        arguments = (*SMALL, *NO_WANDB, "data.root=images", *common, "checkpoint.every_steps=1", "resume=auto")
        for number in range(count):
            death, step = DEATHS[number % len(DEATHS)], stream.randrange(1, STEPS - 1)
            disks = draw_disks(root / str(number), view)
            began = time.monotonic()
            try:
                outcomes[HITS] += end_one(death, step, disks, (*arguments, "machine.timeout_seconds=10"))
                is_right = compare(
                    read_weights(disks.own[0] / "run"), whole, same_bits="leaves" not in death and "late" not in death
                )
                reason = "" if is_right else "other weights"
                if find_run_files(disks.own[1] / "run"):
                    reason = "the node that does not keep the run has files of it"
            except (TimeoutError, ValueError, OSError) as error:
                reason = str(error)
            outcomes[FAILURES if reason else death] += 1
            took = f"{time.monotonic() - began:.0f} s"
            say(f"{number}: {death} after step {step}: {'FAILED, ' + reason if reason else 'right'}, {took}")
    return dict(outcomes)


if __name__ == "__main__":
    sys.exit(run_alone("nodes", run, FULL))
