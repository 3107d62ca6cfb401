"""Runs kept without their weights: a report of them says what that of the runs said, alone and beside others."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from helpers.fake_runs import fake_config, save_checkpoint
from helpers.fake_sweeps import leave_run, sweep
from twotower.config import ReportConfig
from twotower.reports import make
from twotower.reports.collect import find_runs
from twotower.reports.make import make_report
from twotower.reports.run_records import FinishedRun, list_finished
from twotower.runs.history import read_history


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, fake_config(folder), seed=0)
    return folder


def report(tmp_path: Path, *folders: Path, name: str = "report", keep: Path | None = None) -> Path:
    settings = ReportConfig([str(folder) for folder in folders], output=str(tmp_path / name))
    settings.keep = None if keep is None else str(keep)
    return make_report(settings).parent


def read_rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_report_of_kept_runs_is_that_of_the_runs(tmp_path: Path, checkpoint_folder: Path) -> None:
    runs = sweep(tmp_path / "sweep", checkpoint_folder)
    first = report(tmp_path, runs, keep=tmp_path / "kept")
    shutil.rmtree(runs)
    second = report(tmp_path, tmp_path / "kept", name="second")
    assert read_rows(first, "table.csv") == read_rows(second, "table.csv")
    assert len(read_rows(second, "table.csv")) == 3
    errors = (
        "status",
        "seed",
        "top1_error_centre",
        "top5_error_centre",
        "top1_error_ten",
        "top5_error_ten",
        "command",
    )
    told = [[[row[key] for key in errors] for row in read_rows(folder, "runs.csv")] for folder in (first, second)]
    assert told[0] == told[1]
    assert {row["top1_error_ten"] for row in read_rows(second, "runs.csv")} == {"38", "40", "45", ""}
    assert {row["remark"] for row in read_rows(second, "runs.csv")} == {"kept without its weights"}
    ours, theirs = (json.loads((folder / "summary.json").read_text())["groups"] for folder in (first, second))
    assert ours["no_lrn"]["differences"]["top1_error_centre"]["mean"] == 3
    assert [ours[name]["differences"] for name in ours] == [theirs[name]["differences"] for name in theirs]


def test_kept_runs_stand_beside_others(tmp_path: Path, checkpoint_folder: Path) -> None:
    report(tmp_path, sweep(tmp_path / "sweep", checkpoint_folder), keep=tmp_path / "kept")
    more = tmp_path / "more" / "none-seed3"
    leave_run(more, 45.0, "seed=3", weights=checkpoint_folder)
    both = report(tmp_path, tmp_path / "kept", tmp_path / "more", name="both", keep=tmp_path / "kept")
    assert read_rows(both, "table.csv")[0]["seeds"] == "0 1 2 3"
    kept = [run.name for run in find_runs([str(tmp_path / "kept")])]
    assert len(kept) == 9, "the runs that are kept there already stay, and the new one comes"
    assert "more/none-seed3" in kept
    other_images = tmp_path / "others" / "none-seed4"
    leave_run(other_images, 45.0, "seed=4", data=1)
    with pytest.raises(ValueError, match="different images"):
        report(tmp_path, tmp_path / "kept", tmp_path / "others", name="mixed")


def test_the_curves_are_kept_by_epoch(tmp_path: Path) -> None:
    run = leave_run(tmp_path / "sweep" / "run", 40.0)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # Three lines of unlike lengths within the first epoch, and values by layer that are left out.
    within = [{**lines[0], "step": step, "epoch": step / 4, "loss": loss} for step, loss in ((1, 7.0), (2, 4.0))]
    layers = {"event": "scales", "step": 4, "tower0/conv1/weight": 0.1}
    changed = [*within, lines[0], layers, *lines[1:]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    report(tmp_path, tmp_path / "sweep", keep=tmp_path / "kept")
    kept = tmp_path / "kept" / "sweep" / "run"
    ours, theirs = read_history(run), read_history(kept)
    assert ours.epochs[0].train["loss"] == (7.0 + 4.0 + 2 * 2.0) / 4
    assert ours.epochs == theirs.epochs
    assert (len(ours.windows), len(theirs.windows)) == (4, 2)
    assert ours.finished
    assert theirs.finished
    assert "scales" not in (kept / "metrics.jsonl").read_text()


def test_nothing_says_where_the_runs_were(tmp_path: Path, checkpoint_folder: Path) -> None:
    report(tmp_path, sweep(tmp_path / "sweep", checkpoint_folder), keep=tmp_path / "kept")
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"config.yaml", "kept.json", "metrics.jsonl", "summary.json"}
    assert not [path for path in files if str(tmp_path) in path.read_text()]


def test_a_place_holds_one_run(tmp_path: Path) -> None:
    leave_run(tmp_path / "a" / "sweep" / "run", 40.0, "seed=0")
    leave_run(tmp_path / "b" / "sweep" / "run", 40.0, "seed=1")
    for folder in ("a", "b"):  # the same images lie in both
        config = tmp_path / folder / "sweep" / "run" / "config.yaml"
        config.write_text(config.read_text().replace(f"{tmp_path / folder}", f"{tmp_path}"))
    with pytest.raises(ValueError, match=r"would both be kept at .*; rename the folder of a sweep"):
        report(tmp_path, tmp_path / "a", tmp_path / "b", keep=tmp_path / "kept")
    assert not (tmp_path / "kept").exists(), "nothing is written"
    report(tmp_path, tmp_path / "a", keep=tmp_path / "kept")
    before = (tmp_path / "kept" / "sweep" / "run" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="which holds something else"):
        report(tmp_path, tmp_path / "b", keep=tmp_path / "kept")
    assert (tmp_path / "kept" / "sweep" / "run" / "config.yaml").read_bytes() == before
    report(tmp_path, tmp_path / "a", keep=tmp_path / "kept")  # the same run again
    kept = tmp_path / "kept" / "sweep" / "run"
    (kept / "config.yaml").rename(kept / ".config.yaml.pending")  # as after a stop, because it is written last
    report(tmp_path, tmp_path / "a", keep=tmp_path / "kept")
    assert (kept / "config.yaml").exists()
    (kept / "config.yaml").rename(kept / "mine.yaml")
    with pytest.raises(ValueError, match="which holds something else"):
        report(tmp_path, tmp_path / "a", keep=tmp_path / "kept")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"errors": {"centre": [40.0, 101.0]}}, "errors.centre.1"),
        ({"errors": {"twelve": [40.0, 2.0]}}, "errors.twelve"),
        ({"errors": {"centre": [40.0]}}, "errors.centre"),
        ({"mean_image": "0"}, "mean_image"),
        ({"num_val": -1}, "num_val"),
        ({"more": 1}, "more"),
    ],
)
def test_a_damaged_file_leaves_the_run_out(change: dict[str, object], told: str, tmp_path: Path) -> None:
    leave_run(tmp_path / "sweep" / "run", 40.0)
    leave_run(tmp_path / "sweep" / "other", 40.0, "seed=1")
    report(tmp_path, tmp_path / "sweep", keep=tmp_path / "kept")
    path = tmp_path / "kept" / "sweep" / "run" / "kept.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    other, run = find_runs([str(tmp_path / "kept")])
    assert isinstance(other, FinishedRun)
    assert run.status == "damaged"
    assert told in run.remark
    assert "keep the run again from its folder" in run.remark


def test_other_images_in_a_kept_run_are_told_by_its_file(tmp_path: Path) -> None:
    for seed in range(3):
        leave_run(tmp_path / "sweep" / f"seed{seed}", 40.0, f"seed={seed}")
    report(tmp_path, tmp_path / "sweep", keep=tmp_path / "kept")
    path = tmp_path / "kept" / "sweep" / "seed1" / "kept.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean_image": "0" * 64}))
    rows = read_rows(report(tmp_path, tmp_path / "kept"), "runs.csv")
    assert [row["status"] for row in rows] == ["finished", "damaged", "finished"]
    assert "seed1/kept.json is of other images" in rows[1]["remark"]


def test_a_kept_run_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Path] = []
    monkeypatch.setattr(make, "log_figures_of_several", lambda run_dir, *_, **__: sent.append(run_dir))
    run = leave_run(tmp_path / "sweep" / "run", 40.0)
    report(tmp_path, tmp_path / "sweep", keep=tmp_path / "kept")
    assert sent == [run]
    report(tmp_path, tmp_path / "kept", name="second")
    assert sent == [run]
    assert len(list_finished(find_runs([str(tmp_path / "kept")]))) == 1
