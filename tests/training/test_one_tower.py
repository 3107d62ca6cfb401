"""Networks of one process by the same launcher; schedules with frozen layers, and weights from another run."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import command, events, finish, numbers, train
from helpers.towers import load_network
from twotower.config import InitialWeightsConfig, NetworkConfig
from twotower.model.tower import Tower
from twotower.runs import checkpoint
from twotower.weights.transfer import inherit

# All changes of run 145 within 3 epochs of 3 steps: conv1 is frozen after step 8 (72 of 91 epochs).
RECORDED = ("network=one_tower", "schedule=run_145_2012", "schedule.epochs=3", "schedule.drop_epochs=[]")


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.find(run_dir) / "tower0.safetensors")


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run."""
    cwd = tmp_path_factory.mktemp("whole")
    status, output = train(
        images, cwd, *RECORDED, "run_dir=run", "logging.scales_every_steps=2", "checkpoint.every_steps=1"
    )
    assert status == 0, output
    assert "1 tower in 1 process, cpu, fp32, no exchange" in output
    assert "frozen: conv1" in output
    return cwd / "run"


def test_one_process_leaves_what_two_leave(whole: Path) -> None:
    path = checkpoint.find(whole)
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "tower0.safetensors"]
    assert len(tensors(whole)) == 32  # 16 parameters and velocities
    found = events(whole)
    trained = [event for event in found if event["event"] == "train"]
    assert [event["exchange_bytes"] for event in trained] == [0] * len(trained)
    scales = [event for event in found if event["event"] == "scales"]
    assert [event["step"] for event in scales] == [2, 3, 4, 6, 8, 9]
    updates = [event["tower0/conv1/update"] for event in scales]
    assert all(size > 0 for size in updates[:5])
    assert updates[5] == 0, "frozen"
    assert all(event["tower0/fc8/update"] > 0 for event in scales)


def test_frozen_layers_stay_and_the_others_move(whole: Path) -> None:
    """In step 9, of conv1 neither weights, nor biases, nor velocities."""
    folder = whole / "checkpoints"
    before, after = (load_file(checkpoint.place(folder, step) / "tower0.safetensors") for step in (8, 9))
    assert all(torch.equal(before[name], after[name]) == ("conv1." in name) for name in before)
    rates = checkpoint.read_manifest(checkpoint.find(whole)).rates
    assert rates["rates"][:2] == [0, 0]
    assert all(rate > 0 for rate in rates["rates"][2:])


def test_it_resumes_to_the_same_bits(images: Path, whole: Path, tmp_path: Path) -> None:
    for arguments in (("schedule.max_steps=7",), ("resume=auto",)):
        status, output = train(images, tmp_path, *RECORDED, "run_dir=run", "logging.scales_every_steps=2", *arguments)
        assert status == 0, output
    first, second = tensors(whole), tensors(tmp_path / "run")
    assert all(torch.equal(first[name], second[name]) for name in first)
    last = [event for event in numbers(tmp_path / "run") if event["event"] != "end"][-1]
    assert last == [event for event in numbers(whole) if event["event"] != "end"][-1]


def test_two_processes_are_two_replicas(images: Path, whole: Path, tmp_path: Path) -> None:
    """With half the batch each they see the same images, and end with the same weights to rounding."""
    status, output = train(images, tmp_path, *RECORDED, "run_dir=run", "optim.batch_size=4", torchrun=2)
    assert status == 0, output
    assert "2 replicas of 1 tower in 2 processes" in output
    first, second = tensors(whole), tensors(tmp_path / "run")
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-5)


def test_evaluation_gives_the_runs_own_error(whole: Path) -> None:
    status, output = finish(command(f"run={whole}", cwd=whole, script="evaluate.py"))
    assert status == 0, output
    error = events(whole)[-1]["top1_error"]
    assert f"{error:.2f}" in output


def test_weights_of_another_run_and_a_loss_that_does_not_move(images: Path, whole: Path, tmp_path: Path) -> None:
    """With a rate of 0 nothing moves: the run ends with what it started from, and says that it is stuck."""
    status, output = train(
        images,
        tmp_path,
        *RECORDED,
        "run_dir=run",
        f"initial_weights.path={whole}",
        "initial_weights.layers=[conv1,conv2,fc6]",
        "optim.learning_rate=0",
        "logging.stuck_after_steps=2",
        "network.layers.fc8.initial_std=0.0001",  # all classes alike
        "seed=5",
    )
    assert status == 0, output
    assert "initial weights of conv1, conv2, fc6 from" in output
    assert "new: conv3, conv4, conv5, fc7, fc8" in output
    theirs, ours = tensors(whole), tensors(tmp_path / "run")
    alike = network(layers={"fc8": {"initial_std": 0.0001}})
    drawn = Tower(alike, 3, 0, seed=5).paper_named_parameters()
    for name in drawn:
        taken = name.split(".")[0] in ("conv1", "conv2", "fc6")
        assert torch.equal(ours[name], theirs[name] if taken else drawn[name]), name
    notices = [event for event in events(tmp_path / "run") if event["event"] == "notice"]
    assert len(notices) == 1
    assert "ln(3) = 1.099" in output


def network(name: str = "one_tower", **overrides: object) -> NetworkConfig:
    return load_network(name, width=0.0625, **overrides)


def names(num_classes: int) -> list[str]:
    return [str(n) for n in range(num_classes)]


def leave(folder: Path, config: NetworkConfig, num_classes: int) -> Path:
    """A checkpoint, as a run leaves it."""
    for t in range(config.towers):
        checkpoint.save_tower(folder / "checkpoints", 3, Tower(config, num_classes, t, seed=1), {})
    manifest = checkpoint.Manifest(3, asdict(config), names(num_classes), {}, {}, {}, {}, {})
    checkpoint.complete(folder / "checkpoints", manifest, keep=1)
    return folder


def test_the_chain_of_146_inherits_what_its_notes_say(tmp_path: Path) -> None:
    """Four classes, then 10, then 20, then 4 again; each step takes its layers and leaves the others as drawn."""
    conv = [f"conv{n}" for n in range(1, 7)]
    steps = (
        ("alexnet_2012", 4, "six_conv", 10, conv[:5]),
        ("six_conv", 10, "six_conv_bottleneck", 20, conv),
        ("six_conv_bottleneck", 20, "six_conv", 4, [*conv, "fc6", "fc7"]),
    )
    for number, (before, classes_before, after, classes, layers) in enumerate(steps):
        source = leave(tmp_path / str(number), network(before), classes_before)
        for t in (0, 1):
            tower, drawn = Tower(network(after), classes, t, seed=2), Tower(network(after), classes, t, seed=2)
            found = inherit(InitialWeightsConfig(str(source), layers), network(after), names(classes), tower)
            assert found is not None
            assert found.taken == layers
            theirs = load_file(checkpoint.find(source) / f"tower{t}.safetensors")
            fresh = drawn.paper_named_parameters()
            for name, p in tower.paper_named_parameters().items():
                expected = theirs[name] if name.split(".")[0] in layers else fresh[name]
                assert torch.equal(p, expected), (after, name)


def test_without_a_choice_everything_fits_or_is_refused(tmp_path: Path) -> None:
    source = str(leave(tmp_path / "a", network("alexnet_2012"), 4))

    def take(
        num_classes: int, *layers: str, into: NetworkConfig | None = None, classes: list[str] | None = None
    ) -> list[str]:
        config = into or network("alexnet_2012")
        settings = InitialWeightsConfig(source, list(layers))
        found = inherit(settings, config, classes or names(num_classes), Tower(config, num_classes, 0, 0))
        assert found is not None
        return found.new

    assert take(4) == []
    assert take(4, classes=["0", "1", "2", "cat"]) == ["fc8"], "equally many, but others"
    assert take(7) == ["fc8"], "other classes need a new last layer"
    with pytest.raises(ValueError, match=r"conv1\.weight is \(12, 3, 11, 11\) here and \(6, 3, 11, 11\) there"):
        take(4, into=load_network("alexnet_2012", width=0.125))
    with pytest.raises(ValueError, match=r"names fc9.*it has conv1, conv2"):
        take(4, "fc9")
    with pytest.raises(ValueError, match=r"fc8\.weight"):
        take(7, "fc8")
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        take(4, into=network("one_tower"))


def test_between_one_tower_and_two(tmp_path: Path) -> None:
    """Groups of one tower are what two towers keep apart, so Caffe's network fits ours, tower by tower."""
    source = leave(tmp_path / "a", network("caffe_alexnet"), 4)
    theirs = load_file(checkpoint.find(source) / "tower0.safetensors")
    for t in (0, 1):
        tower = Tower(network("alexnet_2012"), 4, t, seed=2)
        found = inherit(InitialWeightsConfig(str(source), []), network("alexnet_2012"), names(4), tower)
        assert found is not None
        assert found.new == []
        ours = tower.paper_named_parameters()
        half = len(theirs["conv3.weight"]) // 2
        assert torch.equal(ours["conv2.weight"], theirs["conv2.weight"][8 * t : 8 * t + 8])
        rows = theirs["conv3.weight"][half * t : half * t + half]
        assert torch.equal(ours["conv3.weight_own"], rows[:, 8 * t : 8 * t + 8])
        assert torch.equal(ours["conv3.weight_other"], rows[:, 8 * (1 - t) : 8 * (1 - t) + 8])
