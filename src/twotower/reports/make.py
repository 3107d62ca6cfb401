"""The report of sweeps and runs, in one folder: report.html, table.md, table.csv, runs.csv, summary.json, pictures.

Runs (`collect`) become groups and differences (`compare`), tables and pictures (`tables`, `spreadsheets`,
`summary`, `pictures`), and then a page (`contents`, `page`).
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from twotower.config import EvaluateConfig, ReportConfig
from twotower.config.paths import without_places
from twotower.evaluation.evaluate import evaluate_run
from twotower.ground.files import filled_whole, write_json, write_text
from twotower.ground.links import refuse_links
from twotower.ground.wording import word_error
from twotower.reports.collect import find_runs
from twotower.reports.compare import Comparison, compare
from twotower.reports.contents import Contents, gather_contents
from twotower.reports.data_sets import check_one_data_set, leave_out_odd_images
from twotower.reports.kept_runs import keep_runs
from twotower.reports.page import MARK, render
from twotower.reports.pictures import draw_of_run, draw_pictures
from twotower.reports.run_records import Run, Trace, list_finished
from twotower.reports.spreadsheets import make_groups_spreadsheet, make_runs_spreadsheet
from twotower.reports.summary import summarise
from twotower.reports.table import as_csv
from twotower.reports.tables import has_kernels
from twotower.runs.mirrors.open_mirrors import log_figures_of_several
from twotower.training.sweep_names import name_file

PAGE = "report.html"
# It distinguishes an earlier report from a folder of something else, also when the report was interrupted.
_UNFINISHED = f"<!DOCTYPE html>{MARK}<title>unfinished</title><p>The same command makes this report again.</p>"


def make_report(settings: ReportConfig) -> Path:
    """Writes the report. Returns the path of its page.

    Raises: ValueError for a folder without runs, runs of different data sets, no finished run, an unknown baseline,
    or an output that holds something else, or a link that leads out of it; OSError, DiskFullError, and an earlier
    report is as it was.
    """
    folder = Path(settings.output)
    if folder.exists() and not _may_be_written(folder):
        raise ValueError(f"output={folder} exists and is no earlier report; give a new folder.")
    refuse_links(folder)
    folders = _without_files(settings.folders)
    runs = leave_out_odd_images(find_runs(folders, settings.data_root))
    check_one_data_set(runs)
    compare(runs, settings.baseline)  # raises for runs that cannot be compared, before anything is computed
    undone = _complete(runs, settings)
    if settings.evaluate or settings.figures:
        verified = {run.run_dir: run.manifest for run in runs if isinstance(run, Run)}
        runs = leave_out_odd_images(find_runs(folders, settings.data_root, verified))
    comparison = compare(runs, settings.baseline)
    if settings.keep is not None:
        keep_runs(list_finished(runs), Path(settings.keep))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PAGE).exists():
        write_text(folder / PAGE, _UNFINISHED)
    with filled_whole(folder, last=PAGE) as pending:  # an earlier report stays whole if the disk is full
        pictures = draw_pictures(pending, runs, comparison)
        contents = gather_contents(folders, runs, comparison, pictures, undone)
        _write(pending, runs, comparison, contents)
    drawn = {figure.png.stem: folder / figure.png.name for figure in pictures.list_figures()}
    base = comparison.baseline
    own = next((run for run in base.runs if not run.is_kept), None)
    if own is not None:
        log_figures_of_several(own.run_dir, base.config, folder, drawn, name=folder.resolve().name)
    return folder / PAGE


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


def _complete(runs: Sequence[Trace], settings: ReportConfig) -> list[str]:
    """Makes missing evaluations and drawings that are asked for. Returns remarks on those that failed."""
    remarks = []
    for run in list_finished(runs):
        if not has_kernels(run):
            continue
        try:
            if settings.evaluate and "ten" not in run.errors:
                print(f"evaluating {run.name} in ten crops", flush=True)
                asked = EvaluateConfig(run=str(run.run_dir), crops="ten", data_root=settings.data_root)
                evaluate_run(asked, run.manifest)
            if settings.figures:
                print(f"drawing {run.name}", flush=True)
                draw_of_run(run, settings.data_root)
        except (ValueError, OSError) as error:
            remarks.append(f"{run.name}: {word_error(error)}")
    return remarks


def _write(folder: Path, runs: Sequence[Trace], comparison: Comparison, contents: Contents) -> None:
    """Writes all files but the pictures, the page last."""
    texts = {
        "table.csv": as_csv(make_groups_spreadsheet(comparison)),
        "runs.csv": as_csv(make_runs_spreadsheet(runs)),
        "table.md": contents.as_markdown(),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "summary.json", summarise(runs, comparison))
    for group in comparison.groups:
        config = OmegaConf.to_yaml(OmegaConf.structured(without_places(group.config)))
        write_text(folder / f"config-{name_file(group.label)}.yaml", config)
    write_text(folder / PAGE, render(contents.make_page()))
