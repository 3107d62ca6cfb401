"""Settles whether a run uses W&B offline or online, and the rest of its settings, also from W&B's own variables.

A key of `logging` that was not given is null, and then W&B's own variable counts: WANDB_MODE (or
WANDB_DISABLED=true), WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_NAME, WANDB_NOTES, WANDB_TAGS (separated by
commas). This is settled once, before any process is started, and config.yaml stores the outcome. WANDB_DIR, the
folder of W&B's files in place of RUN/wandb, is read each time.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from twotower.config import WANDB_MODES, LoggingConfig
from twotower.config.stored_config import read_yaml

# A run's folder may come from somebody else, who would have your key send things, so that its word is not enough.
OFFLINE_UNLESS_ASKED = "now W&B is offline, and WANDB_MODE=online sends to W&B"
DEFAULT_MODE, DEFAULT_PROJECT = "offline", "twotower"

_OLD_MODES = {"dryrun": "offline", "run": "online"}  # W&B's names before 2019, which it still accepts
_TRUE = ("1", "true", "yes", "on")
_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
}


def mode_in(environment: Mapping[str, str]) -> str | None:
    """The mode that W&B's variables ask for; None if they do not. Raises: ValueError for an unknown one."""
    if environment.get("WANDB_DISABLED", "").lower() in _TRUE:
        return "disabled"
    given = environment.get("WANDB_MODE") or None
    mode = None if given is None else _OLD_MODES.get(given, given)
    if mode is not None and mode not in WANDB_MODES:
        raise ValueError(
            f"WANDB_MODE={given} is not known here; set it to one of {', '.join(WANDB_MODES)}, or give logging.wandb."
        )
    return mode


def group_in(environment: Mapping[str, str]) -> str | None:
    """The group that W&B's variable names; None if it names none."""
    return environment.get(_VARIABLES["group"]) or None


def settle(logging: LoggingConfig, run_dir: Path, environment: Mapping[str, str] = os.environ) -> LoggingConfig:
    """Fills in the keys that are null: from the run if it goes on, from W&B's environment variables, or by default.

    A run that goes on keeps everything that identifies its W&B run, such as the project. The mode may change, so the
    variable comes first for it, and a run that was online goes on offline unless that is asked for again. The group
    stays null where nobody names one; W&B then gets the name of the folder.

    Args:
        run_dir: the run's folder, which has a config.yaml if the run goes on.

    Raises: ValueError for a WANDB_MODE that is not known.
    """
    stored = _stored_in(run_dir)
    mode = logging.wandb
    if mode is None:
        mode = mode_in(environment) or stored.get("wandb") or DEFAULT_MODE
        if mode == "online" and mode_in(environment) is None:
            print(f"{run_dir} was online; {OFFLINE_UNLESS_ASKED}, and logging.wandb=online as well.")
            mode = "offline"
    settled: dict[str, Any] = {
        key: stored.get(key) or environment.get(variable) or None
        for key, variable in _VARIABLES.items()
        if getattr(logging, key) is None
    }
    tags = logging.tags
    if tags is None:
        from_variable = [tag.strip() for tag in environment.get("WANDB_TAGS", "").split(",") if tag.strip()]
        tags = stored.get("tags") or from_variable
    logging = replace(logging, wandb=mode, tags=tags, **settled)
    return logging if logging.project else replace(logging, project=DEFAULT_PROJECT)


def _stored_in(run_dir: Path) -> Mapping[str, Any]:
    """Reads the logging settings of the run in a folder; empty if there is none, or it cannot be read."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return {}
    try:
        logging = read_yaml(path).get("logging")
    except ValueError:
        return {}
    if not isinstance(logging, dict):
        return {}
    texts = {key: value for key, value in logging.items() if key in _VARIABLES and isinstance(value, str)}
    tags, mode = logging.get("tags"), logging.get("wandb")
    has_tags = isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
    return {**texts, "tags": tags if has_tags else None, "wandb": mode if mode in WANDB_MODES else None}
