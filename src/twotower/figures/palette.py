"""The colours of all plots."""

from dataclasses import dataclass

# Seven colours of Okabe and Ito (2008) and an olive, which the colour-blind tell apart. The lines of a drawing take
# them in this order.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
_BLUE, _VERMILION, _GREEN, _ORANGE = LINES[0], LINES[1], LINES[2], LINES[4]
TOWERS = (_BLUE, _VERMILION)  # tower 0 and tower 1
ACTIVATIONS = {"relu": _BLUE, "tanh": _VERMILION, "sigmoid": _GREEN}
HERE, OF_2012 = _BLUE, _VERMILION  # our own results, and those of the lab book
COUNT, ERROR = _BLUE, _VERMILION  # bars of images, and of errors in percent
RIGHT, WRONG = _ORANGE, "#b9d9ee"  # bars of the right class and of others, both light enough for text on them
REFERENCE = "#555555"  # line of the error that is to be reached, or of no difference
CHANCE = "#777777"  # line of the value that chance gives


@dataclass(frozen=True)
class Diagram:
    """Colours of Figure 2 on a page of one theme; the drawing itself has no background.

    Attributes:
        ink: texts.
        within: arrows within a tower, and the edges of boxes.
        crossing: arrows between the towers.
        towers: boxes of tower 0 and of tower 1.
    """

    ink: str
    within: str
    crossing: str
    towers: tuple[str, str]


DIAGRAMS = {  # theme of the page -> colours
    "light": Diagram(ink="#1a1a1a", within="#4a4a4a", crossing=_VERMILION, towers=("#dbe9f6", "#fdebd0")),
    "dark": Diagram(ink="#e6e6e6", within="#a8a8a8", crossing="#ff8c32", towers=("#1d3a57", "#4d3a1a")),
}
