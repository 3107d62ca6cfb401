"""Reports: runs found whatever became of them, differences paired by seed, no table of what is not alike."""

import csv
import json
import math
import re
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.fake_runs import fake_config, save_checkpoint
from helpers.fake_sweeps import leave_run, sweep
from helpers.paths import ROOT
from twotower.config import ReportConfig
from twotower.reports import contents, own_results
from twotower.reports.collect import find_runs
from twotower.reports.compare import compare, estimate, find_recorded_difference
from twotower.reports.data_sets import check_one_data_set
from twotower.reports.make import make_report
from twotower.reports.tables import make_differences_table, make_errors_table, make_repeating_command, make_runs_table

# Quantiles of Student's t for 95 %, from a printed table.
T_2, T_1 = 4.302653, 12.706205


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, fake_config(folder), seed=0)
    return folder


def test_an_interval_is_students() -> None:
    errors = estimate([1.0, 2.0, 6.0])
    half = T_2 * statistics.stdev([1.0, 2.0, 6.0]) / math.sqrt(3)
    assert errors.mean == 3
    assert errors.spread == pytest.approx(math.sqrt(7))
    assert errors.interval == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert not errors.excludes_zero
    assert estimate([1.0, 1.2]).interval == pytest.approx((1.1 - T_1 * 0.1, 1.1 + T_1 * 0.1), abs=1e-5)
    assert estimate([4.0]).interval is None
    assert not estimate([4.0]).excludes_zero, "one seed shows nothing"
    assert estimate([1.0, 1.0 + 1e-13]).interval is None, "errors come in steps, and agree by chance"
    assert estimate([2.0, 2.1, 2.2]).excludes_zero


def test_differences_are_paired_by_seed(tmp_path: Path, checkpoint_folder: Path) -> None:
    comparison = compare(find_runs([str(sweep(tmp_path / "sweep", checkpoint_folder))]))
    assert [group.label for group in comparison.groups] == ["none", "no_lrn", "no_overlap"]
    no_lrn = comparison.groups[1]
    difference = comparison.difference(no_lrn, "centre", "top1_error")
    assert difference is not None
    assert (difference.mean, difference.count) == (3.0, 3)
    unpaired = statistics.stdev([41.0, 44.0, 53.0])
    assert difference.spread == pytest.approx(statistics.stdev([1.0, 2.0, 6.0])) != pytest.approx(unpaired)
    better = comparison.difference(comparison.groups[2], "centre", "top1_error")
    assert better is not None
    assert (better.mean, better.count) == (-1.0, 2), "a pair for each common seed"
    assert comparison.difference(no_lrn, "ten", "top1_error") is None, "not evaluated there"
    assert comparison.difference(comparison.baseline, "centre", "top1_error") is None
    ten = comparison.baseline.error("ten", "top1_error")
    assert ten is not None
    assert ten.mean == pytest.approx(statistics.mean([38.0, 40.0, 45.0]))


def test_another_baseline(tmp_path: Path) -> None:
    runs = find_runs([str(sweep(tmp_path))])
    comparison = compare(runs, "no_lrn")
    assert comparison.baseline.label == "no_lrn"
    against = {group.label: comparison.difference(group, "centre", "top1_error") for group in comparison.groups[1:]}
    assert against["none"] is not None
    assert against["none"].mean == -3
    with pytest.raises(ValueError, match=r"baseline=no_norm is no group .* no_lrn, no_overlap, none"):
        compare(runs, "no_norm")


def test_the_baseline_is_what_has_fewest_settings(tmp_path: Path) -> None:
    leave_run(tmp_path / "a", 41, "seed=0", "machine.precision=bf16")
    leave_run(tmp_path / "b", 40, "seed=0")
    comparison = compare(find_runs([str(tmp_path)]))
    assert [group.label for group in comparison.groups] == ["none", "none, machine.precision=bf16"]


def test_the_difference_of_2012_stands_where_only_the_ablation_changed(tmp_path: Path) -> None:
    leave_run(tmp_path / "a", 40, "seed=0")
    leave_run(tmp_path / "b", 41, "seed=0", "ablation=no_lrn")
    leave_run(tmp_path / "c", 41, "seed=0", "ablation=no_lrn", "optim.learning_rate=0.3")
    comparison = compare(find_runs([str(tmp_path)]))
    labels = [group.label for group in comparison.groups]
    assert labels == ["none", "no_lrn", "no_lrn, optim.learning_rate=0.3"]
    recorded = [find_recorded_difference(group, comparison.baseline) for group in comparison.groups]
    assert recorded[0] is None
    assert recorded[2] is None
    assert recorded[1] is not None
    assert (recorded[1].run, round(recorded[1].top1_error, 2), round(recorded[1].top5_error, 2)) == (
        "148",
        1.37,
        1.15,
    )
    assert len(comparison.remarks) == 1, "a second cause is said"
    assert "learning_rate" in comparison.remarks[0]


def test_the_difference_of_2012_is_to_the_run_of_2012(tmp_path: Path) -> None:
    """Next to another baseline, or without the paper's network, the difference of 2012 would have a wrong heading."""
    leave_run(tmp_path / "a", 41, "ablation=no_lrn")
    leave_run(tmp_path / "b", 42, "ablation=no_overlap")
    comparison = compare(find_runs([str(tmp_path)]))
    assert comparison.baseline.label == "no_lrn"
    assert [find_recorded_difference(group, comparison.baseline) for group in comparison.groups] == [None, None]
    leave_run(tmp_path / "c", 40)
    assert find_recorded_difference(*reversed(compare(find_runs([str(tmp_path)])).groups[:2])) is not None
    other = compare(find_runs([str(tmp_path)]), "no_lrn")
    assert [find_recorded_difference(group, other.baseline) for group in other.groups] == [None, None, None]


def test_what_was_changed_beside_an_ablation_is_named(tmp_path: Path) -> None:
    """This holds for the network and the input, which the ablation changes too, and for whichever run comes first."""
    leave_run(tmp_path / "a", 41, "ablation=no_lrn", "network.dropout_keep=1.0")
    leave_run(tmp_path / "b", 41, "ablation=no_lrn", "input.flip=false")
    leave_run(tmp_path / "c", 41, "ablation=no_lrn")
    leave_run(tmp_path / "d", 41, "ablation=no_flips")
    leave_run(tmp_path / "e", 41, "network=no_exchange")
    leave_run(tmp_path / "f", 40)
    comparison = compare(find_runs([str(tmp_path)]))
    assert [group.label for group in comparison.groups] == [
        "none",
        "no_lrn, network.dropout_keep=1.0",
        "no_lrn, input.flip=False",
        "no_lrn",
        "no_flips",
        "no_exchange",
    ]
    assert len(comparison.remarks) == 2
    recorded = [find_recorded_difference(group, comparison.baseline) for group in comparison.groups]
    assert [difference.run if difference is not None else None for difference in recorded] == [
        None,
        None,
        None,
        "148",
        None,
        "150",
    ]


def test_labels_are_never_alike(tmp_path: Path) -> None:
    changed = ("optim.momentum=0.5", "optim.learning_rate=0.1", "optim.weight_decay=0.1", "schedule.divide_by=3")
    leave_run(tmp_path / "a", 40)
    for number, patience in enumerate((7, 8)):
        leave_run(tmp_path / f"b{number}", 41, *changed, f"schedule.patience={patience}")
    comparison = compare(find_runs([str(tmp_path)]))
    labels = [group.label for group in comparison.groups]
    assert len(set(labels)) == 3
    assert all("schedule.patience=" in label for label in labels[1:])


def test_a_table_of_changes_is_named_and_not_printed(tmp_path: Path) -> None:
    """Unless two groups differ in nothing else."""
    leave_run(tmp_path / "a", 40)
    leave_run(tmp_path / "b", 41, "schedule=cifar_18pct")
    labels = [group.label for group in compare(find_runs([str(tmp_path)])).groups]
    assert labels[0] == "none"
    assert "another schedule.changes" in labels[1] or "more setting" in labels[1]
    assert "[" not in labels[1]
    leave_run(tmp_path / "c", 41, "schedule=cifar_18pct", "schedule.changes.1.weights=0.02")
    labels = [group.label for group in compare(find_runs([str(tmp_path)])).groups]
    assert len(set(labels)) == 3


def test_runs_of_one_name_in_two_sweeps(tmp_path: Path) -> None:
    leave_run(tmp_path / "one" / "ablation=none,seed=0", 40)
    leave_run(tmp_path / "two" / "ablation=none,seed=0", 41, "network=no_exchange")
    for root in ("one", "two"):  # two copies of one training set
        (tmp_path / root / "data0").mkdir()
    runs = find_runs([str(tmp_path / "one"), str(tmp_path / "two")])
    assert [run.name for run in runs] == ["one/ablation=none,seed=0", "two/ablation=none,seed=0"]


@pytest.mark.parametrize(
    ("file", "text", "remark"),
    [
        ("summary.json", "{}", "summary.json is damaged .it has no top1_error"),
        ("summary.json", '{"top1_error": 3', "summary.json is damaged .Invalid JSON"),
        ("summary.json", '{"top1_error": NaN, "top5_error": 3}', "top1_error: Input should be a finite number"),
        ("summary.json", "[3]", "should be an object"),
        (
            "metrics.jsonl",
            '{"event": "train", "step": 1}\n',
            "metrics.jsonl is damaged .train of step 1 has no epoch",
        ),
        ("metrics.jsonl", '{"event": "train"\n{"step": 1}\n', "line 1: Invalid JSON"),
        ("failure.json", "{}", "failure.json is damaged .it has no error"),
        ("config.yaml", "network: 3", "config.yaml does not fit"),
        ("config.yaml", "{[", "config.yaml is damaged"),
    ],
)
def test_a_damaged_run_is_left_out(file: str, text: str, remark: str, tmp_path: Path) -> None:
    leave_run(tmp_path / "good", 40, "seed=0")
    (leave_run(tmp_path / "bad", 10, "seed=1") / file).write_text(text)
    bad, good = sorted(find_runs([str(tmp_path)]), key=lambda run: run.name)
    assert (bad.status, good.status) == ("damaged", "finished")
    assert re.search(remark, bad.remark)
    assert compare([bad, good]).baseline.values("centre", "top1_error") == {0: 40}


@pytest.mark.parametrize("text", ["[]", "{", '{"identity": {"checkpoint": "?"}}', '{"identity": 3}'])
def test_an_evaluation_that_cannot_be_read_is_none(text: str, tmp_path: Path, checkpoint_folder: Path) -> None:
    run = leave_run(tmp_path / "run", 40, ten=38, weights=checkpoint_folder)
    (run / "evaluation.json").write_text(text)
    (read,) = find_runs([str(run)])
    assert (read.status, read.errors) == ("finished", {"centre": (40, 2.0)})
    assert "crops=ten" in read.remark


def test_ten_crops_of_other_images_do_not_count(tmp_path: Path, checkpoint_folder: Path) -> None:
    run = leave_run(tmp_path / "run", 40, ten=38, weights=checkpoint_folder)
    content = json.loads((run / "evaluation.json").read_text())
    for key, value in (("split", "test"), ("data", content["identity"]["data"] | {"root": "/elsewhere"})):
        other = content | {"identity": content["identity"] | {key: value}}
        (run / "evaluation.json").write_text(json.dumps(other))
        (read,) = find_runs([str(run)])
        assert read.errors == {"centre": (40, 2.0)}
    (read,) = find_runs([str(run)], data_root="/elsewhere")  # the folder that is said to hold its own images now
    assert read.errors == {"centre": (40, 2.0), "ten": (38, 1.0)}
    (run / "evaluation.json").write_text(json.dumps(content))
    (read,) = find_runs([str(run)])
    assert read.errors is not None
    assert read.errors["ten"] == (38, 1.0)


def test_runs_that_differ_in_a_setting_are_not_averaged(tmp_path: Path) -> None:
    for seed in (0, 1):
        leave_run(tmp_path / f"a{seed}", 40 + seed, f"seed={seed}")
        leave_run(tmp_path / f"b{seed}", 50 + seed, f"seed={seed}", "optim.momentum=0.5", "logging.every_steps=3")
    comparison = compare(find_runs([str(tmp_path)]))
    assert [group.label for group in comparison.groups] == ["none", "none, optim.momentum=0.5"]
    assert [group.values("centre", "top1_error") for group in comparison.groups] == [{0: 40, 1: 41}, {0: 50, 1: 51}]


def test_the_same_run_does_not_count_twice(tmp_path: Path) -> None:
    leave_run(tmp_path / "a", 40, "seed=0")
    leave_run(tmp_path / "b", 41, "seed=0")
    with pytest.raises(ValueError, match=r"a and .*b are the same experiment with the same seed 0"):
        compare(find_runs([str(tmp_path)]))
    assert len(find_runs([str(tmp_path), str(tmp_path / "a")])) == 2, "given twice, found once"


def test_runs_on_different_images_stand_in_no_table(tmp_path: Path) -> None:
    leave_run(tmp_path / "a", 40, "seed=0")
    leave_run(tmp_path / "b", 41, "seed=0", "ablation=no_lrn", data=1)
    with pytest.raises(
        ValueError, match=r"a \(folder data0, 7 classes\) and .*b \(folder data1, 7 classes\) have different images"
    ):
        check_one_data_set(find_runs([str(tmp_path)]))


def test_each_run_is_shown_as_what_it_is(tmp_path: Path, checkpoint_folder: Path) -> None:
    root = sweep(tmp_path / "sweep", checkpoint_folder)
    leave_run(root / "stopped", 39, "seed=7", finished=False)
    cut = leave_run(root / "cut", 39, "seed=8", finished=False)
    lines = (cut / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(lines[:-40])  # in the middle of its last line
    damaged = leave_run(root / "damaged", 39, "seed=9")
    (damaged / "metrics.jsonl").write_text(lines[:30] + "\n" + lines[30:])
    broken = leave_run(root / "nan", 39, "seed=5", finished=False)
    (broken / "failure.json").write_text(json.dumps({"error": "The loss is nan at step 8.", "time": "2026-01-01"}))
    (root / "never").mkdir()
    (root / "never" / "failure.json").write_text(json.dumps({"error": "No such data.", "job": "data.root=x"}))
    (root / "odd").mkdir()
    (root / "odd" / "not_applicable.json").write_text(
        json.dumps({"not_applicable": "It changes nothing.", "job": "x"})
    )
    (root / "foreign").mkdir()
    (root / "foreign" / "config.yaml").write_text("{[")
    leave_run(root / "light", 12, "seed=11", "optim.momentum=0.1")
    runs = {run.name: run for run in find_runs([str(root)])}
    assert {name: run.status for name, run in runs.items() if "=" not in name} == {
        "cut": "unfinished",
        "damaged": "damaged",
        "foreign": "damaged",
        "light": "finished",
        "nan": "failed",
        "never": "failed",
        "odd": "not applicable",
        "stopped": "unfinished",
    }
    assert "at epoch 2 of 2" in runs["stopped"].remark
    assert "nan at step 8" in runs["nan"].remark
    assert "line 1" in runs["damaged"].remark
    assert "no checkpoint" in runs["light"].remark
    assert "crops=ten" in runs["ablation=no_lrn,seed=0"].remark
    assert runs["ablation=none,seed=1"].remark == ""
    comparison = compare(list(runs.values()))
    counted = [run.name for group in comparison.groups for run in group.runs]
    assert not {"stopped", "cut", "damaged", "nan", "never", "odd", "foreign"} & set(counted)
    assert comparison.baseline.unfinished == 3
    shown = {row[0].text: row[1].text for row in make_runs_table(list(runs.values())).rows}
    assert shown == {name: run.status for name, run in runs.items()}


def test_commands_repeat_a_group(tmp_path: Path) -> None:
    comparison = compare(find_runs([str(sweep(tmp_path))]))
    assert make_repeating_command(comparison.groups[1]) == ("python launch/two_gpu.py -m ablation=no_lrn seed=0,1,2")
    leave_run(tmp_path / "single", 3, "seed=4", "optim.momentum=0.5")
    single = compare(find_runs([str(tmp_path / "single")]))
    assert make_repeating_command(single.baseline) == "python launch/two_gpu.py optim.momentum=0.5 seed=4"


def test_what_a_report_holds(tmp_path: Path, checkpoint_folder: Path) -> None:
    """The report has all its files, and the same numbers in each of them."""
    root = sweep(tmp_path / "sweep", checkpoint_folder)
    page = make_report(ReportConfig(folders=[str(root)], output=str(tmp_path / "report")))
    folder = page.parent
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "table.csv", "table.md", "runs.csv", "curves.png", "differences-centre.png"} <= names
    assert {"figure3-none.png", "figure3-no_lrn.png"} <= names
    rows = {row["group"]: row for row in csv.DictReader((folder / "table.csv").open())}
    assert float(rows["no_lrn"]["top1_error_centre_difference"]) == 3
    assert float(rows["no_lrn"]["top1_error_centre_low"]) == pytest.approx(3 - T_2 * math.sqrt(7 / 3), abs=1e-4)
    assert rows["none"]["top1_error_centre_difference"] == ""
    assert rows["none"]["seeds"] == "0 1 2"
    assert float(rows["none"]["megabytes_tower0"]) == 200
    assert len(list(csv.DictReader((folder / "runs.csv").open()))) == 8
    html, markdown = page.read_text(), (folder / "table.md").read_text()
    for text in (html, markdown):
        assert "+3.00" in text
        assert "-3.57 to +9.57" in text
        assert "one seed: no interval" not in text
        assert "The lab book of 2012 is left out, as none of these runs was evaluated on the images of ILSVRC" in text
        assert "Table 2: ILSVRC" not in text
        assert "The baseline is alexnet_2012 without an ablation (none in the tables)" in text
        assert "batches of 128 images, 2 epochs." in text
        assert "Differences to the baseline (alexnet_2012)" in text
    stale = root / "ablation=none,seed=1" / "figures"
    stale.mkdir()
    for name in ("figure3", "figure4"):
        Image.new("RGB", (7, 5), "red").save(stale / f"{name}.png")
    make_report(ReportConfig(folders=[str(root)], output=str(folder)))  # replaces an earlier report
    with Image.open(folder / "figure3-none.png") as image:
        assert min(image.size) > 400, "a report draws its own"
    (copied,) = folder.glob("figure4-*.png")
    assert "seed=1" in copied.name
    assert "figure4: none" in page.read_text()
    page.write_text("<p>my own page</p>")
    with pytest.raises(ValueError, match=r"is no earlier report"):
        make_report(ReportConfig(folders=[str(root)], output=str(folder)))
    assert page.read_text() == "<p>my own page</p>"


def test_the_lab_book_stands_where_it_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_folder: Path
) -> None:
    """The numbers of its tables stand behind their titles, because the report numbers its tables itself."""
    about = ("ILSVRC-2012 val", True)
    leave_run(tmp_path / "run", 43, ten=41, weights=checkpoint_folder)
    comparison = compare(find_runs([str(tmp_path)]))
    section, remarks = contents._make_labbook_section(comparison)
    assert (section, len(remarks)) == (None, 1)
    monkeypatch.setattr(own_results, "describe_images", lambda identity: about)
    section, remarks = contents._make_labbook_section(comparison)
    assert remarks == []
    assert section is not None
    assert section.tables[1].title == "ILSVRC-2012, validation and test set (Table 2 of the paper)"
    assert not any(table.title.startswith("Table") for table in section.tables)
    assert any(cell.text.startswith("41.00 / 1.00") for row in section.tables[1].rows for cell in row)


def test_files_that_a_pattern_of_the_shell_brings_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`report.py sweeps/*` meets Hydra's multirun.yaml beside sweeps of earlier versions."""
    monkeypatch.chdir(tmp_path)
    leave_run(tmp_path / "sweeps" / "one" / "seed=0", 3)
    (tmp_path / "sweeps" / "multirun.yaml").write_text("hydra: {}\n")
    monkeypatch.setattr(sys, "argv", ["report.py", "sweeps/multirun.yaml", "sweeps/one"])
    runpy.run_path(str(ROOT / "launch" / "report.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "passed over, as it is a file: sweeps/multirun.yaml" in printed
    assert "1 run in sweeps/one: 1 finished." in printed
    monkeypatch.setattr(sys, "argv", ["report.py", "sweeps/multirun.yaml"])
    with pytest.raises(SystemExit, match=r"error: sweeps/multirun\.yaml is no folder"):
        runpy.run_path(str(ROOT / "launch" / "report.py"), run_name="__main__")


def test_an_unpaired_table_would_be_wrong(tmp_path: Path) -> None:
    """The interval of the table is that of the pairs; the one of the groups' spreads is far from it."""
    for seed, level in enumerate((20.0, 40.0, 60.0)):
        leave_run(tmp_path / f"a{seed}", level, f"seed={seed}")
        leave_run(tmp_path / f"b{seed}", level + 1 + 0.1 * seed, f"seed={seed}", "ablation=no_lrn")
    comparison = compare(find_runs([str(tmp_path)]))
    cell = make_differences_table(comparison).rows[0][2]
    assert (cell.text, cell.kind) == ("+1.10 *", "bad")
    assert cell.note == "+0.85 to +1.35"
    assert make_errors_table(comparison).rows[0][2].note == "± 20.00"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: root / "nowhere", r"error: .*nowhere is no folder; give the folder of a sweep"),
        (lambda root: (root / "empty").mkdir() or root / "empty", r"error: .*empty holds no run"),
        (
            lambda root: leave_run(root / "begun", 3, finished=False),
            r"error: of 1 run none is finished.*begun is unfinished: stopped",
        ),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(
    make: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", str(make(tmp_path))])
    with pytest.raises(SystemExit, match=sentence):
        runpy.run_path(str(ROOT / "launch" / "report.py"), run_name="__main__")
    assert not (tmp_path / "report").exists(), "nothing is left of it"


def test_a_folder_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    leave_run(tmp_path / "run", 3)
    with pytest.raises(ValueError, match=r"exists and is no earlier report"):
        make_report(ReportConfig(folders=[str(tmp_path / "run")], output=str(tmp_path / "mine")))


def test_the_command_takes_folders_with_equals_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint_folder: Path
) -> None:
    root = sweep(tmp_path / "it's a sweep", checkpoint_folder)
    monkeypatch.chdir(root)
    arguments = ["ablation=none,seed=0", "ablation=no_lrn,seed=0", f"output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    runpy.run_path(str(ROOT / "launch" / "report.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "+1.00 (one seed: no interval)" in printed
    assert (tmp_path / "out" / "report.html").exists()
