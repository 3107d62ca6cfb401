"""The dashboard as code: every panel shows what a run writes, and a misspelt metric is refused."""

import json
import sys
from pathlib import Path

import pytest

from helpers.commands import command, finish
from helpers.towers import load_network
from twotower.config import DashboardConfig
from twotower.figures.draw_figure import OF_ONE_RUN
from twotower.reports import dashboard
from twotower.reports.dashboard import build, check_metrics, describe, list_panel_metrics, list_panels
from twotower.reports.dashboard_panels import format_differences_of_2012
from twotower.reports.labbook import find_baseline, read_labbook
from twotower.runs.mirrors.metric_names import FIGURES, list_figures, list_metrics, list_summary_keys


def settings(network: str = "alexnet_2012", **given: str) -> DashboardConfig:
    return DashboardConfig(network=load_network(network), **given)


def test_what_is_logged_is_shown_and_what_is_shown_is_logged() -> None:
    """`test_wandb` compares `list_metrics` with the keys of a run's offline file."""
    for network in ("alexnet_2012", "one_tower", "cifar_four_layer"):
        wanted = settings(network)
        workspace = build(wanted)
        panels = [panel for _, panel in list_panels(workspace)]
        shown = {metric for panel in panels for metric in list_panel_metrics(panel)} - {"train/step"}
        logged = set(list_metrics(wanted.network))
        assert shown <= logged | {*list_summary_keys(), *list_figures()}
        assert logged - shown == {"validation/epoch", "validation/images_per_second"}
        assert {"ten/top1_error", "centre/top5_error", "best_top1_error"} <= shown
        assert any("tower1" in metric for metric in shown) == (wanted.network.towers == 2)


def test_the_figures_are_those_that_the_command_sends() -> None:
    assert set(FIGURES) == set(OF_ONE_RUN)


@pytest.mark.parametrize(
    ("kind", "attribute", "value"),
    [
        ("LinePlot", "y", ["validation/top1_eror"]),
        ("LinePlot", "x", "train/steps"),
        ("BarPlot", "metrics", ["ten/top1"]),
        ("MediaBrowser", "media_keys", ["kernel/conv1"]),
        ("WeavePanelSummaryTable", "table_name", "validation/table"),
    ],
)
def test_a_misspelt_metric_is_refused(kind: str, attribute: str, value: str | list[str]) -> None:
    wanted = settings()
    workspace = build(wanted)
    panel = next(panel for _, panel in list_panels(workspace) if type(panel).__name__ == kind)
    setattr(panel, attribute, value)
    name = value if isinstance(value, str) else value[0]
    with pytest.raises(ValueError, match=rf"a panel of the section '.*' shows {name}, which no run writes"):
        check_metrics(workspace, wanted.network)


def test_a_tower_that_a_network_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tower1/.*, which no run writes; scales/tower0/.* may be meant"):
        check_metrics(build(settings()), load_network("one_tower"))


def test_what_would_be_sent_has_the_sections_and_the_grouping() -> None:
    workspace = build(settings(project="p", entity="e", name="n", group="a-sweep"))
    sent = json.loads(workspace._to_model().model_dump_json())
    assert (sent["project"], sent["entity"], sent["display_name"]) == ("p", "e", "n")
    sections = sent["spec"]["section"]["panel_bank_config"]["sections"]
    assert [len(section["panels"]) for section in sections] == [6, 6, 10, 3, 5, 6]
    first = sections[0]["panels"][0]["config"]
    assert (first["x_axis"], first["metrics"], first["group_by"]) == (
        "train/step",
        ["validation/top1_error"],
        "variant.value",
    )
    # There are two columns, tower 0 at the left.
    towers = sections[2]
    assert towers["flow_config"]["columns_per_page"] == 2
    for left, right in zip(towers["panels"][::2], towers["panels"][1::2], strict=True):
        swapped = [metric.replace("tower0", "tower1") for metric in left["config"]["metrics"]]
        assert right["config"]["metrics"] == swapped != left["config"]["metrics"]
    (runs,) = sent["spec"]["section"]["run_sets"]
    assert [group["name"] for group in runs["grouping"]] == ["variant.value"]
    assert [(entry["key"]["name"], entry["value"]) for entry in runs["filters"]["filters"]] == [("group", "a-sweep")]
    assert build(settings()).runset_settings.filters == ""


def test_variables_of_wandb_count_where_a_key_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training reads the same variables, so that the dashboard is in the project of its runs."""
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    assert (build(settings()).project, build(settings()).entity) == ("twotower", "")
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setenv("WANDB_ENTITY", "e")
    assert (build(settings()).project, build(settings()).entity) == ("p", "e")
    given = build(settings(project="P", entity="E"))
    assert (given.project, given.entity) == ("P", "E")


def test_the_differences_of_2012_are_those_of_the_lab_book() -> None:
    entries = read_labbook()
    lines = format_differences_of_2012().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]
    changed = [(entry, find_baseline(entry, entries)) for entry in entries]
    wanted = [(entry, base) for entry, base in changed if base is not None and entry.top1_error is not None]
    assert len(rows) == len(wanted) > 10
    for row, (entry, base) in zip(rows, wanted, strict=True):
        assert float(row[-2]) == pytest.approx(entry.top1_error - base.top1_error, abs=0.0051)
        assert float(row[-1]) == pytest.approx(entry.top5_error - base.top5_error, abs=0.0051)
        assert f"{entry.run} against {entry.baseline}" in " ".join(row)
    lrn = next(row for row in rows if row[0] == "no_lrn")
    assert "148" in lrn[1]


def test_without_the_package_or_a_key_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = build(settings())
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")  # whatever happens, nothing goes out
    with pytest.raises(ValueError, match=r"push=true did not reach W&B .* log in by `wandb login`, or leave"):
        dashboard.push(workspace)
    for name in ("wandb_workspaces.workspaces", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"needs the wandb-workspaces package; install it by pip install -e"):
        build(settings())


def test_the_command_prints_a_line_for_each_panel(tmp_path: Path) -> None:
    status, output = finish(command("network=one_tower", "group=mine", cwd=tmp_path, script="dashboard.py"))
    assert status == 0, output
    assert output.splitlines()[:-1] == describe(build(settings("one_tower", group="mine")))
    assert output.splitlines()[-1].startswith("valid, not saved")
    assert not list(tmp_path.iterdir())
