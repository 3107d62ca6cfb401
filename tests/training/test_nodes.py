"""Two torchruns on this machine, one of which dies and comes back, against one machine; what nodes must have alike.

The longer trials, each way of dying several times, are in campaigns/nodes.py.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.commands import DEADLINE, NO_WANDB, SMALL, train
from helpers.composing import compose
from helpers.nodes import draw_disks, find_own_view, find_port, start_node
from training.test_train import assert_same_bits
from twotower.config import Config, DataConfig, MachineConfig, OptimConfig
from twotower.data.dataset import FileSplit
from twotower.data.load_data import load
from twotower.distributed.place import Place
from twotower.distributed.world import World
from twotower.runs import checkpoint
from twotower.runs.elsewhere import ELSEWHERE, check_kept_here, forget_elsewhere
from twotower.runs.rundir import find_kept_step
from twotower.training.identity import share_batch
from twotower.training.node import check_nodes, describe_node, fingerprint
from twotower.training.shared_folder import check_folder_is_shared

REPLICAS = ("optim.batch_size=4", "run_dir=run", "schedule.max_steps=5")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_dies_and_returns_leaves_the_bits_of_one_machine(images: Path, tmp_path: Path) -> None:
    """Four processes on one machine, and two in each of two torchruns, one of which is killed with its workers.

    The nodes have no file in common: at one path each sees a folder of its own, for images and run.
    """
    view = find_own_view()
    if view is None:
        pytest.skip("no process may have a view of its own on the files here: unshare --mount is refused")
    disks, port, nodes = draw_disks(tmp_path / "nodes", view), find_port(), []
    arguments = (*SMALL, *NO_WANDB, "data.root=images", *REPLICAS, "checkpoint.every_steps=1", "resume=auto")
    try:
        nodes = [start_node(arguments, disks, number, port) for number in (0, 1)]
        end = time.monotonic() + DEADLINE
        while not any(step >= 2 for step in checkpoint.checkpoint_steps(disks.own[0] / "run" / "checkpoints")):
            assert time.monotonic() < end
            assert nodes[0].process.poll() is None, nodes[0].read()
            time.sleep(0.01)
        nodes[1].kill()
        nodes[1] = start_node(arguments, disks, 1, port)
        outputs = [node.finish() for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [status for status, _ in outputs] == [0, 0], outputs
    assert "2 replicas of 2 towers in 4 processes on 2 nodes" in outputs[0][1]
    assert "has lost another replica" in outputs[0][1] or "has lost another process" in outputs[0][1]
    assert "from step" in outputs[0][1]
    assert [path.name for path in (disks.own[1] / "run").iterdir()] == [ELSEWHERE], "the run is on one disk"
    (tmp_path / "whole").mkdir()
    status, output = train(images, tmp_path / "whole", *REPLICAS, "machine.replicas=2")
    assert status == 0, output
    assert_same_bits(disks.own[0] / "run", tmp_path / "whole" / "run")


def test_the_batch_is_shared_evenly() -> None:
    config = replace(Config(), optim=OptimConfig(global_batch_size=12), machine=MachineConfig())
    assert [share_batch(config, replicas).optim.batch_size for replicas in (1, 2, 3)] == [12, 6, 4]
    assert share_batch(config, 3).machine.replicas == 3
    assert share_batch(replace(config, optim=OptimConfig(batch_size=7)), 3).optim.batch_size == 7
    with pytest.raises(ValueError, match="global_batch_size=12 cannot be shared evenly by 5 replicas; start as many"):
        share_batch(config, 5)


# What nodes must have alike


def fake_world(own: int, *said: dict[str, Any], **more: Any) -> Any:
    """Of the process of node `own`, the others of which have said this. Node 4 is that of rank 0."""
    numbers = (4, 1)[: len(said) + 1]

    def from_each_node(_name: str, make: Any) -> dict[int, str]:
        others = iter(said)
        return {node: make() if node == own else json.dumps(next(others)) for node in numbers}

    nodes = {node: f"host{node}" for node in numbers}
    return SimpleNamespace(nodes=nodes, from_each_node=from_each_node, **more)


def synthetic(**settings: Any) -> Config:
    data = DataConfig(kind="synthetic", num_train=64, num_val=8, num_classes=5)
    config = replace(compose("network=alexnet_2012"), data=data)
    return replace(config, optim=replace(config.optim, **settings))


def test_nodes_that_are_alike_go_on() -> None:
    config = synthetic()
    first = json.loads(json.dumps(describe_node(config)))
    check_nodes(config, fake_world(1, first))
    check_nodes(replace(config, machine=MachineConfig(threads=3), run_dir="elsewhere"), fake_world(1, first))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"optim.learning_rate": 0.5},
            r"optim\.learning_rate is 0\.5 on node 4 \(host4\) and 0\.005 on node 1",
        ),
        ({"logging.every_steps": 3}, r"logging\.every_steps is 3 on node 4"),
        (
            {"the number of images": [63, 8]},
            r"the number of images is \[63, 8\] on node 4 .* and \[64, 8\] on node 1",
        ),
        ({"the fingerprint of the images": "0"}, "the fingerprint of the images is 0 on node 4"),
        ({"the version of torch": "1.0"}, r"the version of torch is 1\.0 on node 4"),
        ({"error": "data.root=DIR does not exist."}, r"^On node 4 \(host4\): data\.root=DIR does not exist\.$"),
    ],
)
def test_nodes_that_differ_are_named(change: dict[str, Any], sentence: str) -> None:
    config = synthetic()
    with pytest.raises(ValueError, match=sentence):
        check_nodes(config, fake_world(1, json.loads(json.dumps(describe_node(config) | change))))


def test_other_images_have_another_fingerprint() -> None:
    dataset = load(synthetic().data)
    assert fingerprint(dataset) == fingerprint(load(synthetic().data))
    labels = dataset.train.labels.copy()
    labels[3] += 1
    others = (
        replace(dataset, classes=[*dataset.classes[:-1], "other"]),
        replace(dataset, train=FileSplit(Path("."), [""] * len(labels), labels)),
        replace(dataset, mean_image=np.ones((2, 2, 3), np.float32)),
    )
    assert len({fingerprint(one) for one in (dataset, *others)}) == 4


def test_what_keeps_a_lost_node_from_coming_back_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's own variables, as it sets them with and without TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1."""
    two: Any = SimpleNamespace(_hosts={0: "a", 1: "b"})
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in (World.notice_return(two) or "")
    assert World.notice_return(SimpleNamespace(_hosts={0: "a"})) is None  # type: ignore[arg-type]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert World.notice_return(two) is None
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert World.notice_return(two) is None


# Where the run is kept


def test_a_host_that_does_not_keep_the_run_never_begins_it_anew(tmp_path: Path) -> None:
    """Its disk is its own; rank 0 keeps the run on another host."""
    run_dir = tmp_path / "run"
    world = fake_world(
        1,
        {},
        from_first=lambda _name, _make: ".seen",
        gather=lambda values: [torch.ones(1), torch.ones(1), values, torch.ones(1)],
        replica=1,
        num_towers=2,
        is_first=False,
        place=Place(2, 4, 0, 2, node=1),
    )
    check_folder_is_shared(run_dir, world, 0.2)
    assert json.loads((run_dir / ELSEWHERE).read_text()) == {"host": "host4"}
    config = replace(synthetic(), run_dir=str(run_dir), resume="auto")
    assert find_kept_step(config) == -2, "so that even a host without any folder would come first"
    with pytest.raises(ValueError, match=r"kept_elsewhere\.json says that host4 keeps this run on its disk; start"):
        check_kept_here(run_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "find_whole", lambda folder: folder / "checkpoints" / "step-00000007")
        patch.setattr(checkpoint, "read_manifest", lambda path: SimpleNamespace(step=int(path.name[-8:])))
        assert find_kept_step(config) == 7
    forget_elsewhere(run_dir)
    check_kept_here(run_dir)
    assert find_kept_step(replace(config, run_dir=str(tmp_path / "none"))) == -1
    assert find_kept_step(replace(config, resume="none")) == -1
