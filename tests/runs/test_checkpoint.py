"""Checkpoints are complete or absent, checked when read, and hold the exact bits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.towers import load_network
from twotower.config import NetworkConfig
from twotower.ground.files import hash_file
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


@pytest.mark.parametrize("gone", ["manifest.json", "tower1.safetensors", "both"])
def test_a_run_goes_on_from_an_earlier_checkpoint_where_the_last_one_is_half_deleted(
    gone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        save(tmp_path / "checkpoints", step)
    last = tmp_path / "checkpoints" / "step-00000002"
    for name in ("manifest.json", "tower1.safetensors") if gone == "both" else (gone,):
        (last / name).unlink()
    found = checkpoint.find_whole(tmp_path)
    assert found is not None
    assert found.name == "step-00000001"
    assert capsys.readouterr().out.startswith(f"passed over: {last}")
    (last.parent / "step-00000001" / "tower0.safetensors").write_bytes(b"x")
    assert checkpoint.find_whole(tmp_path) is None
    (last.parent / "step-x\u0661").mkdir()
    assert checkpoint.checkpoint_steps(last.parent) == [1, 2]


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((path / "manifest.json").read_text())
    edit(content)
    (path / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: m.update(format=3), "has checkpoint format 3 in its manifest.json"),
        (lambda m: m.pop("classes"), "classes: Field required"),
        (lambda m: m.update(classes=[]), "classes: List should have at least 1 item"),
        (lambda m: m.update(step="1"), "step: Input should be a valid integer"),
        (lambda m: m["sha256"].update({"../../x": "0" * 64}), r"sha256\.\.\./\.\./x"),
        (lambda m: m["sha256"].pop("tower0.safetensors"), "checksums of tower1"),
        (lambda m: m["network"].update(towers=1), "checksums of 2 towers"),
        (lambda m: m.update(progress={"last": {"top1_error": "x"}}), r"progress\.last\.top1_error"),
        (lambda m: m["progress"].update(energy={"seconds": "many"}), r"progress\.energy\.seconds"),
        (lambda m: m.update(identity={"num_val": None}), r"identity\.num_val"),
        (lambda m: m.update(input={"std": [0, 1, 1]}), r"input\.std\.0"),
    ],
)
def test_a_manifest_of_another_form_is_one_sentence(
    edit: Callable[[dict[str, Any]], Any], reason: str, tmp_path: Path
) -> None:
    save(tmp_path, 1)
    path = checkpoint.find(tmp_path)
    change(path, edit)
    with pytest.raises(ValueError, match=rf"{path}.*{reason}"):
        checkpoint.read_manifest(path)


def test_a_manifest_without_what_a_resumed_run_reads_is_refused_before_processes_start(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = checkpoint.find(tmp_path)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(rates has no rates\)"):
        checkpoint.check_can_go_on(path, checkpoint.read_manifest(path), 8)


def test_tensors_whose_checksum_was_replaced_are_checked_for_their_form(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = checkpoint.find(tmp_path)
    file = path / "tower0.safetensors"
    kept = load_file(file)
    name = next(iter(kept))
    for tensors, reason in (
        (kept | {name: kept[name] * float("nan")}, "numbers that are not finite"),
        (kept | {name: kept[name].double()}, "float32"),
        (kept | {name: kept[name][:1].clone()}, "should be"),
        (kept | {"velocity/x": kept[name].clone()}, "velocity x has no parameter"),
    ):
        save_file(tensors, file)
        change(path, lambda m: m["sha256"].update({file.name: hash_file(file)}))
        checkpoint.verify_checkpoint(path)
        with pytest.raises(ValueError, match=rf"tower0\.safetensors.*{reason}"):
            checkpoint.load_tower(path, Tower(network(), 3, 0, 0))
    file.write_bytes(b"<html>")
    change(path, lambda m: m["sha256"].update({file.name: hash_file(file)}))
    with pytest.raises(ValueError, match=r"tower0\.safetensors is damaged"):
        checkpoint.load_tower(path, Tower(network(), 3, 0, 0))
