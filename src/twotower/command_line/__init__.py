"""How every command starts: its help, and mistyped keys in one sentence."""

import sys
from types import TracebackType


def _report_unless_stopped(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A Ctrl-C while a command still imports: the process ends as one that was stopped, and there is nothing to say.

    Python, which lets the process die of the signal then, would print where in the imports it was.
    """
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _report_unless_stopped
