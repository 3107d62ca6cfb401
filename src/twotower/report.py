"""The report of sweeps and runs, in one folder: report.html, table.md, table.csv, runs.csv, summary.json, pictures.

Runs (`collect`) become groups and differences (`compare`), tables and pictures (`report_tables`, `report_csv`,
`report_summary`, `report_figures`), and then a page (`page`).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from twotower.collect import FINISHED, Found, check_one_data_set, describe_data, find_runs
from twotower.compare import Comparison, compare
from twotower.config import Config, EvaluateConfig, ReportConfig
from twotower.evaluate import evaluate_run
from twotower.journal import write_json
from twotower.mirror import log_figures_of_several
from twotower.page import MARK, Cell, Page, Section, Table, render
from twotower.report_csv import write_runs_csv, write_table_csv
from twotower.report_figures import draw, draw_of_run
from twotower.report_summary import summarise
from twotower.report_tables import (
    as_markdown,
    colour_table,
    commands_table,
    differences_table,
    errors_table,
    has_kernels,
    runs_table,
)
from twotower.sweep import file_name
from twotower.tables import as_rows, make_page

PAGE = "report.html"
# Tells an earlier report from a folder of something else, also when it was interrupted.
_UNFINISHED = f"<!DOCTYPE html>{MARK}<title>unfinished</title><p>The same command makes this report again.</p>"


def _labbook_section(comparison: Comparison) -> Section:
    """Of groups that differ from the baseline in their names alone: others are no run of the lab book."""
    runs = [run for group in comparison.groups if not group.changes for run in group.runs if has_kernels(run)]
    page = make_page([str(run.run_dir) for run in runs])
    tables = [
        Table(title, heads, [[Cell(text) for text in row] for row in rows]) for title, heads, rows in as_rows(page)
    ]
    what = "Top-1 / top-5 error in percent. Ours are headed by the images that they were measured on."
    return Section("The lab book of 2012, and ours", [what, *page.remarks], tables, [])


def _complete(runs: Sequence[Found], settings: ReportConfig) -> list[str]:
    """Evaluates and draws what was asked for and is missing. Returns what could not be done."""
    remarks = []
    for run in runs:
        if run.status != FINISHED or not has_kernels(run) or run.errors is None:
            continue
        try:
            if settings.evaluate and "ten" not in run.errors:
                print(f"evaluating {run.name} in ten crops", flush=True)
                evaluate_run(EvaluateConfig(run=str(run.run_dir), crops="ten"))
            if settings.figures:
                print(f"drawing {run.name}", flush=True)
                draw_of_run(run)
        except (ValueError, OSError) as error:
            remarks.append(f"{run.name}: {error}")
    return remarks


def _lead(runs: Sequence[Found], comparison: Comparison, roots: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    base = comparison.baseline
    config = base.config
    network = f"{config.network.name} at width {config.network.width:g}, batches of {config.optim.batch_size}"
    return [
        f"{len(runs)} runs in {', '.join(roots)}: {told}. Trained on {describe_data(base.runs[0])}.",
        f"The baseline is {base.label}: {network}, {base.mean_of('epochs'):.3g} epochs.",
        f"Made on {datetime.now():%Y-%m-%d %H:%M}.",
    ]


def _write_config(config: Config, path: Path) -> None:
    """Without the places where run and data happened to lie."""
    root = config.data.root
    data = replace(config.data, root=None if root is None else Path(root).name, cache=None)
    OmegaConf.save(OmegaConf.structured(replace(config, data=data, run_dir=None, sweep_dir=None)), path)


def _may_be_written(folder: Path) -> bool:
    """Whether an existing folder is empty or has an earlier report."""
    if not folder.is_dir():
        return False
    page = folder / PAGE
    return not any(folder.iterdir()) or (page.is_file() and MARK in page.read_text(errors="replace")[:4000])


def make_report(settings: ReportConfig) -> Path:
    """Writes the report. Returns the path of its page.

    Raises: ValueError for a folder without runs, runs of different data sets, no finished run, an unknown baseline,
    or an output that holds something else.
    """
    folder = Path(settings.output)
    if folder.exists() and not _may_be_written(folder):
        raise ValueError(f"output={folder} exists and is no earlier report; give a new folder.")
    runs = find_runs(settings.folders)
    check_one_data_set(runs)
    compare(runs, settings.baseline)  # what is wrong with them is said before anything is computed
    undone = _complete(runs, settings)
    runs = find_runs(settings.folders)
    comparison = compare(runs, settings.baseline)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(_UNFINISHED)
    figures, remarks = draw(folder, runs, comparison)
    errors, differences, commands = (
        errors_table(comparison),
        differences_table(comparison),
        commands_table(comparison),
    )
    all_runs, colour, labbook = runs_table(runs), colour_table(runs), _labbook_section(comparison)
    main_tables = [errors, *([differences] if len(comparison.groups) > 1 else [])]
    sections = [
        Section("Comparison", [*comparison.remarks, *remarks, *undone], main_tables, figures["comparison"]),
        Section("Curves", [], [], figures["curves"]),
        Section("Colour in the first layer", [], [colour] if colour is not None else [], figures["colour"]),
        Section("More of these runs", [], [], figures["runs"]),
        Section("Runs and commands", [], [all_runs, commands], []),
        labbook,
    ]
    lead = _lead(runs, comparison, settings.folders)
    kept = [section for section in sections if section.tables or section.figures]
    page = Page("twotower: " + ", ".join(Path(root).resolve().name for root in settings.folders), lead, kept)
    write_table_csv(comparison, folder / "table.csv")
    write_runs_csv(runs, folder / "runs.csv")
    write_json(folder / "summary.json", summarise(runs, comparison))
    for group in comparison.groups:
        _write_config(group.config, folder / f"config-{file_name(group.label)}.yaml")
    parts = [*lead, *comparison.remarks, *remarks, *undone, *(as_markdown(one) for one in main_tables)]
    parts += [as_markdown(one) for one in (all_runs, commands, *([colour] if colour is not None else []))]
    parts += [as_markdown(table) for table in labbook.tables]
    (folder / "table.md").write_text(f"# {page.title}\n\n" + "\n\n".join(part.rstrip() for part in parts) + "\n")
    (folder / PAGE).write_text(render(page))
    drawn = {figure.png.stem: figure.png for several in figures.values() for figure in several}
    base = comparison.baseline
    log_figures_of_several(base.runs[0].run_dir, base.config, folder, drawn, name=folder.resolve().name)
    return folder / PAGE
