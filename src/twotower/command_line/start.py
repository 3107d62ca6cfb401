"""How every command starts: its --help, mistyped keys in one sentence, then Hydra."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twotower.command_line.manual import write_manual
from twotower.command_line.mistakes import check_overrides, explain_composition, explain_null
from twotower.config import register_schemas
from twotower.config.presets import CONF

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)


def _defaults_of(name: str) -> list[Any]:
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml").defaults)
    assert isinstance(defaults, list)
    return defaults


def list_groups_of(name: str) -> list[str]:
    """The groups that a command's yaml chooses from: network, optim ..."""
    keys = [str(next(iter(entry))) for entry in _defaults_of(name) if isinstance(entry, dict)]
    return [key for key in keys if "@" not in key and not key.startswith("override ")]


def list_unchosen(name: str) -> list[str]:
    """The groups for which a command's yaml chooses nothing: network of an evaluation."""
    entries = [entry for entry in _defaults_of(name) if isinstance(entry, dict)]
    return [str(key) for entry in entries for key, option in entry.items() if option is None]


def find_schema(name: str) -> type:
    """The dataclass that a command's yaml is merged into."""
    register_schemas()
    stored = next(entry for entry in _defaults_of(name) if str(entry).endswith("_schema"))
    schema = OmegaConf.get_type(ConfigStore.instance().load(f"{stored}.yaml").node)
    assert schema is not None
    return schema


def without_plus(arguments: Sequence[str], groups: Sequence[str]) -> list[str]:
    """`+experiment=imagenette`, as Hydra's users write it, without its plus: each group is in the defaults."""
    return [
        argument.lstrip("+") if argument.lstrip("+").partition("=")[0] in groups else argument
        for argument in arguments
    ]


def check_command_line(overrides: Sequence[str], name: str) -> None:
    """Raises: ValueError in one sentence for what is no key, group or value of a command."""
    try:
        check_overrides(overrides, find_schema(name), list_groups_of(name), list_unchosen(name))
    except COMPOSITION_ERRORS as error:
        raise ValueError(explain_composition(error)) from error


def _manual(name: str, overrides: Sequence[str]) -> str:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose(name, list(overrides), return_hydra_config=True)
    template = composed.hydra.help.template
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    return write_manual(template, find_schema(name), composed, list_groups_of(name), CONF)


@contextmanager
def explained(overrides: Sequence[str], name: str) -> Iterator[None]:
    """Around whatever composes a command's configuration: a key of what has none is told as one of Hydra's errors.

    Raises: ConfigCompositionException in place of OmegaConf's AssertionError.
    """
    try:
        yield
    except AssertionError as error:
        if not str(error).startswith("Unexpected type"):
            raise
        raise ConfigCompositionException(explain_null(overrides, find_schema(name))) from None


@contextmanager
def _errors_come_through() -> Iterator[None]:
    """Hydra's own switch: otherwise it prints errors of a composition itself, in many lines, and ends the process."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


def start(main: Callable[[], None], name: str) -> None:
    """Runs a function that `hydra.main` has made, with the arguments of the process.

    Args:
        name: of the command's yaml in conf/.

    Raises: SystemExit with a sentence for a command line that does not compose.
    """
    sys.argv[1:] = without_plus(sys.argv[1:], list_groups_of(name))
    given = get_args_parser().parse_args(sys.argv[1:])
    try:
        check_command_line(given.overrides, name)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    try:
        if given.help:
            with explained(given.overrides, name):
                print(_manual(name, given.overrides), end="")
            return
        with _errors_come_through(), explained(given.overrides, name):
            main()
    except COMPOSITION_ERRORS as error:
        raise SystemExit(f"error: {explain_composition(error)}") from error
