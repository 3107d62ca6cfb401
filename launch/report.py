"""What sweeps and runs show: a page, tables and pictures.

python launch/report.py DIR [DIR ...] [output=report] [baseline=none] [evaluate=true] [figures=true] [data_root=DIR]

DIR is the folder of a sweep or of a run, or one that holds several.
"""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from twotower.arguments import quote_paths, quoted
from twotower.config import ReportConfig, register_schemas
from twotower.report import make_report

register_schemas()


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def compose_and_report(composed: Any) -> None:
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, ReportConfig)
    try:
        page = make_report(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
    print((page.parent / "table.md").read_text().split("### All runs")[0].rstrip())
    print(f"\nwritten: {page}, and beside it table.md, table.csv, runs.csv, summary.json and the pictures")


def _is_folder(argument: str) -> bool:
    """Folders are given without a key; that of a job has an equals sign in its name all the same."""
    key = argument.split("=")[0]
    return Path(argument).is_dir() or (not argument.startswith("-") and (key == argument or "/" in key))


def main() -> None:
    folders = [argument for argument in sys.argv[1:] if _is_folder(argument)]
    if folders:
        others = [argument for argument in sys.argv[1:] if not _is_folder(argument)]
        sys.argv[1:] = [*others, f"folders=[{','.join(quoted(folder) for folder in folders)}]"]
    sys.argv[1:] = quote_paths(sys.argv[1:], ("folders", "output", "baseline", "data_root"))
    compose_and_report()


if __name__ == "__main__":
    main()
