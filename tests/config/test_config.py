"""Every yaml of conf/ composes, ablations stay small, and mistakes are named before anything starts."""

import argparse
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf

from helpers.composing import compose
from helpers.paths import ROOT
from twotower.config import Config, check, register_schemas
from twotower.config.presets import preset
from twotower.model.layer_table import plan

CONF = ROOT / "conf"
GROUPS = ("network", "data", "input", "optim", "schedule", "logging", "ablation", "experiment", "sweep", "machine")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_hydras_options_are_taken_by_a_strict_argparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14 formats each help text when it is given; one of Hydra 1.3's is not a string until it is printed."""

    def add_argument(parser: argparse.ArgumentParser, *names: str, **options: Any) -> argparse.Action:
        action = usual(parser, *names, **options)
        parser._check_help(action)  # type: ignore[attr-defined]  # as 3.14 does by itself
        return action

    def check_help(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
        if action.help:
            argparse.HelpFormatter("hydra")._expand_help(action)

    usual = argparse.ArgumentParser.add_argument
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)
    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", check_help, raising=False)
    with pytest.raises(TypeError, match="LazyCompletionHelp"):
        get_args_parser()
    register_schemas()
    assert get_args_parser().parse_args(["a=1", "--cfg", "job"]).overrides == ["a=1"]


def test_all_groups_have_options() -> None:
    """Guards the parametrised tests below against running nothing."""
    assert all(len(options(group)) >= 1 for group in GROUPS)
    assert {"none", "no_lrn", "no_overlap"} <= set(options("ablation"))
    assert {"folder", "shapes", "synthetic"} <= set(options("data"))


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_every_yaml_composes(group: str, option: str) -> None:
    config = compose(f"{group}={option}", "data.root=somewhere", "initial_weights.path=somewhere")
    check(config)
    assert sum(plan(config.network, 1000)[-1].kernels) == 1000


@pytest.mark.parametrize("option", options("ablation"))
def test_an_ablation_is_the_few_lines_that_differ(option: str) -> None:
    lines = (CONF / "ablation" / f"{option}.yaml").read_text().splitlines()
    assert len([line for line in lines if line.strip() and not line.lstrip().startswith("#")]) <= 8
    assert compose(f"ablation={option}").ablation == option


def test_ablations_change_what_they_say() -> None:
    for network in ("alexnet", "alexnet_2012"):
        plain, without = compose(f"network={network}"), compose(f"network={network}", "ablation=no_lrn")
        assert plain.network.lrn is not None
        assert without.network.lrn is None
        assert without.network.spatial_norm is None
        assert without.network.layers == plain.network.layers
        overlap = compose(f"network={network}", "ablation=no_overlap")
        assert [row.size_out for row in plan(overlap.network, 1000)] == [28, 13, 13, 13, 6, 1, 1, 1]


CHANGES = {
    "none": {},
    "no_lrn": {"network.lrn": None, "network.spatial_norm": None},
    "no_overlap": {
        "network.pool.size": 2,
        "network.layers.conv2.pad": 1,
        "network.layers.conv5.pad": 0,
    },
    "no_overlap_plain": {"network.pool.size": 2},
    "no_dropout": {"network.dropout_keep": 1.0},
    "no_colour_noise": {"input.colour_noise": "none"},
    "no_crops": {"input.random_crop": False},
    "no_flips": {"input.flip": False},
    "draw_per_image": {"input.images_per_draw": 1},
    "tanh": {"network.activation": "tanh"},
    "sigmoid": {"network.activation": "sigmoid"},
    "half_exchange": {"network.exchange_precision": "half"},
    "torch_sgd": {"optim.rule": "torch"},
    "no_bias_one": {"network.initial_bias": 0.0},
    "average_pooling": {f"network.layers.conv{i}.pooling": "average" for i in (1, 2, 5)},
    # conv4 takes over the exchange with what conv3 read; of the others the next layer reads what they read anyway.
    "no_conv3": {"network.leave_out": ["conv3"], "network.layers.conv4.reads": "both"},
    "no_conv4": {"network.leave_out": ["conv4"]},
    "no_conv5": {"network.leave_out": ["conv5"], "network.layers.conv4.then": ["activation", "pool"]},
}


def flat(config: Config) -> dict[str, object]:
    """{"network.pool.size": 3, ...}; what is null hides the keys below it."""
    found: dict[str, object] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, one in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), one)
        else:
            found[prefix] = value

    walk("", OmegaConf.to_container(OmegaConf.structured(config)))
    return found


@pytest.mark.parametrize("option", options("ablation"))
def test_an_ablation_changes_this_and_nothing_else(option: str) -> None:
    before, after = flat(compose()), flat(compose(f"ablation={option}"))
    changed = {key: value for key, value in after.items() if before.get(key, "absent") != value and key != "ablation"}
    assert changed == CHANGES[option]
    # What disappeared lies below something that is null now, or in a layer that is left out.
    above = {parent for parent in CHANGES[option] if after[parent] is None}
    above |= {f"network.layers.{name}" for name in CHANGES[option].get("network.leave_out", [])}
    gone = set(before) - set(after)
    assert {key for key in gone if not key.startswith(tuple(f"{parent}." for parent in above))} == set()
    assert all(any(key.startswith(f"{parent}.") for key in gone) for parent in above)


def test_a_row_stands_where_it_says() -> None:
    """Yamls can only append to a table, so a row between others names the one before it."""
    layers = compose("network=six_conv_bottleneck", "data=synthetic").network.layers
    assert list(layers) == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc7b", "fc8"]
    assert {layer.after for layer in layers.values()} == {None}, "a table that is in order says nothing of it"
    row = {"kind": "conv", "kernels": 96}
    layers = preset("alexnet", {"layers": {"b": row | {"after": "a"}, "a": row | {"after": "conv4"}}}).layers
    assert list(layers)[3:7] == ["conv4", "a", "b", "conv5"]
    for after in ("conv9", "b"):
        with pytest.raises(ValueError, match=rf"^network\.layers\.b\.after={after} names no row before it"):
            preset("alexnet", {"layers": {"b": row | {"after": after}}})


def test_layers_that_cannot_be_left_out_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"leave_out names conv6, which network=alexnet_2012 .* conv1, conv2, .* fc8"
    ):
        compose("network.leave_out=[conv6]")
    with pytest.raises(ValueError, match=r"leave_out names fc8, which holds the classes"):
        compose("network.leave_out=[fc8]")
    two = compose("network.leave_out=[conv3,conv4]").network
    assert two.layers["conv5"].reads == "both", "handed on twice"
    assert [row.name for row in plan(two, 1000)] == ["conv1", "conv2", "conv5", "fc6", "fc7", "fc8"]
    assert compose("network.leave_out=[conv1]").network.layers["conv2"].reads == "image"
    caffe = compose("network=caffe_alexnet", "ablation=no_conv3").network
    assert caffe.layers["conv4"].groups == 1, "conv3 saw all maps, and its two groups alone would not"
    assert compose("network=caffe_alexnet", "ablation=no_conv4").network.layers["conv5"].groups == 2


def test_staircases_take_changes_that_freeze_and_no_others() -> None:
    check(compose("schedule=run_169", "schedule.changes=[{epoch: 3, weights: 0, layers: [conv2]}]"))
    with pytest.raises(ValueError, match=r"changes\[0\]\.weights=0\.1 would replace .* give 0, which freezes"):
        check(compose("schedule=run_169", "schedule.changes=[{epoch: 3, weights: 0.1}]"))
    with pytest.raises(ValueError, match=r"changes\[1\]\.biases=2\.0 would replace"):
        check(compose("schedule=run_169", "schedule.changes=[{epoch: 3, biases: 0}, {epoch: 4, biases: 2}]"))
    with pytest.raises(ValueError, match=r"changes is for schedule\.rule=recorded or exponential, .* plateau"):
        check(compose("schedule.changes=[{epoch: 3, weights: 0}]", "data=folder", "data.root=somewhere"))


def test_the_fine_tuning_without_fall_2011_starts_from_the_second_step() -> None:
    """The command in schedule/run_146_2012_2009.yaml: what is given on the command line wins over the experiment."""
    config = compose("experiment=chain_146_4", "schedule=run_146_2012_2009", "initial_weights.path=runs/step2")
    assert (config.network.name, config.schedule.epochs, config.name) == ("six_conv", 52, "chain-146-4")
    assert config.initial_weights.layers == ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc6", "fc7"]


@pytest.mark.parametrize("group", ["network", "ablation", "schedule"])
def test_the_docs_name_every_option(group: str) -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    unnamed = {"none", "shapes"}  # no ablation; the schedule that data=shapes brings
    assert [option for option in options(group) if f"`{option}`" not in text and option not in unnamed] == []


def test_the_first_step_of_the_chain_can_stop_where_it_did() -> None:
    """After 29 epochs of ILSVRC-2012's 1,281,167 images: 43 hours of five to six days for 90 epochs are 27 to 32."""
    text = (CONF / "experiment" / "chain_146_1.yaml").read_text()
    assert f"schedule.max_steps={29 * (1_281_167 // 128)}" in text
    assert 90 * 43 / (6 * 24) < 29 < 90 * 43 / (5 * 24)
    config = compose("experiment=chain_146_1", "schedule.max_steps=290261")
    drops = [change.epoch for change in config.schedule.changes]
    assert sorted(drops)[1] == 25 < 29, "after the first drop"


def test_plain_pooling_without_overlap_has_other_sizes() -> None:
    rows = plan(compose("ablation=no_overlap_plain").network, 1000)
    assert [row.size_out for row in rows] == [28, 14, 14, 14, 7, 1, 1, 1]


def test_input_follows_the_network_and_can_be_chosen() -> None:
    assert compose("network=alexnet").input.colour_noise == "paper"
    assert compose("network=alexnet_2012").input.colour_noise == "2012"
    assert compose("network=alexnet", "input=code_2012").input.offsets == 33


def test_a_folder_of_images_gets_the_full_network() -> None:
    config = compose("data=folder", "data.root=somewhere")
    assert config.network.width == 1
    assert (config.optim.batch_size, config.optim.momentum, config.optim.weight_decay) == (128, 0.9, 5e-4)
    assert config.schedule.rule == "plateau"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.leraning_rate=0.1", "leraning_rate"),
        ("optim.learning_rate=fast", "fast"),
        ("ablation=no_such_thing", "no_such_thing"),
        ("network.layers.conv9.pad=1", "conv9"),
    ],
)
def test_misspelt_overrides_stop_at_composition(override: str, named: str) -> None:
    with pytest.raises((ConfigCompositionException, HydraException)) as error:
        compose(override)
    assert named in f"{error.value} {error.value.__cause__}"


@pytest.mark.parametrize(
    "override",
    [
        "optim.batch_size=0",
        "optim.momentum=1.5",
        "schedule.epochs=0",
        "schedule.rule=sometimes",
        "input.offsets=0",
        "input.colour_noise=blue",
        "machine.device=tpu",
        "machine.timeout_seconds=0",
        "logging.wandb=maybe",
        "logging.system=sometimes",
        "data.on_error=ignore",
        "network.dropout_keep=0",
    ],
)
def test_values_out_of_range_name_their_key(override: str) -> None:
    key, value = override.split("=")
    with pytest.raises(ValueError, match=key) as error:
        check(compose(override))
    assert value in str(error.value)


def test_a_weight_decay_that_reaches_no_layer_is_refused() -> None:
    """Each row of this network has its own; a network in which one row has none follows the key."""
    check(compose("experiment=cifar_80sec", "data.root=images"))
    with pytest.raises(ValueError, match=r"optim\.weight_decay=0 reaches no layer of network=cifar_80sec"):
        check(compose("experiment=cifar_80sec", "data.root=images", "optim.weight_decay=0"))
    rest = compose(
        "experiment=cifar_80sec", "data.root=images", "optim.weight_decay=0", "network.layers.conv1.weight_decay=null"
    )
    check(rest)
    assert "conv1" not in rest.network.layer_decays()


def test_folder_needs_a_root() -> None:
    with pytest.raises(ValueError, match=r"data\.root"):
        check(compose("data=folder"))


def test_environment_yml_installs_the_project_from_pyproject() -> None:
    """pyproject.toml is the one list: environment.yml names Python, pip and the project with one build of DALI."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = OmegaConf.to_container(OmegaConf.load(ROOT / "environment.yml"))
    assert environment["name"] == project["name"]
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["--editable .[cuda13]"]}
    assert [entry.split("=")[0] for entry in conda] == ["python", "pip"]
    version = next(entry for entry in conda if entry.startswith("python=")).split("=")[1]
    least = project["requires-python"].removeprefix(">=")
    assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))
    assert "dev" in project["optional-dependencies"]
