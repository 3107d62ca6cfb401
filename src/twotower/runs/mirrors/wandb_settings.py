"""What W&B is told before a run is opened: its environment variables, whether there is a key, and the run's id.

A key of `logging` that was not given is null, and then W&B's own variable counts: WANDB_MODE (or
WANDB_DISABLED=true), WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_NAME, WANDB_NOTES, WANDB_TAGS (a comma
between two). This is settled once, before any process is started, and config.yaml has what came of it. WANDB_DIR is
where W&B's files go instead of RUN/wandb, and is asked each time.

A training has one id, in RUN/wandb.json: when it is resumed, evaluated or drawn, that goes on in the same W&B run.
Offline each of them has a folder of its own with this id and the wish to resume, and `wandb sync` appends them in the
order of their beginning, numbering W&B's own steps anew. What a killed training had logged after its last checkpoint
stands there twice: once from before, once from when it was computed again.
"""

import json
import os
import secrets
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from twotower.config import WANDB_MODES, LoggingConfig

ID_FILE = "wandb.json"  # in a run's folder: {"id": ..., "folder": where the training ran}
ID_LENGTH = 8  # of 36 letters and digits, as W&B's own ids
DEFAULT_MODE, DEFAULT_PROJECT = "offline", "twotower"

_OLD_MODES = {"dryrun": "offline", "run": "online"}  # W&B's names of before 2019, which it still takes
_TRUE = ("1", "true", "yes", "on")
_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
}


def mode_in(environment: Mapping[str, str]) -> str | None:
    """The mode that W&B's variables ask for, None if they do not. Raises: ValueError for one that is not known."""
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
    """The group that W&B's variable names."""
    return environment.get(_VARIABLES["group"]) or None


def settle(logging: LoggingConfig, run_dir: Path, environment: Mapping[str, str] = os.environ) -> None:
    """Fills in what was not given: from the run if it goes on, W&B's environment variables, or the default.

    What makes a W&B run the same one, such as its project, is that of the run if it goes on. The mode may change, so
    there the variable comes first. The group stays null where nobody names one: it is then the name of the folder.

    Args:
        run_dir: the run's folder, which has a config.yaml if it goes on.

    Raises: ValueError for a WANDB_MODE that is not known.
    """
    stored = _stored_in(run_dir)
    if logging.wandb is None:
        logging.wandb = mode_in(environment) or stored.get("wandb") or DEFAULT_MODE
    for key, variable in _VARIABLES.items():
        if getattr(logging, key) is None:
            setattr(logging, key, stored.get(key) or environment.get(variable) or None)
    logging.project = logging.project or DEFAULT_PROJECT
    if logging.tags is None:
        named = [tag.strip() for tag in environment.get("WANDB_TAGS", "").split(",") if tag.strip()]
        logging.tags = stored.get("tags") or named


def _stored_in(run_dir: Path) -> Mapping[str, Any]:
    """The logging settings of the run that the folder holds; none if there is none, or it cannot be read."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return {}
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, yaml.YAMLError):
        return {}
    logging = found.get("logging") if isinstance(found, dict) else None
    return {str(key): value for key, value in logging.items()} if isinstance(logging, dict) else {}


def check_key() -> None:
    """Looks for a key where W&B does: WANDB_API_KEY, an identity token, .netrc, its settings. Asks no server.

    Raises: ValueError if there is none, or one that cannot be a key.
    """
    import wandb  # here, as it takes a second that runs without it need not spend
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    host = wandb_setup.singleton().settings.base_url
    try:
        found = wbauth.authenticate_session(host=host, source="twotower", prompt=False, update_session=False)
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"logging.wandb=online cannot use the key that it found ({error}); {_remedy()}") from error
    if found is None:
        raise ValueError(
            f"logging.wandb=online (or WANDB_MODE=online) needs a key for {host}, and there is none in "
            f"WANDB_API_KEY, .netrc or W&B's settings; {_remedy()}"
        )


def _remedy() -> str:
    return "log in by `wandb login`, or take logging.wandb=offline and send the run later by `wandb sync`."


def unreachable(error: Exception) -> ValueError:
    """The sentence for a run that W&B did not open."""
    return ValueError(f"logging.wandb=online did not reach W&B ({error}); {_remedy()}")


def _read(folder: Path) -> dict[str, Any] | None:
    """What wandb.json holds; None if it is not there, or damaged."""
    try:
        found = json.loads((folder / ID_FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"id", "folder"} <= set(found) else None


def _write(folder: Path, run_id: str) -> None:
    pending = folder / f"{ID_FILE}.pending"
    pending.write_text(json.dumps({"id": run_id, "folder": str(folder.resolve())}) + "\n")
    os.replace(pending, folder / ID_FILE)


def was_trained_here(folder: Path) -> bool:
    """Whether the run was trained in this folder and not brought here, by a copy or by somebody else."""
    found = _read(folder)
    return found is not None and found["folder"] == str(folder.resolve())


def _is_copy(found: Mapping[str, Any], folder: Path) -> bool:
    """Whether the folder that the id was made for is another one, and still there with it; else this was moved."""
    origin = Path(found["folder"])
    if origin == folder.resolve():
        return False
    theirs = _read(origin)
    return theirs is not None and theirs["id"] == found["id"]


def run_id_of(folder: Path, *, is_new: bool = False, environment: Mapping[str, str] = os.environ) -> str:
    """The id of a run's W&B run, from its folder; made and stored where there is none.

    A copied folder gets an id of its own as soon as something is logged from it; a moved one keeps its id.

    Args:
        is_new: whether a training begins here from its first step, which is another run than any before it in this
            folder. Its id is WANDB_RUN_ID, where a W&B agent or a person sets it.
    """
    found = _read(folder)
    if not is_new and found is not None and not _is_copy(found, folder):
        return str(found["id"])
    letters = string.ascii_lowercase + string.digits
    made = "".join(secrets.choice(letters) for _ in range(ID_LENGTH))
    run_id = (environment.get("WANDB_RUN_ID") if is_new else None) or made
    _write(folder, run_id)
    return run_id
