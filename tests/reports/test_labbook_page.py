"""The lab book on one page: the paper's numbers as it prints them, and ours only where they belong."""

import csv
import io
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from helpers.fake_runs import fake_config, save_checkpoint
from helpers.paths import ROOT
from twotower.evaluation import predictions
from twotower.evaluation.predictions import Predictions
from twotower.ground.files import write_json
from twotower.reports.counterpart import find_counterpart
from twotower.reports.labbook_page import Line, make_page
from twotower.reports.labbook_tables import render
from twotower.reports.own_results import describe_images
from twotower.runs import checkpoint

TABLE_1, TABLE_2, ABLATIONS, REST = 0, 1, 2, 3


def identity(run: Path, **data: Any) -> dict[str, Any]:
    about = {"kind": "folder", "root": "/data/photos", "source": None, "fingerprint": None}
    about |= {"num_images": 4, "num_classes": 7} | data
    manifest = checkpoint.read_manifest(checkpoint.find(run))
    width = data.pop("width", 0.0625)
    return {"checkpoint": manifest.sha256, "width": width, "data": about, "split": "val"}


def store(run: Path, view: str, num_right: int, **data: Any) -> None:
    """Predictions for four images, of which `num_right` are right and the others have their label last."""
    labels = torch.arange(4)
    scores = torch.log(torch.arange(1, 8) / 28).repeat(4, 1)
    scores[torch.arange(4), labels] = torch.where(torch.arange(4) < num_right, 0.0, -9.0)
    path = predictions.locate_predictions(run, "step-00000001", "val", view)
    predictions.store(path, Predictions(scores, labels, 1.0, "ten"), identity(run, **data))


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, fake_config(folder), seed=0)
    return folder


@pytest.fixture
def make_run(tmp_path: Path, checkpoint_folder: Path) -> Any:
    def make(name: str, *overrides: str) -> Path:
        shutil.copytree(checkpoint_folder, tmp_path / name)
        config = fake_config(tmp_path, *overrides)
        OmegaConf.save(OmegaConf.structured(config), tmp_path / name / "config.yaml")
        return tmp_path / name

    return make


def line_of(page: Any, section: int, run: str) -> Line:
    return next(line for line in page.sections[section][1] if line.entry.run == run)


def test_the_numbers_of_the_paper() -> None:
    page = make_page()
    table_1, table_2, ablations, rest = (lines for _, lines in page.sections)
    assert [(line.entry.run, line.paper) for line in table_1] == [
        ("sparse-coding", ("47.1", "28.2")),
        ("sift-fvs", ("45.7", "25.7")),
        ("145-2010", ("37.5", "17.0")),
        ("145-2010", ("39.0", "18.3")),
    ]
    assert [(line.entry.run, line.entry.set, line.paper) for line in table_2] == [
        ("sift-fvs", "test", ("-", "26.2")),
        ("145", "val", ("40.7", "18.2")),
        ("5-cnns", "val", ("38.1", "16.4")),
        ("5-cnns", "test", ("-", "16.4")),
        ("146-2012-2011", "val", ("39.0", "16.6")),
        ("7-cnns", "val", ("36.7", "15.4")),
        ("7-cnns", "test", ("-", "15.3")),
    ]
    by_run = {line.entry.run: line for line in table_2}
    assert by_run["145"].notes == ("40.6640", "18.2100")
    assert by_run["5-cnns"].notes == ("", ""), "no note of 2012 has it"
    assert line_of(page, REST, "fall-2009").paper == ("67.4", "40.9")
    assert [(line.entry.run, line.paper, line.difference) for line in ablations[:3]] == [
        ("145-half", ("+1.7", "+1.2"), ("+1.70", "+1.23")),
        ("148", ("+1.4", "+1.2"), ("+1.37", "+1.15")),
        ("147", ("+0.4", "+0.3"), ("+0.39", "+0.30")),
    ]
    only_printed = [(line.entry.run, line.paper, line.notes, line.difference) for line in ablations[3:7]]
    assert only_printed == [
        ("no-colour-noise", ("+1", "-"), ("", ""), ("", "")),
        *((f"no-conv{i}", ("+2", "-"), ("", ""), ("", "")) for i in (3, 4, 5)),
    ]
    assert all(line.paper == ("", "") for line in ablations[7:])
    printed = [line for line in rest if any(line.paper)]
    assert [line.entry.run for line in printed] == ["fall-2009-others", "fall-2009"]
    markdown = render(page, "markdown", 150)
    for run in ("sparse-coding", "sift-fvs", "5-cnns", "7-cnns", "no-conv4", "fall-2009"):
        assert f"| {run} (paper only) |" in markdown
    assert "| 98-16kinit |" in markdown, "which is noted without a loss"


# Differences to the baseline that the notes or the schedule name, in points of error.
AGAINST = {
    "174": ("169", ("-0.16", "-0.07")),
    "166": ("169", ("+0.50", "+0.56")),
    "167": ("169", ("-0.11", "+0.01")),
    "171": ("169", ("-0.18", "+0.03")),
    "177": ("170", ("+0.16", "+0.26")),
    "170-fade": ("170", ("-0.28", "+0.07")),
    "170-quant": ("170", ("0.00", "+0.37")),
    "131": ("120", ("-0.11", "-0.14")),
    "135": ("131", ("+0.14", "-0.16")),
}


def test_the_baselines_are_those_of_the_notes() -> None:
    lines = [line for _, section in make_page().sections for line in section if line.entry.view == "10-view"]
    differences = {
        line.entry.run: (line.entry.baseline, line.difference) for line in lines if line.entry.run in AGAINST
    }
    assert differences == AGAINST


def test_every_run_that_the_notes_have_numbers_of_is_there() -> None:
    """layer-params-RUN.cfg of the source, its last lines: year of the images, top-1 and top-5 error."""
    noted = {
        ("106", 2010): (0.3705782743769917, 0.16672222296297284),
        ("112", 2010): (0.37237829837731168, 0.16815557540767209),
        ("118", 2010): (0.37831333333333333, 0.17355999999999999),
        ("120", 2010): (0.378533, 0.172360),
        ("120-2012", 2012): (0.410440, 0.187140),
        ("131", 2012): (0.409340, 0.185740),
        ("135", 2012): (0.410700, 0.184160),
        ("141-2009", 2010): (0.356707, 0.154893),
        ("141-2009", 2012): (0.395620, 0.172060),
        ("170-fade", 2012): (0.402500, 0.181160),
        ("171", 2012): (0.404200, 0.181400),
        ("2009-101", 2009): (0.69382157140195966, 0.43646610858041701),
        ("131-2009", 2009): (0.694209, 0.437308),
        ("98-16kinit", 2010): (0.37132068707483007, 0.1679778095238095),
        ("inet-5layer-conv94-2gpu", 2010): (0.38107167346938753, 0.17608947619047613),
    }
    for (run, year), (top1, top5) in noted.items():
        rows = [line for _, lines in make_page().sections for line in lines if line.entry.run == run]
        entries = [line.entry for line in rows if line.entry.year == year and line.entry.view != "centre"]
        assert [(e.top1_error, e.top5_error) for e in entries] == [
            (pytest.approx(100 * top1, abs=5.1e-5), pytest.approx(100 * top5, abs=5.1e-5))
        ], run


def test_every_entry_is_there() -> None:
    """Each entry is there once, except the one network that Table 2 and the ablations both have."""
    with (ROOT / "src" / "twotower" / "reports" / "labbook.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [(row["run"], row["year"], row["set"], row["view"]) for row in rows]
    assert len(set(expected)) == len(expected) > 70
    lines = [line.entry for _, section in make_page().sections for line in section]
    present = [(entry.run, str(entry.year), entry.set, entry.view) for entry in lines]
    assert sorted(present) == sorted([*expected, ("146-2012-2011", "2012", "val", "10-view")])


def test_without_runs_ours_is_empty() -> None:
    page = make_page()
    assert page.headings == ["ours"]
    assert page.remarks == []
    assert all(own.runs is None for _, lines in page.sections for line in lines for own in line.own)
    rows = list(csv.DictReader(io.StringIO(render(page, "csv", 150))))
    assert rows[0]["paper, top-1"] == "47.1"
    assert [row["paper, top-1"] for row in rows if row["paper, top-5"] == "15.3"] == [""], "no number, no dash"
    assert all(row["ours, top-1"] == row["ours, top-5"] == row["ours, runs"] == "" for row in rows)


def test_ours_are_the_means_of_their_runs(make_run: Any) -> None:
    first, second = make_run("first"), make_run("second", "seed=1")
    without_norm = make_run("without_norm", "ablation=no_lrn")
    for run, right in ((first, 3), (second, 4), (without_norm, 2)):
        store(run, "ten", right)
    store(first, "centre", 1)
    store(second, "centre", 1)
    page = make_page([str(first), str(second), str(without_norm)])
    assert page.headings == ["ours (folder photos, 7 classes, 4 images, width 0.0625)"]
    (own,) = line_of(page, TABLE_2, "145").own
    assert (own.runs, own.errors, own.difference) == (2, ("12.50", "12.50"), ("", ""))
    # Other images than those of ILSVRC-2010 have no place in its table.
    assert {line.own[0].errors for line in page.sections[TABLE_1][1]} == {("", "")}
    (own,) = line_of(page, ABLATIONS, "148").own
    assert (own.runs, own.errors, own.difference) == (1, ("50.00", "50.00"), ("+37.50", "+37.50"))
    assert line_of(page, ABLATIONS, "147").own[0].runs is None
    assert page.remarks == [
        "ours (folder photos, 7 classes, 4 images, width 0.0625) cannot be compared with the paper's: other images, "
        "or another width"
    ]
    text = render(page, "text", 220)
    assert "12.50 / 12.50 (2 runs)" in text
    assert "+37.50 / +37.50" in text


def test_what_is_not_evaluated_says_how(make_run: Any) -> None:
    run = make_run("run")
    page = make_page([str(run)])
    assert f"{run}, 10-view, not evaluated: python launch/evaluate.py {run} crops=ten" in page.remarks
    assert line_of(page, TABLE_2, "145").own[0].runs == 0
    assert "not evaluated" in render(page, "markdown", 150)
    assert line_of(page, TABLE_2, "5-cnns").own[0].runs is None
    store(run, "ten", 4)
    assert not any("10-view" in remark for remark in make_page([str(run)]).remarks)


def test_results_of_another_checkpoint_are_not_ours(make_run: Any, tmp_path: Path) -> None:
    run = make_run("run")
    store(run, "ten", 4)
    assert line_of(make_page([str(run)]), TABLE_2, "145").own[0].runs == 1
    save_checkpoint(run, fake_config(tmp_path), seed=5)
    assert line_of(make_page([str(run)]), TABLE_2, "145").own[0].runs == 0


def test_evaluation_json_is_enough(make_run: Any) -> None:
    run = make_run("run")
    ten = {"top1_error": 41.5, "top5_error": 19.25}
    write_json(run / "evaluation.json", {"centre": None, "ten": ten, "identity": identity(run)})
    (own,) = line_of(make_page([str(run)]), TABLE_2, "145").own
    assert (own.runs, own.errors) == (1, ("41.50", "19.25"))


def test_other_images_are_never_called_ilsvrc(make_run: Any) -> None:
    """The name needs 1000 classes and 50,000 images; each set of images has a column of its own."""
    real = {"kind": "folder", "root": "/data/x", "source": None, "num_classes": 1000, "num_images": 50_000}
    val_set = {"data": real, "split": "val", "width": 1.0}
    assert describe_images(val_set) == ("ILSVRC-2012 val", True)
    assert describe_images(val_set | {"data": real | {"source": "ilsvrc2010"}}) == ("ILSVRC-2010 val", True)
    test_set = {"data": real | {"num_images": 150_000}, "split": "test"}
    assert describe_images(val_set | test_set) == ("ILSVRC-2010 test", True)
    assert describe_images(val_set | {"width": 0.5}) == ("ILSVRC-2012 val, width 0.5", False)
    fewer = real | {"root": "/data/ILSVRC-2012", "num_images": 600}
    assert describe_images(val_set | {"data": fewer}) == (
        "folder ILSVRC-2012, 1,000 classes, 600 images",
        False,
    )
    assert describe_images(val_set | {"data": real | {"kind": "synthetic"}}) == (
        "synthetic, 50,000 images",
        False,
    )
    shapes = {"kind": "shapes", "num_classes": 12, "num_images": 600}
    assert describe_images(val_set | {"data": real | shapes}) == ("shapes, 600 images", False)
    first, second = make_run("first"), make_run("second")
    store(first, "ten", 4)
    store(second, "ten", 3, kind="shapes")
    page = make_page([str(first), str(second)])
    assert len(page.headings) == 2
    assert [own.runs for own in line_of(page, TABLE_2, "145").own] == [1, 1]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), "alexnet_2012"),
        (("ablation=no_lrn",), "no_lrn"),
        (("ablation=half_exchange",), "half_exchange"),
        (("network=one_tower",), "one_tower"),
        (("network=one_tower", "ablation=no_lrn"), None),  # two changes at once
        (("network=alexnet",), None),
        (("initial_weights.path=runs/other",), None),
        (("network=six_conv",), None),
        (("network=six_conv", "initial_weights.path=runs/step3"), "six_conv"),
        (("experiment=chain_146_4", "initial_weights.path=runs/step3"), "six_conv"),
        (("experiment=chain_146_2", "initial_weights.path=runs/step1"), None),  # a step before the last
    ],
)
def test_which_run_counts_for_which_row(tmp_path: Path, overrides: tuple, name: str | None) -> None:
    assert find_counterpart(fake_config(tmp_path, *overrides)) == name


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("input.random_crop=false",), "input.random_crop=False for True"),
        (("input.flip=false",), "input.flip=False for True"),
        (("input.colour_noise=none",), "input.colour_noise=none for 2012"),
        (("input=paper",), "input.offsets=32 for 33, input.images_per_draw=1 for 32"),
        (("optim.momentum=0",), "optim.momentum=0.0 for 0.9"),
        (("optim.weight_decay=0",), "optim.weight_decay=0.0 for 0.0005"),
        (("ablation=no_crops", "input.flip=false"), None),  # the lab book has no such row
        (("ablation=no_lrn", "input.flip=false"), "input.flip=False for True"),
    ],
)
def test_another_input_or_update_is_another_experiment(make_run: Any, overrides: tuple, reason: str | None) -> None:
    run = make_run("run", *overrides)
    store(run, "ten", 4)
    page = make_page([str(run)])
    assert all(own.runs is None for _, lines in page.sections for line in lines for own in line.own)
    (remark,) = page.remarks
    if reason is not None:
        assert remark.startswith(f"{run} is not the run that its yamls describe ({reason}"), remark
        assert remark.endswith("differ), so it is left out")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ("optim.batch_size=512", "schedule.epochs=1"),
            "optim.batch_size=512 for 128, schedule.epochs=1 for 90",
        ),
        (
            ("schedule=fixed", "optim.learning_rate=0.005", "schedule.max_steps=9"),
            "optim.learning_rate=0.005 for 0.01, schedule.rule=fixed for plateau or recorded, "
            "schedule.max_steps=9 for none",
        ),
        (("schedule=run_145_2012", "schedule.epochs=30"), "schedule.epochs=30 for 91"),
        (("schedule=run_170",), "schedule.rule=exponential for plateau or recorded"),
        (("input.colour_noise_epochs=3",), "input.colour_noise_epochs=3.0 for None"),
        (("schedule=run_145_2012", "machine.loader_threads=3", "machine.decode_once=no"), None),
        (("network=lrn1_only", "schedule=run_167"), None),
    ],
)
def test_another_rate_or_length_counts_and_is_told(make_run: Any, overrides: tuple, reason: str | None) -> None:
    run = make_run("run", *overrides)
    store(run, "ten", 4)
    store(run, "centre", 4)
    page = make_page([str(run)])
    (own,) = line_of(page, *((ABLATIONS, "167") if "network=lrn1_only" in overrides else (TABLE_2, "145"))).own
    assert own.runs == 1
    counts = [] if reason is None else [f"{run} counts, though not trained as in 2012: {reason}"]
    assert page.remarks[:-1] == counts


def test_what_is_alike_in_several_runs_is_told_once(make_run: Any) -> None:
    runs = [str(make_run(f"run{seed}", f"seed={seed}", "optim.batch_size=512")) for seed in range(3)]
    for run in runs:
        store(Path(run), "ten", 4)
        store(Path(run), "centre", 4)
    remarks = [remark for remark in make_page(runs).remarks if "optim" in remark]
    assert remarks == [f"{runs[0]} and 2 more count, though not trained as in 2012: optim.batch_size=512 for 128"]


def test_a_network_without_a_layer_has_the_papers_row(make_run: Any) -> None:
    run = make_run("run", "ablation=no_conv4")
    store(run, "ten", 3)
    page = make_page([str(run)])
    assert [line_of(page, ABLATIONS, f"no-conv{i}").own[0].runs for i in (3, 4, 5)] == [None, 1, None]
    assert len(page.remarks) == 1, "that other images are not comparable, and nothing else"


def test_a_run_of_no_row_is_named(make_run: Any) -> None:
    run = make_run("run", "network=alexnet")
    store(run, "ten", 4)
    page = make_page([str(run)])
    assert page.remarks == [f"{run} is network=alexnet, ablation=none, which is no run of the lab book"]
    assert all(own.runs is None for _, lines in page.sections for line in lines for own in line.own)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)

    def launch(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["labbook.py", *arguments])
        runpy.run_path(str(ROOT / "launch" / "labbook.py"), run_name="__main__")
        return capsys.readouterr().out

    printed = launch()
    for numbers in (
        "47.1 / 28.2",
        "- / 26.2",
        "- / 15.3",
        "37.5 / 17.0",
        "40.7 / 18.2",
        "38.1 / 16.4",
        "39.0 / 16.6",
        "36.7 / 15.4",
        "+1.7 / +1.2",
    ):
        assert re.search(rf"│ +{re.escape(numbers)} │", printed), numbers
    assert "written to page.md" in launch("format=markdown", "output=page.md")
    assert "| 37.5 / 17.0 |" in (tmp_path / "page.md").read_text()
    with pytest.raises(SystemExit, match="format=html is not known; choose one of text, markdown, csv"):
        launch("format=html")
    with pytest.raises(SystemExit, match="no_such_run is not the folder of a run"):
        launch("runs=[no_such_run]")
