"""A change to argparse that Hydra 1.3 needs to start on Python 3.14."""

import argparse
from typing import Any


def allow_lazy_help() -> None:
    """Lets argparse take a help text that is not a string before it is printed.

    Since 3.14 argparse formats each text as soon as it is given, only to find mistakes in it. That of Hydra's
    `--shell-completion` is made when it is printed (in all releases up to 1.3.8), and no command would start.
    """

    def accept(self: argparse.ArgumentParser, action: Any) -> None:
        pass

    if hasattr(argparse.ArgumentParser, "_check_help"):
        argparse.ArgumentParser._check_help = accept
