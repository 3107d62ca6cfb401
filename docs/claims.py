"""The tables of claims in results/README.md and README.md; docs/tables.py writes them.

Every number follows from the data in results/, and a test computes it once more by other code.
"""

import csv
import json
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, stdev

from scipy import stats

RESULTS = Path(__file__).resolve().parents[1] / "results"
NOT_RUN = "not run"
CONFIDENCE = 0.95
XEON, EPYC = "2 cores, Intel Xeon", "2 cores, AMD EPYC"

Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Found:
    """What came out here.

    Attributes:
        value: in the unit of the claim, with its interval.
        runs: how many, by arm.
        verdict: reproduced, not seen, contradicted, see there (chance does not explain it, and the folder says
            what it is), or empty where the claim is none of the paper's.
        hours: of all runs on one machine; None where they were not recorded.
    """

    value: str
    runs: str
    verdict: str
    hours: float | None


@dataclass(frozen=True)
class Claim:
    """A row of the table.

    Attributes:
        where: section, table or figure of the paper; empty for what only the notes have.
        paper, notes: what the paper and the author's notes of 2012 say; points of top-1 / top-5 error unless said.
        folder: of results/, empty if it was not run.
        setting: of our runs.
        find: computes what came out; None if it was not run.
    """

    where: str
    text: str
    paper: str
    notes: str
    setting: str = ""
    folder: str = ""
    machine: str = ""
    find: Callable[[], Found] | None = None


def read(folder: str, name: str) -> Rows:
    """The rows of a result's CSV."""
    with (RESULTS / folder / name).open() as file:
        return list(csv.DictReader(file))


def measure_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval by Student's t."""
    middle = fmean(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return middle, middle - half, middle + half


def judge(low: float, high: float, sign: int) -> str:
    """The verdict on a difference that is expected to have a sign; 0: there is no expectation."""
    if not sign:
        return ""
    if low <= 0 <= high:
        return "not seen"
    return "reproduced" if low * sign > 0 else "contradicted"


def write_interval(values: Sequence[float]) -> str:
    middle, low, high = measure_interval(values)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def compare(folder: str, base: dict[str, str], arm: dict[str, str], sign: int) -> Found:
    """Top-1 error in ten crops, paired by seed: an arm less its baseline. Both are chosen by parts of texts."""
    runs = read(folder, "runs.csv")

    def choose(wanted: dict[str, str]) -> dict[str, dict[str, str]]:
        return {row["seed"]: row for row in runs if all(part in row[key] for key, part in wanted.items())}

    before, after = choose(base), choose(arm)
    if sorted(before) != sorted(after):
        raise ValueError(
            f"results/{folder}/runs.csv has seeds {sorted(before)} of {base} and {sorted(after)} of {arm}."
        )
    pairs = [float(after[seed]["top1_error_ten"]) - float(before[seed]["top1_error_ten"]) for seed in sorted(before)]
    seconds = sum(float(row["seconds"]) for row in (*before.values(), *after.values()))
    _, low, high = measure_interval(pairs)
    return Found(write_interval(pairs), f"2 x {len(pairs)}", judge(low, high, sign), seconds / 3600)


def compare_views() -> Found:
    """Ten crops less the centre crop, of each run."""
    runs = read("imagenette_narrow", "runs.csv")
    pairs = [float(row["top1_error_ten"]) - float(row["top1_error_centre"]) for row in runs]
    _, low, high = measure_interval(pairs)
    hours = sum(float(row["seconds"]) for row in runs) / 3600
    return Found(write_interval(pairs), f"{len(runs)}", judge(low, high, -1), hours)


def find_epochs(activation: str, level: float) -> list[float | None]:
    """Epochs of each seed until the training error is at the level, interpolated; None where it never is."""
    rows = [row for row in read("figure1_cifar10", "figure1.csv") if row["activation"] == activation]
    found: list[float | None] = []
    for seed in sorted({row["seed"] for row in rows}):
        curve = [(float(row["epoch"]), float(row["train_top1_error"])) for row in rows if row["seed"] == seed]
        reached = None
        for (epoch, error), (later, lower) in pairwise(curve):
            if error > level >= lower:
                reached = epoch + (later - epoch) * (error - level) / (error - lower)
                break
        found.append(reached)
    return found


def find_ratio(level: float) -> Found:
    """Epochs of tanh for each of ReLU; where tanh never gets there, the bound of the longest run."""
    relu, tanh = find_epochs("relu", level), find_epochs("tanh", level)
    fast = [epochs for epochs in relu if epochs is not None]
    slow = [epochs for epochs in tanh if epochs is not None]
    if len(slow) == len(tanh):
        ratios = [one / other for one, other in product(slow, fast)]
        value = f"{fmean(slow) / fmean(fast):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        return Found(value, f"2 x {len(slow)}", "reproduced" if min(ratios) > 1 else "not seen", None)
    lengths = [int(row["epoch"]) for row in read("figure1_cifar10", "figure1.csv") if row["activation"] == "tanh"]
    bound = max(lengths) / fast[0]
    return Found(
        f"more than {int(bound * 10) / 10:.1f}", "2 x 1", "reproduced, as a bound" if bound > 6 else "not seen", None
    )


def find_colour_gap() -> Found:
    """The gaps between the towers at the end of each run, and what chance says of them."""
    rows = read("imagenette_narrow", "colour.csv")
    last = {(row["group"], row["seed"]): row for row in rows}
    gaps = [abs(float(row["tower0"]) - float(row["tower1"])) for row in last.values()]
    summary = json.loads((RESULTS / "imagenette_narrow" / "summary.json").read_text())
    chances = [
        run["more_colour"]["p_value"]
        for group in summary["groups"].values()
        for run in group["colour_selectivity"].values()
    ]
    hours = sum(float(row["seconds"]) for row in read("imagenette_narrow", "runs.csv")) / 3600
    value = f"{min(gaps):.2f} to {max(gaps):.2f}, p from {min(chances):.2f} to {max(chances):.1f}"
    return Found(value, f"{len(gaps)}", "not seen" if min(chances) > 1 - CONFIDENCE else "see there", hours)


TOWERS = runpy.run_path(str(Path(__file__).resolve().parent / "towers_in_colour.py"))
COLOUR: str = TOWERS["FOLDER"]


def find_parted() -> Found:
    """In how many runs the towers part, and how far."""
    arm = TOWERS["measure_arm"]("conv3")
    value = f"{arm.parted} of {len(arm.gaps)}, gap {arm.write_gaps()}"
    return Found(value, f"{len(arm.gaps)}", "reproduced" if arm.parted == len(arm.gaps) else "not seen", arm.hours)


def compare_gaps(name: str, sign: int) -> Found:
    """The gap of conv3 less that of an arm, paired by seed."""
    base, arm = TOWERS["measure_arm"]("conv3"), TOWERS["measure_arm"](name)
    pairs = TOWERS["pair"](base, arm)
    middle, low, high = measure_interval(pairs)
    value = f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
    return Found(value, f"2 x {len(pairs)}", judge(low, high, sign), base.hours + arm.hours)


def count_renumbered() -> Found:
    """In how many runs tower 0 is the one with more colour, with its 95 % interval."""
    arm = TOWERS["measure_arm"]("conv3")
    count, runs = arm.tower_0_has_more, len(arm.gaps)
    interval = stats.binomtest(count, runs).proportion_ci(CONFIDENCE)
    low, high = 100 * interval.low, 100 * interval.high
    verdict = "reproduced" if 0 < count < runs and low < 50 < high else "not seen"
    return Found(f"tower 0 in {count} of {runs} ({low:.0f} to {high:.0f} %)", f"{runs}", verdict, arm.hours)


CIFAR_2011 = runpy.run_path(str(Path(__file__).resolve().parent / "cifar_2011.py"))


def compare_norms() -> Found:
    """The author's network of 11 % without its norms less that with them; "so far" before all planned seeds."""
    pairs = CIFAR_2011["pair"]("ten")
    seconds = sum(
        float(CIFAR_2011["read_runs"](names)[seed]["seconds"])
        for names in (CIFAR_2011["WITH"], CIFAR_2011["WITHOUT"])
        for seed in pairs
    )
    middle, low, high = measure_interval(list(pairs.values()))
    verdict = judge(low, high, 1) + (" so far" if len(pairs) < CIFAR_2011["PLANNED"] else "")
    value = f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
    return Found(value, f"2 x {len(pairs)}", verdict, seconds / 3600)


NARROW = "Imagenette, quarter width, 3 epochs, ten crops"
BASE = {"network": "alexnet_2012", "ablation": "none"}

CLAIMS = (
    Claim("Figure 1", "epochs of tanh for each of ReLU, to 25 % training error on CIFAR-10", "6", "",
          "constant rate, no regularisation", "figure1_cifar10", XEON, lambda: find_ratio(25)),
    Claim("Figure 1", "the same to 35 %", "", "", "the same", "figure1_cifar10", XEON, lambda: find_ratio(35)),
    Claim("3.2", "one tower with half of the kernels instead of two", "+1.7 / +1.2", "+1.7 / +1.2"),
    Claim("", "two towers without the exchange below fc8", "", "+1.2 / +1.1", NARROW, "imagenette_narrow", XEON,
          lambda: compare("imagenette_narrow", BASE, {"network": "no_exchange"}, 1)),
    Claim("3.3", "without normalisation", "+1.4 / +1.2", "+1.4 / +1.2", NARROW, "imagenette_narrow", XEON,
          lambda: compare("imagenette_narrow", BASE, {"ablation": "no_lrn"}, 1)),
    Claim("3.3", "a four-layer network on CIFAR-10, 13 % without normalisation, 11 % with", "+2 (top-1)", "",
          "the author's 11 % network of 2011, 40 epochs, ten crops", CIFAR_2011["FOLDER"], XEON, compare_norms),
    Claim("3.4", "pooling without overlap", "+0.4 / +0.3", "+0.4 / +0.3", NARROW, "imagenette_narrow", XEON,
          lambda: compare("imagenette_narrow", BASE, {"ablation": "no_overlap"}, 1)),
    Claim("4.1", "without crops and flips", '"substantial overfitting"', ""),
    Claim("4.1", "without colour noise", "more than +1 (top-1)", ""),
    Claim("4.1", "ten crops instead of one", "-1.5 / -1.3", "-1.6 / -1.3", NARROW.removesuffix(", ten crops"),
          "imagenette_narrow", XEON, compare_views),
    Claim("4.2", "without dropout", '"substantial overfitting"', ""),
    Claim("5", "without weight decay", "the training error rises", ""),
    Claim("Table 1", "errors on ILSVRC-2010", "37.5 % / 17.0 %", "37.5 % / 17.0 %"),
    Claim("Table 2", "errors on ILSVRC-2012", "40.7 % / 18.2 %", "40.7 % / 18.2 %"),
    Claim("6.1", "in every run one tower becomes colour-agnostic, the other one colour-specific", "every run", "",
          "gap of the mean selectivities of conv1", "imagenette_narrow", XEON, find_colour_gap),
    Claim("6.1", "the same, of four layers on CIFAR-10", "every run", "", "Figure 1's network as two towers",
          COLOUR, EPYC, find_parted),
    Claim("6.1", "restricted connectivity makes it: the gap less that with the exchange at every layer", "yes",
          "", "the same", COLOUR, EPYC, lambda: compare_gaps("everywhere", 1)),
    Claim("6.1", "which tower has more colour is a renumbering", "yes", "", "the same", COLOUR, EPYC,
          count_renumbered),
    Claim("7", "without any of the middle layers", "about +2 (top-1)", ""),
    Claim("", "half precision (2012: of the exchange alone)", "", "0.0 / +0.4", NARROW, "bf16_photographs", EPYC,
          lambda: compare("bf16_photographs", {"command": "precision=fp32 "}, {"command": "precision=bf16 "}, 0)),
)  # fmt: skip


def write_claims() -> str:
    """All of them."""
    heads = ["paper", "claim", "the paper says", "notes of 2012", "ours", "runs", "verdict", "with", "on", "hours"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for claim in CLAIMS:
        if claim.find is None:
            cells = [claim.where, claim.text, claim.paper, claim.notes, "", "", NOT_RUN, "", "", ""]
        else:
            found = claim.find()
            setting = f"[{claim.setting}]({claim.folder}/README.md)"
            hours = "not recorded" if found.hours is None else f"{found.hours:.1f}"
            cells = [claim.where, claim.text, claim.paper, claim.notes, found.value, found.runs, found.verdict]
            cells += [setting, claim.machine, hours]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_short_claims() -> str:
    """Those that were run, for the front page."""
    heads = ["claim", "ours", "paper", "notes of 2012", "runs", "verdict"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for claim in CLAIMS:
        if claim.find is not None:
            found = claim.find()
            text = f"[{claim.text}](results/{claim.folder}/README.md)"
            cells = [text, found.value, claim.paper, claim.notes, found.runs, found.verdict]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
