"""The lab book of 2012/13 on one page: Tables 1 and 2 and the ablations, with our own results beside them.

For each row: the errors that the paper prints, those of the notes, and the difference to the run that it is a change
of. A run of ours counts for a row by its network and ablation (`counterpart`) and its recipe (`recipe`); runs of one
row, as with several seeds, are averaged. Ours are headed by the images that they were measured on, because only the
same images give comparable errors.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from twotower.ground.wording import signed
from twotower.reports.counterpart import BASELINE, COUNTERPARTS
from twotower.reports.labbook import Entry, find_difference, read_labbook
from twotower.reports.own_results import OwnResult, read_own_results

_PRINTED = re.compile(r"([+-]?\d+(?:\.\d)?|-) / ([+-]?\d+(?:\.\d)?|-)")
_NOTHING = ("", "")

Pair = tuple[str, str]  # top-1 and top-5 in percent, as text


@dataclass(frozen=True)
class OwnCell:
    """Our mean in one row. `runs` is 0 where a run exists and was not evaluated, None where there is no run."""

    runs: int | None
    errors: Pair
    difference: Pair  # points more than ours of run 145


NO_RUN = OwnCell(None, _NOTHING, _NOTHING)
NOT_EVALUATED = OwnCell(0, _NOTHING, _NOTHING)


@dataclass(frozen=True)
class Line:
    """One row: an entry of the lab book, the paper's numbers of it, and ours for each heading."""

    entry: Entry
    paper: Pair
    notes: Pair
    difference: Pair
    own: tuple[OwnCell, ...]


@dataclass(frozen=True)
class LabbookPage:
    """Titles with their rows, the headings of our columns, and the remarks below."""

    sections: list[tuple[str, list[Line]]]
    headings: list[str]
    has_runs: bool
    remarks: list[str]
    has_comparable: bool = False  # whether any of ours was measured on the paper's images, at the paper's width


def _printed(entry: Entry) -> Pair:
    """Errors as the paper prints them; "-" where it leaves out one of the two."""
    match = _PRINTED.search(entry.paper_item)
    return _NOTHING if match is None else (match[1], match[2])


def _mean_errors(results: Sequence[OwnResult]) -> tuple[float, float]:
    return mean(result.top1_error for result in results), mean(result.top5_error for result in results)


def _own_cell(entry: Entry, images: str, results: Sequence[OwnResult], names: set[str]) -> OwnCell:
    here = [result for result in results if (result.images, result.view) == (images, entry.view)]
    if any(result.comparable for result in here) and images != f"ILSVRC-{entry.year} {entry.set}":
        return NO_RUN
    ours = [result for result in here if entry.run in COUNTERPARTS[result.name]]
    if not ours:
        exists = any(entry.run in COUNTERPARTS[name] for name in names)
        return NOT_EVALUATED if exists else NO_RUN
    top1, top5 = _mean_errors(ours)
    base, difference = [result for result in here if result.name == BASELINE], _NOTHING
    if base and ours[0].name != BASELINE:
        base_top1, base_top5 = _mean_errors(base)
        difference = (signed(top1 - base_top1), signed(top5 - base_top5))
    return OwnCell(len(ours), (f"{top1:.2f}", f"{top5:.2f}"), difference)


def _make_line(entry: Entry, entries: list[Entry], own: Sequence[OwnCell]) -> Line:
    points = find_difference(entry, entries)
    difference = _NOTHING if points is None else (signed(points[0]), signed(points[1]))
    notes = _NOTHING if entry.is_only_printed else (f"{entry.top1_error:.4f}", f"{entry.top5_error:.4f}")
    return Line(entry, _printed(entry), notes, difference, tuple(own))


def _in_table(entry: Entry, number: int) -> bool:
    return entry.paper_item.startswith(f"Table {number}")


def _split(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The changes that a run of ours can repeat, those of the paper first; and the other entries outside tables."""
    can_be_repeated = {run for runs in COUNTERPARTS.values() for run in runs}
    changes = [entry for entry in entries if entry.baseline and entry.run in can_be_repeated]
    rest = [entry for entry in entries if entry not in changes and not entry.paper_item.startswith("Table")]
    changes.sort(key=lambda entry: not entry.paper_item.startswith("Section"))
    return changes, rest


def _only_differences(line: Line) -> Line:
    """Drops the paper's numbers where they are errors and no differences, because Table 2 has those."""
    return line if line.paper[0].startswith(("+", "-")) else replace(line, paper=_NOTHING)


def make_page(runs: Sequence[str] = ()) -> LabbookPage:
    """The page, with a column for each set of images that our runs were evaluated on; without runs it is empty.

    Differences of the notes are to the baseline that the notes name, ours to our run of the paper's network.

    Raises: ValueError for a folder without run or checkpoint.
    """
    results, names, remarks = read_own_results(runs)
    headings = list(dict.fromkeys(result.images for result in results))
    for images in dict.fromkeys(result.images for result in results if not result.comparable):
        remarks.append(f"ours ({images}) cannot be compared with the paper's: other images, or another width")
    entries = read_labbook()
    comparable = {result.images for result in results if result.comparable}
    columns = headings or [""]

    def make_line(entry: Entry) -> Line:
        return _make_line(entry, entries, [_own_cell(entry, images, results, names) for images in columns])

    def make_comparable_line(entry: Entry) -> Line:
        """Leaves out ours on other images, which stand in Table 2 and the ablations only."""
        own = [_own_cell(entry, images, results, names) if images in comparable else NO_RUN for images in columns]
        return _make_line(entry, entries, own)

    changes, rest = _split(entries)
    sections = [
        ("Table 1: ILSVRC-2010, test set", [make_comparable_line(e) for e in entries if _in_table(e, 1)]),
        ("Table 2: ILSVRC-2012, validation and test set", [make_line(e) for e in entries if _in_table(e, 2)]),
        (
            "Ablations: sections 3.2 to 3.4, 4.1 and 7, and networks of the lab book that are here",
            [_only_differences(make_line(entry)) for entry in changes],
        ),
        (
            "The rest of the lab book, and section 6: ImageNet of Fall 2009",
            [make_comparable_line(entry) for entry in rest],
        ),
    ]
    return LabbookPage(
        sections=sections,
        headings=[f"ours ({images})" for images in headings] or ["ours"],
        has_runs=bool(runs),
        remarks=remarks,
        has_comparable=bool(comparable),
    )
