"""The W&B dashboard of a project of runs, as code; its panels are in `dashboard_panels`.

It is built with the wandb-workspaces package (`pip install -e '.[dashboard]'`), which needs neither key nor network
until a workspace is saved. A panel can show only what `wandb_mirror` writes; `check_metrics` compares the two.
"""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from twotower.config import DashboardConfig, NetworkConfig
from twotower.reports.dashboard_panels import STEP, VARIANT, Panels, PanelSection
from twotower.runs.mirrors.metric_names import list_figures, list_metrics, list_summary_keys
from twotower.runs.mirrors.wandb_settings import DEFAULT_PROJECT


def _import_packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError(
            "launch/dashboard.py needs the wandb-workspaces package; install it by pip install -e '.[dashboard]'."
        ) from error
    return workspaces, panels


def build(settings: DashboardConfig) -> Any:
    """Builds the `Workspace`, without saving it.

    Raises: ValueError if wandb-workspaces is not installed, or a panel has a metric that no run of the network
    writes.
    """
    workspaces, panels = _import_packages()
    workspace = workspaces.Workspace(
        entity=settings.entity or os.environ.get("WANDB_ENTITY") or "",
        project=settings.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
        name=settings.name,
        sections=[_lay_out(section, workspaces) for section in Panels(panels, settings.network).make_sections()],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(
            filters="" if settings.group is None else workspaces.And(workspaces.Metric("Group") == settings.group),
            groupby=[workspaces.Config(VARIANT)],
            pinned_columns=["summary:best_top1_error", "summary:ten/top1_error", "config:seed.value"],
        ),
    )
    check_metrics(workspace, settings.network)
    return workspace


def _lay_out(section: PanelSection, workspaces: Any) -> Any:
    rows = -(-len(section.panels) // section.columns)
    return workspaces.Section(
        name=section.title,
        panels=section.panels,
        is_open=True,
        layout_settings=workspaces.SectionLayoutSettings(columns=section.columns, rows=rows),
    )


def list_panel_metrics(panel: Any) -> list[str]:
    """The metrics, pictures and tables that a panel shows; the x axis is one of them."""
    kind = type(panel).__name__
    if kind == "LinePlot":
        return [panel.x, *panel.y]
    attribute = {"BarPlot": "metrics", "MediaBrowser": "media_keys", "WeavePanelSummaryTable": "table_name"}.get(kind)
    shown = getattr(panel, attribute) if attribute is not None else []
    return [shown] if isinstance(shown, str) else list(shown)


def list_panels(workspace: Any) -> Iterator[tuple[str, Any]]:
    """Each section's name with each of its panels."""
    for section in workspace.sections:
        for panel in section.panels:
            yield section.name, panel


def check_metrics(workspace: Any, network: NetworkConfig) -> None:
    """Checks that runs of the network write all metrics. Raises: ValueError naming a panel with another one."""
    known = {STEP, *list_metrics(network), *list_summary_keys(), *list_figures()}
    for section, panel in list_panels(workspace):
        for metric in list_panel_metrics(panel):
            if metric not in known:
                near = get_close_matches(metric, known, 1)
                meant = f"; {near[0]} may be meant" if near else ""
                raise ValueError(f"a panel of the section {section!r} shows {metric}, which no run writes{meant}.")


def describe(workspace: Any) -> list[str]:
    """A line for each section, and an indented one for each of its panels: kind, title, metrics."""
    lines, last = [], None
    for section, panel in list_panels(workspace):
        if section != last:
            lines.append(section)
            last = section
        shown = list_panel_metrics(panel)
        if type(panel).__name__ == "LinePlot":
            shown = [metric for metric in shown if metric != STEP]
        text = ", ".join(shown) if len(shown) < 4 else f"{shown[0]}, ... {shown[-1]} ({len(shown)} metrics)"
        title = getattr(panel, "title", None) or getattr(panel, "markdown", "").partition("\n")[0].strip("# ")
        lines.append(f"  {type(panel).__name__}: " + ": ".join(part for part in (title, text) if part))
    return lines


def validate(workspace: Any) -> None:
    """Builds the message to W&B without sending it. Raises: ValueError if W&B's own schema refuses it."""
    workspace._to_model().model_dump_json()


def push(workspace: Any) -> str:
    """Saves the workspace as a new view, and returns its address.

    Raises: ValueError without a key, or if W&B cannot be reached or refuses it.
    """
    import wandb

    try:
        if not workspace.entity:
            workspace.entity = wandb.Api().default_entity
        workspace.save()
    except (wandb.errors.Error, OSError) as error:
        raise ValueError(
            f"push=true did not reach W&B ({error}); log in by `wandb login`, or leave push=false to see what "
            "would be sent."
        ) from error
    return str(workspace.url)
