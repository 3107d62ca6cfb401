"""Checkpoints are complete or absent, checked when read, and hold the exact bits."""

import json
from pathlib import Path

import pytest
import torch

from helpers.towers import load_network
from twotower.config import NetworkConfig
from twotower.model.tower import Tower
from twotower.runs import checkpoint


def network() -> NetworkConfig:
    return load_network("alexnet", width=0.0625)


def manifest(step: int) -> checkpoint.Manifest:
    from dataclasses import asdict

    return checkpoint.Manifest(step, asdict(network()), ["a", "b", "c"], {}, {}, {}, {"seed": 0}, {})


def save(folder: Path, step: int, keep: int = 2) -> list[Tower]:
    towers = [Tower(network(), 3, t, seed=step).to(memory_format=torch.channels_last) for t in (0, 1)]
    for tower in towers:
        buffers = {name: torch.randn_like(p) for name, p in tower.paper_named_parameters().items()}
        checkpoint.save_tower(folder, step, tower, buffers)
    checkpoint.complete(folder, manifest(step), keep)
    return towers


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    towers = save(tmp_path, 7)
    path = checkpoint.find(tmp_path)
    assert path.name == "step-00000007"
    assert checkpoint.read_manifest(path).step == 7
    for t, tower in enumerate(towers):
        fresh = Tower(network(), 3, t, seed=99)
        buffers = checkpoint.load_tower(path, fresh)
        assert len(buffers) == len(tower.paper_named_parameters()) == 20
        for name, parameter in tower.paper_named_parameters().items():
            assert torch.equal(fresh.paper_named_parameters()[name], parameter)


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    assert checkpoint.checkpoint_steps(tmp_path) == [3, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_an_unfinished_one_does_not_exist(tmp_path: Path) -> None:
    """A run killed while it saves must go on from the one before."""
    save(tmp_path, 1)
    checkpoint.save_tower(tmp_path, 2, Tower(network(), 3, 0, 0), {})
    assert checkpoint.find(tmp_path).name == "step-00000001"


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 5)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damage_is_refused(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    path = checkpoint.find(tmp_path)
    file = path / "tower1.safetensors"
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:-100])
    elif damage == "flip":
        file.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    elif damage == "remove":
        file.unlink()
    else:
        (path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json" if damage == "manifest" else r"tower1\.safetensors"):
        checkpoint.verify_checkpoint(path)


def test_another_network_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = checkpoint.find(tmp_path)
    read = checkpoint.read_manifest(path)
    checkpoint.check_fits(path, read, network(), 3)
    with pytest.raises(ValueError, match=r"network\.width differs \(0.0625 there, 0.125 here\)"):
        checkpoint.check_fits(path, read, load_network("alexnet", width=0.125), 3)
    with pytest.raises(ValueError, match=r"network\.name differs"):
        checkpoint.check_fits(path, read, load_network("alexnet_2012", width=0.0625), 3)
    with pytest.raises(ValueError, match="3 classes"):
        checkpoint.check_fits(path, read, network(), 4)
    with pytest.raises(ValueError, match=r"network\.layers differs"):
        checkpoint.check_fits(path, read, load_network("alexnet", width=0.0625, leave_out=["conv4"]), 3)


def test_a_checkpoint_from_before_layers_could_be_left_out_fits(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = checkpoint.find(tmp_path)
    read = checkpoint.read_manifest(path)
    del read.network["leave_out"]
    checkpoint.check_fits(path, read, network(), 3)


def test_no_file_can_run_code(tmp_path: Path) -> None:
    """A pickle would start with its own opcodes; these files are a JSON header and numbers."""
    save(tmp_path, 1)
    for file in checkpoint.find(tmp_path).glob("*.safetensors"):
        content = file.read_bytes()
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_nothing_to_find_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        checkpoint.find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoint.find(tmp_path)


def test_a_checkpoint_is_chosen_by_name_step_or_path(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path / "checkpoints", step)
    first = tmp_path / "checkpoints" / "step-00000001"
    assert checkpoint.choose(tmp_path, None).name == "step-00000002"
    for given in ("step-00000001", "1", str(first)):
        assert checkpoint.choose(tmp_path, given) == first
    with pytest.raises(ValueError, match=r"checkpoint=7 is none of .*it has step-00000001, step-00000002"):
        checkpoint.choose(tmp_path, "7")
