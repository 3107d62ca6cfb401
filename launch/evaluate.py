"""Error rates of a run on its validation set, or of several runs together.

python launch/evaluate.py RUN crops=centre|ten [split=test] [fresh=true]
python launch/evaluate.py A B C crops=ten ['coefficients=[0.5,0.3,0.8]'] [output=FILE.json]
python launch/evaluate.py weights=FILE network=caffenet data_root=DIR crops=centre|ten [mean=FILE] [output=FILE.json]

RUN, A, B and C are folders of runs, or patterns of such; with keys they are run=RUN and 'runs=[A,B,C]'.
"""

import shlex
from pathlib import Path
from typing import Any

from rich.table import Table

from twotower.command_line.arguments import name_paths, quote_paths
from twotower.command_line.command import command
from twotower.config import EvaluateConfig
from twotower.evaluation.ensemble import evaluate_ensemble
from twotower.evaluation.evaluate import evaluate_run, evaluate_weights
from twotower.evaluation.predictions import VIEWS
from twotower.ground.files import write_json
from twotower.ground.screen import print_table, show
from twotower.ground.wording import counted, split_common

CROPS = {"centre": "centre", "ten": "ten, mean"}


def _percent(result: dict[str, Any]) -> tuple[str, str]:
    return f"{result['top1_error']:.2f}", f"{result['top5_error']:.2f}"


def _print_views(split: str, results: dict[str, dict[str, Any]]) -> None:
    """Prints a row for each view."""
    table = Table("split", "crops", "top-1\nerror, %", "top-5\nerror, %", "loss", "images", "images/s")
    for view, result in results.items():
        table.add_row(
            split,
            CROPS[view],
            *_percent(result),
            f"{result['loss']:.4f}",
            str(result["num_images"]),
            f"{result['images_per_second']:.0f}" + (" (ten crops)" if result["pass_crops"] != view else ""),
        )
    print_table(table)


def _evaluate_one(settings: EvaluateConfig) -> None:
    """Prints a row for each view of one run."""
    result = evaluate_run(settings)
    results = {view: result[view] for view in VIEWS if result[view] is not None}
    _print_views(result["split"], results)
    stored = " and ".join(view for view, of_view in results.items() if of_view["stored"])
    if stored:
        show(f"{stored}: from stored predictions, images/s of the first time; fresh=true computes again")
    if "ten" not in results:
        chosen = f" checkpoint={settings.checkpoint}" if settings.checkpoint is not None else ""
        run = shlex.quote(str(settings.run))
        show(f"the mean of ten crops: python launch/evaluate.py {run}{chosen} crops=ten")
    show(f"{result['checkpoint']}, written to {result['report']}")


def _evaluate_file(settings: EvaluateConfig) -> None:
    """Prints a row for each view of a file of weights."""
    result = evaluate_weights(settings)
    _print_views(result["split"], {view: result[view] for view in VIEWS if view in result})
    show(f"{result['weights']}, network {result['network']}")
    _write(settings, result)


def _write(settings: EvaluateConfig, result: dict[str, Any]) -> None:
    if settings.output is not None:
        write_json(Path(settings.output), result)
        show(f"written to {settings.output}")


def _evaluate_several(settings: EvaluateConfig) -> None:
    """Prints the members and their means, as Table 2 of the paper does."""
    result = evaluate_ensemble(settings)
    equal, weighted = result["equal"], result["weighted"]
    size, searched = len(result["members"]), weighted["searched_on_these_images"]
    how = "searched here" if searched else "given"
    title = f"{result['split']}, {counted(result['num_images'], 'image')}, crops: {CROPS[result['crops']]}"
    folder, names = split_common([Path(member["run"]) for member in result["members"]])
    table = Table("model", "coefficient", "top-1\nerror, %", "top-5\nerror, %")
    for member, leaf, coefficient in zip(result["members"], names, weighted["coefficients"], strict=True):
        changed = "" if member["ablation"] == "none" else f", {member['ablation']}"
        name = f"{leaf} ({member['network']}{changed}, {member['checkpoint']})"
        table.add_row(name, f"{coefficient:g}", *_percent(member))
    table.add_section()
    table.add_row(f"mean of {size}", "equal", *_percent(equal))
    table.add_row(f"mean of {size}", how, *_percent(weighted))
    print_table(table, f"{title}; runs in {folder}" if folder else title)
    if searched:
        given = ",".join(f"{coefficient:g}" for coefficient in weighted["coefficients"])
        show("The coefficients were searched on the same images, so their error is optimistic.")
        show(f"On other images, e.g. split=test: 'coefficients=[{given}]'")
    _write(settings, result)


def to_overrides(arguments: list[str]) -> list[str]:
    """Folders without a key are `run` or `runs`. Raises: ValueError."""
    named = name_paths(arguments, EvaluateConfig, single="run", several="runs")
    return quote_paths(named, ("run", "runs", "weights", "mean", "checkpoint", "data_root", "output"))


@command("evaluate", to_overrides=to_overrides)
def main(settings: EvaluateConfig) -> None:
    given = [settings.run is not None, bool(settings.runs), settings.weights is not None]
    if sum(given) != 1:
        raise ValueError(
            "give a run, several runs or weights=FILE, and only one of these: python launch/evaluate.py RUN crops=ten"
        )
    if settings.coefficients and not settings.runs:
        raise ValueError("coefficients= is for an ensemble; give several runs.")
    if settings.output is not None and settings.run is not None:
        raise ValueError("output= is for several runs and weights=; that of a run is RUN/evaluation.json.")
    if settings.network is not None and settings.weights is None:
        raise ValueError("network= is for weights=FILE; a run knows its own.")
    if settings.mean is not None and settings.weights is None:
        raise ValueError("mean= is for weights=FILE; a run has its own.")
    if settings.weights is not None and (settings.checkpoint is not None or settings.fresh):
        raise ValueError("checkpoint= and fresh= are for runs; a file of weights is always computed anew.")
    output = Path(settings.output or "result.json")
    if output.suffix != ".json" or not output.absolute().parent.is_dir():
        raise ValueError(f"output={output} must be a file named *.json in a folder that exists.")
    (_evaluate_one, _evaluate_several, _evaluate_file)[given.index(True)](settings)


if __name__ == "__main__":
    main()
