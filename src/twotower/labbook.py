"""What the 2012 runs reached, run by run, from the notes that their author kept in the original source.

labbook.csv holds, for each run and view: ILSVRC year and set, mean -ln p in nats, error rates in percent, the run
that it is to be compared with, and where the paper prints it. Tables 1 and 2 and the ablations are made from it.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files

VIEWS = ("centre", "10-view")


@dataclass(frozen=True)
class Entry:
    """One result.

    Attributes:
        run: name of the parameters file, e.g. 145-2010.
        set: val (50,000 images) or test (150,000, only 2010).
        view: centre crop or 10-view (mean of the softmax outputs of ten crops).
        nll: mean -ln p of the label, in nats; None where it was not noted.
        top1_error, top5_error: percent.
        baseline: the run that this one is a change of; empty for none.
        paper_item: where the paper has this number; empty if nowhere.
        change: what is different from the baseline.
    """

    run: str
    year: int
    set: str
    view: str
    nll: float | None
    top1_error: float
    top5_error: float
    baseline: str
    paper_item: str
    change: str


def read_labbook() -> list[Entry]:
    """All entries, in the order of the file."""
    text = files("twotower").joinpath("labbook.csv").read_text()
    return [
        Entry(
            run=row["run"],
            year=int(row["year"]),
            set=row["set"],
            view=row["view"],
            nll=float(row["nll"]) if row["nll"] else None,
            top1_error=float(row["top1_error"]),
            top5_error=float(row["top5_error"]),
            baseline=row["baseline"],
            paper_item=row["paper_item"],
            change=row["change"],
        )
        for row in csv.DictReader(text.splitlines())
    ]


def baseline_of(entry: Entry, entries: list[Entry]) -> Entry | None:
    """The result of the baseline on the same images in the same view; None where there is none.

    The notes name 145 for both years; the net of 2010 is 145-2010.
    """
    names = (entry.baseline, f"{entry.baseline}-{entry.year}") if entry.baseline else ()
    for other in entries:
        same = (other.year, other.set, other.view) == (entry.year, entry.set, entry.view)
        if other.run in names and same:
            return other
    return None
