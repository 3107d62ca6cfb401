"""The frame of a command of launch/: from the command line to its settings, and from an error to one sentence."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import hydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twotower.command_line.arguments import read_arguments
from twotower.command_line.mistakes import explain_composition
from twotower.command_line.start import start
from twotower.config import arrange_layers, check_bounds
from twotower.config.presets import CONF
from twotower.ground.processes import STOPPED, catch_stops
from twotower.ground.wording import on_lines, word_error


def describe_error(error: BaseException) -> str:
    """The text of an error for a terminal: it may quote the name or the content of a stranger's file."""
    return on_lines(word_error(error))


def _read_settings(composed: Any) -> Any:
    """What Hydra composed as the dataclass of the command, its network arranged. Raises: ValueError."""
    if "network" in composed and composed.network is None:
        composed.input = None  # the input follows from a network
    settings: Any = OmegaConf.to_object(composed)
    check_bounds(settings)
    if getattr(settings, "network", None) is None:
        return settings
    return replace(settings, network=arrange_layers(settings.network))


def command(
    name: str,
    *,
    to_overrides: Callable[[list[str]], list[str]] | None = None,
    needs: Mapping[str, str] | None = None,
    stopped: str = "stopped",
) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """A decorator for what a command does with its settings; what it returns runs the whole command.

    Args:
        name: of the command's yaml in conf/.
        to_overrides: turns the arguments into Hydra's, such as paths that stand without a key.
        needs: keys that must be given, with the sentence for a person who did not.
        stopped: the sentence for a person who interrupted the command.
    """

    def decorate(work: Callable[[Any], None]) -> Callable[[], None]:
        @wraps(work)
        def compose_and_work(composed: Any) -> None:
            for key, sentence in (needs or {}).items():
                if OmegaConf.is_missing(composed, key):
                    raise SystemExit(f"error: {sentence}")
            try:
                work(_read_settings(composed))
            except OmegaConfBaseException as error:  # some of which are ValueErrors in several lines
                raise SystemExit(f"error: {explain_composition(error)}") from error
            except (ValueError, OSError) as error:
                raise SystemExit(f"error: {describe_error(error)}") from error

        @wraps(compose_and_work)
        def run() -> None:
            catch_stops()
            if to_overrides is not None:
                sys.argv[1:] = read_arguments(to_overrides, sys.argv[1:])
            try:
                start(hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(compose_and_work), name)
            except KeyboardInterrupt:
                print(stopped, file=sys.stderr)
                raise SystemExit(STOPPED) from None

        return run

    return decorate
