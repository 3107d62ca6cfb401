"""Each key has a role, and all who compare configurations ask for it; nobody can change a configuration."""

import pickle
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers.composing import compose
from helpers.fake_runs import fake_config, save_checkpoint
from twotower.config import Config
from twotower.config.frozen_config import freeze
from twotower.config.key_roles import Role, find_role, select_settings
from twotower.config.stored_config import read_config
from twotower.runs.rundir import find_home
from twotower.runs.variants import select_for_comparison
from twotower.weights.merged import same_function


@pytest.fixture(scope="module")
def config() -> Config:
    return compose("data=folder", "data.root=DIR")


def groups(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [group for entry in value.values() for group in groups(entry)]
    if not is_dataclass(value):
        return []
    return [value, *(group for key in fields(value) for group in groups(getattr(value, key.name)))]


def test_every_key_has_one_role(config: Config) -> None:
    keys = [(group, key) for group in groups(config) for key in fields(group)]
    assert len(keys) > 120
    assert all(isinstance(find_role(type(group), key), Role) for group, key in keys)
    selected = [select_settings(config, (role,)) for role in Role]
    assert all(selected), "a role without a key"
    everything = select_settings(config, tuple(Role))
    assert sum(len(part) for part in selected) == len(everything)
    assert {"network.lrn.n", "network.layers.conv1.kernels", "optim.momentum", "seed", "run_dir"} <= everything.keys()


def test_a_key_without_a_role_is_refused() -> None:
    class Group:
        """A group of the schema that nobody has marked."""

    unmarked = next(key for key in fields(Config) if not key.metadata)
    with pytest.raises(ValueError, match=rf"Group\.{unmarked.name} has no role"):
        find_role(Group, unmarked)


def test_what_counts_in_a_comparison(config: Config) -> None:
    settings = select_for_comparison(config)
    assert {
        "optim.learning_rate",
        "input.offsets",
        "schedule.epochs",
        "ablation",
        "machine.replicas",
    } <= settings.keys()
    assert (
        not {"seed", "name", "data.root", "machine.loader_threads", "machine.threads", "logging.wandb"}
        & settings.keys()
    )
    trained = replace(config.network, bias_rate=9.0, initial_bias=1.0, name="other")
    assert same_function(config.network, trained) is None
    assert same_function(config.network, replace(config.network, dropout_keep=0.4)) == "dropout_keep"


SPEED = [
    "machine.loader_threads=3",
    "machine.decode_once=no",
    "machine.threads=2",
    "machine.timeout_seconds=99",
    "logging.every_steps=7",
    "checkpoint.keep=5",
    "checkpoint.rule=trajectory",
]


@pytest.mark.parametrize("change", [*SPEED, "optim.learning_rate=0.5", "seed=3", "name=other", "data.root=OTHER"])
def test_an_interrupted_run_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """By resume=auto, whatever was changed of its speed and its records, and for no other change."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "begun"
    first = fake_config(Path("DIR"))
    save_checkpoint(run, first, seed=0)
    OmegaConf.save(OmegaConf.structured(first), run / "config.yaml")
    home = find_home(fake_config(Path("DIR"), "resume=auto", change))
    assert (home.run_dir.resolve() == run) == (change in SPEED)


def test_a_configuration_is_frozen(tmp_path: Path, config: Config) -> None:
    OmegaConf.save(OmegaConf.structured(config), tmp_path / "config.yaml")
    stored = read_config(tmp_path)
    assert stored == config
    for each in (config, stored, pickle.loads(pickle.dumps(config)), freeze(replace(config, seed=1))):
        for group in groups(each):
            key = fields(group)[0].name
            with pytest.raises(AttributeError, match=r"cannot be assigned, because the configuration is frozen"):
                setattr(group, key, None)
    assert asdict(replace(config, seed=4))["seed"] == 4
