"""Error rates of a run on its validation set.

python launch/evaluate.py run=RUN_DIR crops=centre|ten [split=test]
"""

from typing import Any

import hydra
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from twotower.config import EvaluateConfig, register_schemas
from twotower.evaluate import evaluate_run

register_schemas()


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(composed: Any) -> None:
    if OmegaConf.is_missing(composed, "run"):
        raise SystemExit("error: give the run to evaluate: python launch/evaluate.py run=RUN_DIR")
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, EvaluateConfig)
    try:
        result = evaluate_run(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
    table = Table("split", "crops", "top-1 error, %", "top-5 error, %", "loss", "images", "images/s")
    table.add_row(
        result["split"],
        result["crops"],
        f"{result['top1_error']:.2f}",
        f"{result['top5_error']:.2f}",
        f"{result['loss']:.4f}",
        str(result["num_images"]),
        f"{result['images_per_second']:.0f}",
    )
    Console().print(table)
    print(f"{result['checkpoint']}, written to {settings.run}/evaluation.json")


if __name__ == "__main__":
    main()
