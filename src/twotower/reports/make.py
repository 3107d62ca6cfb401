"""The report of sweeps and runs, in one folder: report.html, table.md, table.csv, runs.csv, summary.json, pictures.

Runs (`collect`) become groups and differences (`compare`), tables and pictures (`tables`, `spreadsheets`,
`summary`, `pictures`), and then a page (`page`).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from twotower.config import Config, EvaluateConfig, ReportConfig
from twotower.config.places import short_place
from twotower.evaluation.evaluate import evaluate_run
from twotower.ground.files import write_json
from twotower.ground.words import counted, counted_epochs
from twotower.reports.collect import find_runs
from twotower.reports.compare import Comparison, compare
from twotower.reports.data_sets import check_one_data_set, describe_data
from twotower.reports.labbook_page import make_page
from twotower.reports.labbook_tables import as_tables
from twotower.reports.page import MARK, Page, Section, render
from twotower.reports.pictures import draw, draw_of_run
from twotower.reports.run import Run, Trace, list_finished
from twotower.reports.spreadsheets import groups_spreadsheet, runs_spreadsheet
from twotower.reports.summary import summarise
from twotower.reports.table import as_csv, as_markdown
from twotower.reports.tables import (
    colour_table,
    commands_table,
    differences_table,
    errors_table,
    has_kernels,
    runs_table,
)
from twotower.runs.mirrors.open_mirrors import log_figures_of_several
from twotower.training.sweep import file_name

PAGE = "report.html"
# Tells an earlier report from a folder of something else, also when it was interrupted.
_UNFINISHED = f"<!DOCTYPE html>{MARK}<title>unfinished</title><p>The same command makes this report again.</p>"


def _labbook_section(comparison: Comparison) -> tuple[Section, list[str]]:
    """Lists groups that differ from the baseline in their names alone: others are no run of the lab book.

    Without tables, and with a remark, where none of ours was measured on the paper's images: what is left of them
    would be the lab book alone.
    """
    runs = [run for group in comparison.groups if not group.changes for run in group.runs if has_kernels(run)]
    page = make_page([str(run.run_dir) for run in runs])
    title = "The lab book of 2012, and ours"
    if not page.has_comparable:
        remark = (
            "The lab book of 2012 is left out, as none of these runs was evaluated on the images of ILSVRC; python "
            "launch/labbook.py prints it."
        )
        return Section(title), [remark]
    # A report numbers its tables itself, so the paper's numbers stand behind.
    tables = [
        replace(table, title=re.sub(r"^(Table \d+): (.*)", r"\2 (\1 of the paper)", table.title))
        for table in as_tables(page)
    ]
    what = "Top-1 / top-5 error in percent. Ours are headed by the images that they were measured on."
    return Section(title, [what, *page.remarks], tables, []), []


def _complete(runs: Sequence[Trace], settings: ReportConfig) -> list[str]:
    """Evaluates and draws what was asked for and is missing. Returns what could not be done."""
    remarks = []
    for run in list_finished(runs):
        if not has_kernels(run):
            continue
        try:
            if settings.evaluate and "ten" not in run.errors:
                print(f"evaluating {run.name} in ten crops", flush=True)
                evaluate_run(EvaluateConfig(run=str(run.run_dir), crops="ten", data_root=settings.data_root))
            if settings.figures:
                print(f"drawing {run.name}", flush=True)
                draw_of_run(run, settings.data_root)
        except (ValueError, OSError) as error:
            remarks.append(f"{run.name}: {error}")
    return remarks


def _lead(runs: Sequence[Trace], comparison: Comparison, roots: Sequence[str]) -> list[str]:
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    base = comparison.baseline
    config = base.config
    name = f"{config.network.name}, {base.label}"
    if base.label == "none":
        name = f"{config.network.name} without an ablation (none in the tables)"
    how = f"width {config.network.width:g}, batches of {counted(config.optim.batch_size, 'image')}"
    return [
        f"{counted(len(runs), 'run')} in {', '.join(roots)}: {told}. Trained on {describe_data(base.runs[0])}.",
        f"The baseline is {name}: {how}, {counted_epochs(base.mean_of('epochs'))}.",
        f"Made on {datetime.now():%Y-%m-%d %H:%M}.",
    ]


def _write_config(config: Config, path: Path) -> None:
    """Without the places where runs and data happened to lie."""
    root, weights = config.data.root, config.initial_weights
    name = None if root is None or config.data.kind == "shapes" else Path(root).name
    here = replace(
        config,
        data=replace(config.data, root=name, cache=None),
        initial_weights=replace(weights, path=None if weights.path is None else short_place(weights.path)),
        run_dir=None,
        sweep_dir=None,
        resume="none",
    )
    OmegaConf.save(OmegaConf.structured(here), path)


def _may_be_written(folder: Path) -> bool:
    """Whether an existing folder is empty or has an earlier report."""
    if not folder.is_dir():
        return False
    page = folder / PAGE
    return not any(folder.iterdir()) or (
        page.is_file() and MARK in page.read_text(encoding="utf-8", errors="replace")[:4000]
    )


def _without_files(folders: Sequence[str]) -> list[str]:
    """Drops plain files among the folders that a shell puts in place of sweeps/*, with a line for each."""
    files = [path for path in folders if Path(path).is_file()]
    if len(files) == len(folders):
        return list(folders)
    for path in files:
        print(f"passed over, as it is a file: {path}", flush=True)
    return [path for path in folders if path not in files]


def make_report(settings: ReportConfig) -> Path:
    """Writes the report. Returns the path of its page.

    Raises: ValueError for a folder without runs, runs of different data sets, no finished run, an unknown baseline,
    or an output that holds something else.
    """
    folder = Path(settings.output)
    if folder.exists() and not _may_be_written(folder):
        raise ValueError(f"output={folder} exists and is no earlier report; give a new folder.")
    folders = _without_files(settings.folders)
    runs = find_runs(folders, settings.data_root)
    check_one_data_set(runs)
    compare(runs, settings.baseline)  # what is wrong with them is said before anything is computed
    undone = _complete(runs, settings)
    if settings.evaluate or settings.figures:
        verified = {run.run_dir: run.manifest for run in runs if isinstance(run, Run)}
        runs = find_runs(folders, settings.data_root, verified)
    comparison = compare(runs, settings.baseline)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(_UNFINISHED, encoding="utf-8")
    figures, remarks = draw(folder, runs, comparison)
    errors, differences, commands = (
        errors_table(comparison),
        differences_table(comparison),
        commands_table(comparison),
    )
    all_runs, colour, (labbook, left_out) = runs_table(runs), colour_table(runs), _labbook_section(comparison)
    main_tables = [errors, *([differences] if len(comparison.groups) > 1 else [])]
    sections = [
        Section("Comparison", [*comparison.remarks, *remarks, *undone], main_tables, figures["comparison"]),
        Section("Curves", [], [], figures["curves"]),
        Section("Colour in the first layer", [], [colour] if colour is not None else [], figures["colour"]),
        Section("More of these runs", [], [], figures["runs"]),
        Section("Runs and commands", [], [all_runs, commands], []),
        labbook,
    ]
    lead = [*_lead(runs, comparison, folders), *left_out]
    kept = [section for section in sections if section.tables or section.figures]
    page = Page("twotower: " + ", ".join(Path(root).resolve().name for root in folders), lead, kept)
    (folder / "table.csv").write_text(as_csv(groups_spreadsheet(comparison)), encoding="utf-8")
    (folder / "runs.csv").write_text(as_csv(runs_spreadsheet(runs)), encoding="utf-8")
    write_json(folder / "summary.json", summarise(runs, comparison))
    for group in comparison.groups:
        _write_config(group.config, folder / f"config-{file_name(group.label)}.yaml")
    parts = [*lead, *comparison.remarks, *remarks, *undone, *(as_markdown(one) for one in main_tables)]
    parts += [as_markdown(one) for one in (all_runs, commands, *([colour] if colour is not None else []))]
    parts += [as_markdown(table) for table in labbook.tables]
    text = f"# {page.title}\n\n" + "\n\n".join(part.rstrip() for part in parts) + "\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    (folder / PAGE).write_text(render(page), encoding="utf-8")
    drawn = {figure.png.stem: figure.png for several in figures.values() for figure in several}
    base = comparison.baseline
    log_figures_of_several(base.runs[0].run_dir, base.config, folder, drawn, name=folder.resolve().name)
    return folder / PAGE
