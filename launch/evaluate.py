"""Error rates of a run on its validation set, or of several runs together.

python launch/evaluate.py run=RUN_DIR crops=centre|ten [split=test] [fresh=true]
python launch/evaluate.py runs=[RUN_A,RUN_B,RUN_C] crops=ten [coefficients=[0.5,0.3,0.8]] [output=FILE.json]
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from twotower.config import EvaluateConfig, register_schemas
from twotower.ensemble import evaluate_ensemble
from twotower.evaluate import evaluate_run
from twotower.journal import write_json
from twotower.predictions import VIEWS

register_schemas()
CROPS = {"centre": "centre", "ten": "ten, mean"}


def _percent(result: dict[str, Any]) -> tuple[str, str]:
    return f"{result['top1_error']:.2f}", f"{result['top5_error']:.2f}"


def _one(settings: EvaluateConfig) -> None:
    """Prints a row for each view of one run."""
    result = evaluate_run(settings)
    found = {view: result[view] for view in VIEWS if result[view] is not None}
    table = Table("split", "crops", "top-1\nerror, %", "top-5\nerror, %", "loss", "images", "images/s")
    for view, one in found.items():
        table.add_row(
            result["split"],
            CROPS[view],
            *_percent(one),
            f"{one['loss']:.4f}",
            str(one["num_images"]),
            f"{one['images_per_second']:.0f}" + (" (ten crops)" if one["pass_crops"] != view else ""),
        )
    Console().print(table)
    stored = " and ".join(view for view, one in found.items() if one["stored"])
    if stored:
        print(f"{stored}: from stored predictions, images/s of the first time; fresh=true computes again")
    if "ten" not in found:
        print(f"the mean of ten crops: python launch/evaluate.py run={settings.run} crops=ten")
    print(f"{result['checkpoint']}, written to {settings.run}/evaluation.json")


def _several(settings: EvaluateConfig) -> None:
    """Prints the members and their means, as Table 2 of the paper does."""
    output = Path(settings.output) if settings.output is not None else None
    if output is not None and (output.suffix != ".json" or not output.absolute().parent.is_dir()):
        raise ValueError(f"output={output} must be a file named *.json in a folder that exists.")
    result = evaluate_ensemble(settings)
    equal, weighted = result["equal"], result["weighted"]
    size, searched = len(result["members"]), weighted["searched_on_these_images"]
    how = "searched here" if searched else "given"
    title = f"{result['split']}, {result['num_images']} images, crops: {CROPS[result['crops']]}"
    table = Table("model", "coefficient", "top-1\nerror, %", "top-5\nerror, %", title=title)
    for member, coefficient in zip(result["members"], weighted["coefficients"], strict=True):
        changed = "" if member["ablation"] == "none" else f", {member['ablation']}"
        name = f"{member['run']} ({member['network']}{changed}, {member['checkpoint']})"
        table.add_row(name, f"{coefficient:g}", *_percent(member))
    table.add_section()
    table.add_row(f"mean of {size}", "equal", *_percent(equal))
    table.add_row(f"mean of {size}", how, *_percent(weighted))
    Console().print(table)
    if searched:
        given = ",".join(f"{coefficient:g}" for coefficient in weighted["coefficients"])
        print("The coefficients were searched on the same images, so their error is optimistic.")
        print(f"On other images, e.g. split=test: coefficients=[{given}]")
    if output is not None:
        write_json(output, result)
        print(f"written to {output}")


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(composed: Any) -> None:
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, EvaluateConfig)
    try:
        if (settings.run is None) == (not settings.runs):
            raise ValueError(
                "give either run=RUN_DIR or runs=[RUN_A,RUN_B,...]: python launch/evaluate.py run=RUN_DIR crops=ten"
            )
        if settings.run is not None and (settings.coefficients or settings.output):
            raise ValueError("coefficients= and output= are for an ensemble; give runs=[RUN_A,RUN_B,...].")
        (_one if settings.run is not None else _several)(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None


if __name__ == "__main__":
    main()
