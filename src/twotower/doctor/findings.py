"""A finding of the doctor: a fact, a check that is fine, or a sentence that says what to do."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
        title: what was looked at.
        text: what was found.
        advice: what to do, in one sentence; empty where all is well.
    """

    title: str
    text: str
    advice: str = ""

    @property
    def is_ok(self) -> bool:
        return not self.advice

    def render(self) -> str:
        """A line of Markdown, which a bug report takes as it is."""
        return f"- {self.title}: {self.text}" + ("" if self.is_ok else f" **{self.advice}**")


def look(title: str, check: Callable[[], str]) -> Finding:
    """What a check returns; what it raises, in its place, is what to do."""
    try:
        return Finding(title, check())
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        is_sentence = isinstance(error, ValueError | RuntimeError | ChildProcessError)
        return Finding(title, "failed:", lines[0] if is_sentence else f"{type(error).__name__}: {lines[0]}")
