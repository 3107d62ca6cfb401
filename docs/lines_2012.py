"""The table of docs/lines.md: every line of the configuration of 2012, and what it is here and in three libraries.

config_145.csv holds the lines of layers-145.cfg and layer-params-145.cfg, those of both towers together. What is here
is read from conf/, and so is the network of the libraries, whose presets tests compare with independent references.
How the libraries train is written down below, from torchvision's references/classification, from Caffe's
models/bvlc_alexnet and from slim's nets/alexnet.py and train_image_classifier.py.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from omegaconf import OmegaConf

from twotower.config import NetworkConfig, OptimConfig, ScheduleConfig
from twotower.config.presets import CONF, preset
from twotower.model.layer_table import Row, plan
from twotower.training.schedule import Schedule

LINES = Path(__file__).resolve().parent / "config_145.csv"
OURS = "alexnet_2012"
LIBRARIES = {"torchvision": "torchvision_alexnet", "Caffe": "caffe_alexnet", "slim": "alexnet_v2"}
# The first section of a line -> our layer, and its step.
PLACES = {
    **{f"conv{number}a": (f"conv{number}", "sum") for number in range(1, 6)},
    "rnorm1a": ("conv1", "lrn"),
    "pool1a": ("conv1", "pool"),
    "rnorm2a": ("conv2", "lrn"),
    "cnorm2a": ("conv2", "spatial_norm"),
    "pool2a": ("conv2", "pool"),
    "pool3a": ("conv5", "pool"),
    "fc2048a": ("fc6", "sum"),
    "hs1a": ("fc6", "dropout"),
    "fc2048ba": ("fc7", "sum"),
    "hs2a": ("fc7", "dropout"),
    "fc1000": ("fc8", "sum"),
}
# What steps read in 2012; `neuron` makes a layer of its own, which the next ones read.
READ_2012 = {
    "rnorm1a": "the sum",
    "pool1a": "lrn",
    "rnorm2a": "activation",
    "cnorm2a": "lrn",
    "pool2a": "spatial_norm",
    "pool3a": "the sum",
    "hs1a": "activation",
    "hs2a": "activation",
}
NETWORK, LAYERS, EVERY = "model/test_network.py", "model/test_layers.py", "model/test_every_network.py"
WIRE, OPTIM, METRICS = "distributed/test_exchange.py", "training/test_optim.py", "evaluation/test_metrics.py"
SIZES = f"{NETWORK}::test_real_towers_have_the_papers_parameters_and_sizes"
ORDER = f"{NETWORK}::test_presets_carry_the_numbers_of_their_source"
ORACLE = f"{NETWORK}::test_pair_is_the_oracle"
POOLS = f"{NETWORK}::test_planned_sizes_are_those_of_the_2012_rules"
READS = f"{EVERY}::test_what_of_a_tower_sees_the_other_one"
LRN, CUT, SPATIAL = (
    f"{LAYERS}::test_{name}"
    for name in ("lrn_is_the_formula", "lrn_does_not_cross_the_towers", "spatial_norm_is_the_formula")
)
DROPOUT, AT_TEST = (f"{LAYERS}::test_dropout_{name}" for name in ("keeps_the_right_share", "scales_at_test"))
LOGITS, GRADIENTS = f"{WIRE}::test_logits_of_two_processes", f"{WIRE}::test_gradients_of_two_processes"
RULE = f"{OPTIM}::test_rule_is_the_formula"
RATES = "training/test_schedule.py::test_the_last_rates_are_those_of_the_files"
TIES = f"{METRICS}::test_ties_share_the_slots"
IMAGES = "data/test_training_images.py::test_training_image_is_exact"
# The test of a line, by the kind of its section and its key; of several that fit the first.
TESTS = {
    ("conv", "type"): ORACLE,
    ("conv", "inputs"): READS,
    ("conv", "padding"): ORACLE,
    ("conv", "stride"): ORACLE,
    ("conv", "neuron"): ORDER,
    ("conv", "gpu"): LOGITS,
    ("conv", "groups"): READS,
    ("conv", "randSparse"): SIZES,
    ("fc", "type"): ORACLE,
    ("fc", "inputs"): READS,
    ("fc", "neuron"): ORDER,
    ("fc", "gpu"): LOGITS,
    ("", "epsW"): RATES,
    ("", "epsB"): RATES,
    ("", "momW"): RULE,
    ("", "momB"): RULE,
    ("", "wc"): RULE,
    ("", "wball"): RULE,
    ("conv", ""): SIZES,
    ("fc", ""): SIZES,
    ("cmrnorm", "channels"): CUT,
    ("cmrnorm", "type"): LRN,
    ("cmrnorm", ""): ORDER,
    ("rnorm", "type"): SPATIAL,
    ("rnorm", "inputs"): ORDER,
    ("rnorm", ""): ORACLE,
    ("pool", "inputs"): ORDER,
    ("pool", "neuron"): ORDER,
    ("pool", "pool"): ORACLE,
    ("pool", ""): POOLS,
    ("hs", "type"): AT_TEST,
    ("hs", "inputs"): ORDER,
    ("hs", ""): DROPOUT,
    ("data", ""): IMAGES,
    ("cost.logreg", "topk"): TIES,
    ("", ""): GRADIENTS,
}
# How others train: (torchvision, Caffe, slim).
TRAINING = {
    "epsW": (
        "0.01, / 10 after 30 and 60 of 90 epochs",
        "0.01, / 10 every 100,000 of 450,000 steps",
        "0.01, x 0.94 every 2 epochs",
    ),
    "epsB": ("that of the weights", "twice that of the weights", "that of the weights"),
    "momW": ("0.9", "0.9", "0.9, of RMSProp"),
    "momB": ("0.9", "0.9", "0.9, of RMSProp"),
    "wc": ("0.0001, biases too", "0.0005", "0.0005; its training script says 0.00004"),
    "topk": ("1 and 5", "1", "1 and 5"),
}
WORDS = {"sharedBiases": "one for each map", "enable": "on", "randSparse": "none", "wball": "none"}
ALIKE = {  # lines that no network changes: what they are in our words
    ("data", "type"): "images",
    ("labels", "type"): "labels",
    ("data", "dataIdx"): "first of a batch",
    ("labels", "dataIdx"): "second of a batch",
    ("probs", "type"): "softmax",
    ("probs", "inputs"): "the logits",
    ("logprob", "type"): "cross-entropy",
    ("logprob", "inputs"): "labels and probabilities",
    ("logprob", "coeff"): "1",
}
# Lines that are otherwise here, on purpose: what is here. The functions are the same.
OTHERWISE = {
    ("fc1000", "gpu"): "half of the classes in each tower",
    ("logprob", "gpu"): "in both towers, on all logits",
    "partialSum": "none: the order of a sum",
}


@dataclass(frozen=True)
class Line:
    """A line of the configuration, with that of the other tower: `[conv1a] / [conv1b]`, `filters`, `48`."""

    file: str
    sections: str
    key: str
    value: str
    kind: str  # the section's type

    @property
    def section(self) -> str:
        return self.sections.split("]")[0].removeprefix("[")

    @property
    def towers(self) -> int:
        return self.sections.count("[")


@cache
def read_lines() -> list[Line]:
    """All lines in their order."""
    with LINES.open() as file:
        rows = list(csv.DictReader(file))
    kinds = {row["sections"]: row["value"] for row in rows if row["key"] == "type"}
    return [Line(kind=kinds[row["sections"]], **row) for row in rows]


def _number(value: str) -> str:
    """0.03,0.03 is one value for each tower that is read."""
    (one,) = {f"{float(part):g}" for part in value.split(",")}
    return one


def translate(line: Line) -> str:
    """What the line of 2012 says, in the words of the columns."""
    if (line.section, line.key) in ALIKE:
        return ALIKE[line.section, line.key]
    if line.key in ("inputs", "neuron", "type", "gpu"):
        return _translate_word(line)
    if line.key in ("filters", "outputs") or (line.key, line.kind) == ("channels", "pool"):
        return f"{int(_number(line.value)) * line.towers}"
    if line.key == "channels":
        return f"{sum(int(part) for part in line.value.split(','))}"
    if (line.section, line.key) == ("conv1a", "padding"):
        return "0, and 3 right and below"  # layer.py:1004 rounds up
    if line.key == "scale":
        return f"{_number(line.value)} / {'n' if line.kind == 'cmrnorm' else 'n²'}"  # layer.py:1183
    if line.key in WORDS:
        return WORDS[line.key]
    return line.value if line.key in ("pool", "partialSum") else _number(line.value)


def _translate_word(line: Line) -> str:
    if line.key == "gpu":
        return "a tower on each" if line.towers == 2 else f"on GPU {line.value}"
    if line.key == "neuron":
        return f"{line.value}, after {'pool' if line.kind == 'pool' else 'the sum'}"
    if line.key == "type":
        names = {"fc": "linear", "cmrnorm": "lrn", "rnorm": "spatial_norm", "hs": "dropout, times 0.5 at test"}
        return names.get(line.value, line.value)
    if line.section in READ_2012:
        return READ_2012[line.section]
    if line.value == "data":
        return "the image"
    return "both towers" if "," in line.value else "its own tower"


def describe(line: Line, network: NetworkConfig) -> str:
    """What a network of conf/ has where the line of 2012 is."""
    if (line.section, line.key) in ALIKE:
        return ALIKE[line.section, line.key]
    layer, step = PLACES[line.section]
    row = next(row for row in plan(network, 1000) if row.name == layer)
    if step == "sum":
        return _describe_sum(line, network, row)
    then = row.config.then
    norm = {"lrn": network.lrn, "spatial_norm": network.spatial_norm}.get(step, network)
    if step not in then or norm is None:
        return "none"
    if line.key == "inputs":
        there = [name for name in then if not (name in ("lrn", "spatial_norm") and getattr(network, name) is None)]
        place = there.index(step)
        return there[place - 1] if place else "the sum"
    if line.key == "neuron":
        return _describe_activation(network, row)
    if step == "pool":
        sizes = {"sizeX": network.pool.size, "stride": network.pool.stride, "channels": sum(row.kernels)}
        return {"type": "pool", "pool": row.config.pooling}.get(line.key) or f"{sizes[line.key]}"
    if step == "dropout":
        how = f"times {network.dropout_keep:g} at test"
        if network.dropout_scaling == "training":
            how = f"times {1 / network.dropout_keep:g} in training"
        return {"type": f"dropout, {how}", "keep": f"{network.dropout_keep:g}", "enable": "on"}[line.key]
    values = {"type": step, "size": f"{norm.n}", "pow": f"{norm.beta:g}", "channels": f"{row.kernels[0]}"}
    if line.key == "minDiv":
        return f"{norm.k:g}"
    if line.key == "scale":
        divided = " / n²" if step == "spatial_norm" else " / n" if norm.alpha_over_n else ""
        return f"{norm.alpha:g}{divided}"
    return values[line.key]


def _describe_activation(network: NetworkConfig, row: Row) -> str:
    then = row.config.then
    if "activation" not in then:
        return "none"
    place = then.index("activation")
    return f"{network.activation}, after {then[place - 1] if place else 'the sum'}"


def _describe_sum(line: Line, network: NetworkConfig, row: Row) -> str:
    config = row.config
    parts = network.towers * config.groups
    if line.key == "inputs":
        if config.reads == "image":
            return "the image"
        if network.towers == 2:
            return "both towers" if config.reads == "both" else "its own tower"
        return "all maps" if parts == 1 else "its half of the maps"
    if line.key == "neuron":
        return _describe_activation(network, row)
    if line.key == "initW":
        if config.initial in ("torch", "xavier"):
            return {"torch": "torch's uniform", "xavier": "Xavier"}[config.initial]
        return f"{config.initial_std:g}" + (", truncated" if config.initial == "truncated" else "")
    if line.key == "initB":
        return "torch's uniform" if config.initial == "torch" else f"{config.initial_bias:g}"
    if line.key == "padding":
        return f"{config.pad}" + (f", and {config.overhang} right and below" if config.overhang else "")
    return {
        "type": config.kind,
        "channels": f"{row.inputs(0) // config.groups}",
        "filters": f"{sum(row.kernels)}",
        "outputs": f"{sum(row.kernels)}",
        "stride": f"{config.stride}",
        "filterSize": f"{config.size}",
        "groups": f"{config.groups}",
        "sharedBiases": "one for each map" if config.kind != "local" else "one for each pixel",
        "randSparse": "none",
        "partialSum": "none",
        "gpu": "a tower on each" if network.towers == 2 else "one process",
    }[line.key]


@cache
def read_training() -> tuple[Schedule, OptimConfig]:
    """The schedule of run 145 and the update, from conf/."""
    parts = []
    for schema, path in ((ScheduleConfig, "schedule/run_145_2012"), (OptimConfig, "optim/sgd")):
        parts.append(
            OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(CONF / f"{path}.yaml")))
        )
    return Schedule(parts[0], parts[1].learning_rate, preset(OURS)), parts[1]


def describe_training(line: Line) -> str:
    """How our run of config 145 trains a layer; rates are those of its end, which the files of 2012 hold."""
    schedule, optim = read_training()
    layer = PLACES[line.section][0]
    rates = schedule.rates(schedule.config.epochs)
    decay = schedule.network.layer_decays().get(layer, optim.weight_decay)
    values = {"epsW": rates.weights[layer], "epsB": rates.biases[layer], "wc": decay}
    return f"{values.get(line.key, optim.momentum):g}"


def answer(line: Line) -> list[str]:
    """What is here, and what torchvision, Caffe and slim have."""
    ours = OTHERWISE.get((line.section, line.key), OTHERWISE.get(line.key))
    if line.key == "topk":
        return ["5", *TRAINING["topk"]]
    if line.key == "wball":
        return ["none"] * 4
    if line.key in TRAINING:
        return [describe_training(line), *TRAINING[line.key]]
    if line.section == "logprob" and line.key == "gpu":
        return [str(ours), *["one process"] * 3]
    networks = (OURS, *LIBRARIES.values())
    found = [describe(line, preset_once(name)) for name in networks]
    return [ours or found[0], *found[1:]]


preset_once = cache(preset)


def find_key(line: Line) -> str:
    """The key of conf/ that ours is from."""
    training = {"epsW": "schedule", "epsB": "schedule", "momW": "optim.momentum", "momB": "optim.momentum"}
    training |= {"wc": "optim.weight_decay"}
    if line.key in training:
        return training[line.key]
    if line.section not in PLACES or line.key in ("partialSum", "sharedBiases", "randSparse", "wball", "enable"):
        return ""
    layer, step = PLACES[line.section]
    if line.key in ("inputs", "neuron", "type") and step != "sum":
        return f"{layer}.then"
    of_sum = {"type": "kind", "inputs": "reads", "filters": "kernels", "outputs": "kernels", "padding": "pad"}
    of_sum |= {"stride": "stride", "filterSize": "size", "initW": "initial_std", "initB": "initial_bias"}
    of_sum |= {"neuron": "then", "groups": "groups", "channels": "reads"}
    if step == "sum":
        return "towers" if line.key == "gpu" else f"{layer}.{of_sum[line.key]}"
    of_norm = {"size": "n", "scale": "alpha", "pow": "beta", "minDiv": "k"}
    if line.key in of_norm:
        return f"{step}.{of_norm[line.key]}"
    return {"sizeX": "pool.size", "stride": "pool.stride", "pool": f"{layer}.pooling", "keep": "dropout_keep"}.get(
        line.key, f"{layer}.kernels"
    )


def find_test(line: Line) -> str:
    """The test that proves ours, as FILE::NAME below tests/; of partialSum there is none."""
    if line.key == "partialSum":
        return ""
    return next(
        TESTS[key] for key in ((line.kind, line.key), ("", line.key), (line.kind, ""), ("", "")) if key in TESTS
    )


def _write_section(sections: str, lines: Iterator[Line]) -> list[str]:
    rows = [f"| **{sections}** | | | | | | |"]
    for line in lines:
        ours, *others = answer(line)
        key, test = find_key(line), find_test(line)
        name = test.partition("::")[2].removeprefix("test_")
        cells = [
            f"`{line.key}={line.value}`",
            ours,
            f"`{key}`" if key else "",
            f"[{name}](../tests/{test.partition('::')[0]})",
        ]
        if not test:
            cells[-1] = ""
        same = translate(line)
        rows.append(f"| {' | '.join([*cells, *('=' if other == same else other for other in others)])} |")
    return rows


def write_lines() -> str:
    """The table in markdown; = stands where a library has what 2012 has."""
    rows = ["| 2012 | here | key | test | torchvision | Caffe | slim |", "|---|---|---|---|---|---|---|"]
    for sections, lines in groupby(read_lines(), key=lambda line: line.sections):
        rows += _write_section(sections, lines)
    return "\n".join(rows) + "\n"
