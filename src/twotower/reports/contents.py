"""The contents of a report: its paragraphs, tables and pictures in their order, for the page and for Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from twotower.ground.wording import counted, counted_epochs
from twotower.reports.compare import Comparison
from twotower.reports.data_sets import describe_data
from twotower.reports.labbook_page import make_page
from twotower.reports.labbook_tables import as_tables
from twotower.reports.page import Page, Section
from twotower.reports.pictures import Pictures
from twotower.reports.run_records import Trace
from twotower.reports.table import Table, as_markdown, escape_markdown
from twotower.reports.tables import (
    has_kernels,
    make_colour_table,
    make_commands_table,
    make_differences_table,
    make_errors_table,
    make_runs_table,
)


@dataclass(frozen=True)
class Contents:
    """All that a report says.

    Attributes:
        lead: paragraphs before the first section.
        remarks: paragraphs before the tables of the comparison.
        colour: None where no run has two towers and a checkpoint.
        labbook: the lab book's tables with ours; None where no run was evaluated on the paper's images.
    """

    title: str
    lead: list[str]
    remarks: list[str]
    comparison: list[Table]
    colour: Table | None
    runs: Table
    commands: Table
    labbook: Section | None
    pictures: Pictures

    def make_page(self) -> Page:
        """All sections that hold a table or a picture."""
        pictures, colour = self.pictures, [self.colour] if self.colour is not None else []
        sections = [
            Section("Comparison", self.remarks, self.comparison, pictures.comparison),
            Section("Curves", figures=pictures.curves),
            Section("Colour in the first layer", tables=colour, figures=pictures.colour),
            Section("More of these runs", figures=pictures.runs),
            Section("Runs and commands", tables=[self.runs, self.commands]),
            *([self.labbook] if self.labbook is not None else []),
        ]
        return Page(self.title, self.lead, [part for part in sections if part.tables or part.figures])

    def as_markdown(self) -> str:
        """The paragraphs and tables as one document of GitHub's Markdown."""
        tables = [*self.comparison, self.runs, self.commands]
        tables += [self.colour] if self.colour is not None else []
        tables += self.labbook.tables if self.labbook is not None else []
        paragraphs = [escape_markdown(paragraph) for paragraph in (*self.lead, *self.remarks)]
        parts = [*paragraphs, *(as_markdown(table) for table in tables)]
        return f"# {escape_markdown(self.title)}\n\n" + "\n\n".join(part.rstrip() for part in parts) + "\n"


def gather_contents(
    folders: Sequence[str],
    runs: Sequence[Trace],
    comparison: Comparison,
    pictures: Pictures,
    undone: Sequence[str],
) -> Contents:
    """Makes all paragraphs and tables.

    Args:
        folders: the sweeps and runs, as they were given.
        undone: sentences on evaluations and drawings that failed.
    """
    labbook, left_out = _make_labbook_section(comparison)
    has_differences = len(comparison.groups) > 1
    return Contents(
        title="twotower: " + ", ".join(Path(root).resolve().name for root in folders),
        lead=[*_describe(runs, comparison, folders), *left_out],
        remarks=[*comparison.remarks, *pictures.remarks, *undone],
        comparison=[
            make_errors_table(comparison),
            *([make_differences_table(comparison)] if has_differences else []),
        ],
        colour=make_colour_table(runs),
        runs=make_runs_table(runs),
        commands=make_commands_table(comparison),
        labbook=labbook,
        pictures=pictures,
    )


def _make_labbook_section(comparison: Comparison) -> tuple[Section | None, list[str]]:
    """The lab book with the groups that differ from the baseline in their names alone: it has no run like the others.

    None, and a remark, where none of ours was measured on the paper's images: the section would show the lab book
    alone.
    """
    runs = [run for group in comparison.groups if not group.changes for run in group.runs if has_kernels(run)]
    page = make_page([str(run.run_dir) for run in runs])
    if not page.has_comparable:
        remark = (
            "The lab book of 2012 is left out, as none of these runs was evaluated on the images of ILSVRC; python "
            "launch/labbook.py prints it."
        )
        return None, [remark]
    # A report numbers its tables itself, so the paper's numbers stand behind.
    tables = [
        replace(table, title=re.sub(r"^(Table \d+): (.*)", r"\2 (\1 of the paper)", table.title))
        for table in as_tables(page)
    ]
    legend = "Top-1 / top-5 error in percent. Ours are headed by the images that they were measured on."
    return Section("The lab book of 2012, and ours", [legend, *page.remarks], tables), []


def _describe(runs: Sequence[Trace], comparison: Comparison, roots: Sequence[str]) -> list[str]:
    """Paragraphs on the runs, the baseline and the date."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    base = comparison.baseline
    config = base.config
    name = f"{config.network.name}, {base.label}"
    if base.label == "none":
        name = f"{config.network.name} without an ablation (none in the tables)"
    recipe = f"width {config.network.width:g}, batches of {counted(config.optim.batch_size, 'image')}"
    return [
        f"{counted(len(runs), 'run')} in {', '.join(roots)}: {statuses}. Trained on {describe_data(base.runs[0])}.",
        f"The baseline is {name}: {recipe}, {counted_epochs(base.mean_of('epochs'))}.",
        f"Made on {datetime.now():%Y-%m-%d %H:%M}.",
    ]
