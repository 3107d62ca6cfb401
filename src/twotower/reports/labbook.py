"""The results of the runs of 2012 and early 2013, run by run, from the notes that their author kept in the source.

labbook.csv holds, for each run and view: year and set of the images, mean -ln p in nats, error rates in percent, the
run that it is compared with, and where the paper prints it. Runs that the notes describe without numbers are left out
(107, 110, 127, 132, 133 and others), and so is 172, which has only a loss. Results that only the paper has stand
there without a loss: averages of several networks, results of others, changes without a run. Tables 1 and 2 and the
ablations are made from it.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Entry:
    """One result.

    Attributes:
        run: name of the parameters file, e.g. 145-2010; a word for a result that only the paper has.
        year: year of ILSVRC; 2009 for ImageNet's release of Fall 2009.
        set: val (50,000 images), test (150,000 of 2010, 100,000 of 2012) or Fall (half of that release).
        view: centre crop, 10-view (mean of the softmax outputs of ten crops) or not noted; empty for others' systems.
        nll: mean -ln p of the label, in nats; None where it was not noted.
        top1_error, top5_error: percent; None where it was not noted.
        baseline: the run that this result is a change of; empty for none.
        paper_item: where the paper has this number, and the number as it prints it ("-": left out); empty if nowhere.
        change: the difference to the baseline, in words.
    """

    run: str
    year: int
    set: str
    view: str
    nll: float | None
    top1_error: float | None
    top5_error: float | None
    baseline: str
    paper_item: str
    change: str

    @property
    def is_only_printed(self) -> bool:
        """Whether the paper has it and no note does."""
        return bool(self.paper_item) and self.nll is None


def _number(text: str) -> float | None:
    return float(text) if text else None


def read_labbook() -> list[Entry]:
    """All entries, in the order of the file."""
    text = files("twotower.reports").joinpath("labbook.csv").read_text(encoding="utf-8")
    return [
        Entry(
            run=row["run"],
            year=int(row["year"]),
            set=row["set"],
            view=row["view"],
            nll=_number(row["nll"]),
            top1_error=_number(row["top1_error"]),
            top5_error=_number(row["top5_error"]),
            baseline=row["baseline"],
            paper_item=row["paper_item"],
            change=row["change"],
        )
        for row in csv.DictReader(text.splitlines())
    ]


def find_baseline(entry: Entry, entries: list[Entry]) -> Entry | None:
    """The result of the baseline on the same images in the same view; None where there is none.

    The notes name 145 for both years; the net of 2010 is 145-2010.
    """
    names = (entry.baseline, f"{entry.baseline}-{entry.year}") if entry.baseline else ()
    for other in entries:
        same = (other.year, other.set, other.view) == (entry.year, entry.set, entry.view)
        if other.run in names and same:
            return other
    return None


def find_difference(entry: Entry, entries: list[Entry]) -> tuple[float, float] | None:
    """Points of top-1 and top-5 error more than the baseline's; None where the notes do not have both results."""
    base = find_baseline(entry, entries)
    if base is None or entry.top1_error is None or entry.top5_error is None:
        return None
    if base.top1_error is None or base.top5_error is None:
        return None
    return entry.top1_error - base.top1_error, entry.top5_error - base.top5_error
