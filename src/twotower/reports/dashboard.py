"""The W&B dashboard of a project of runs, as code: what is shown, of which metrics, in which order.

Built with the wandb-workspaces package (`pip install -e '.[dashboard]'`), which needs neither key nor network until
a workspace is saved. A panel can only show what `wandb_mirror` writes: `check_metrics` compares the two.
"""

import os
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from twotower.config import DashboardConfig, NetworkConfig
from twotower.ground.words import signed
from twotower.reports.counterpart import COUNTERPARTS
from twotower.reports.labbook import difference_of, read_labbook
from twotower.reports.table import Cell, Table, as_markdown
from twotower.runs.mirrors.keys import (
    DIFFERENCES,
    FIGURES,
    IMAGES,
    PICTURE,
    PREDICTIONS,
    SIZES,
    kernels_key,
    list_figures,
    list_metrics,
    list_summary_keys,
)
from twotower.runs.mirrors.wandb_settings import DEFAULT_PROJECT

STEP = "train/step"
VARIANT = "variant"  # the key of a run's configuration that colours and bars stand for


def differences_of_2012() -> str:
    """Markdown: what each change cost in 2012, in points of error against its baseline, from the lab book."""
    entries = read_labbook()
    ours = {run: name for name, runs in COUNTERPARTS.items() for run in runs}
    rows = []
    for entry in entries:
        points = difference_of(entry, entries)
        if points is not None:
            change = f"{entry.run} against {entry.baseline}: {entry.change}"
            numbers = [Cell(signed(value), value) for value in points]
            rows.append([Cell(ours.get(entry.run, "")), Cell(change), Cell(entry.view), *numbers])
    heads = ["here", "2012: run and change", "view", "top-1", "top-5"]
    note = "Points of error in percent; ILSVRC-2010 and 2012, as the lab book says. Other images, other errors."
    return as_markdown(Table("2012: differences to the baseline", heads, rows, note))


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError(
            "launch/dashboard.py needs the wandb-workspaces package; install it by pip install -e '.[dashboard]'."
        ) from error
    return workspaces, panels


def build(settings: DashboardConfig) -> Any:
    """The `Workspace`, not saved yet.

    Raises: ValueError if wandb-workspaces is not installed, or a panel shows what no run of the network writes.
    """
    workspaces, panels = _packages()
    network = settings.network
    layers, towers = list(network.layers), [f"tower{tower}" for tower in range(network.towers)]
    by_variant = {"groupby": panels.Config(VARIANT), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}

    def line(title: str, unit: str, *metrics: str, **options: Any) -> Any:
        return panels.LinePlot(title=title, x=STEP, y=list(metrics), title_x="steps", title_y=unit, **options)

    def bars(title: str, metric: str, unit: str = "%") -> Any:
        return panels.BarPlot(title=title, metrics=[metric], title_x=unit, **by_variant)

    def media(title: str, *keys: str) -> Any:
        return panels.MediaBrowser(title=title, media_keys=list(keys), gallery_axis="step")

    sweep = [
        line("validation top-1 error by network and ablation", "%", "validation/top1_error", **by_variant),
        line("validation top-5 error by network and ablation", "%", "validation/top5_error", **by_variant),
        line("validation loss by network and ablation", "nats", "validation/loss", **by_variant),
        bars("lowest validation top-1 error", "best_top1_error"),
        bars("lowest validation top-5 error", "best_top5_error"),
        bars("time of the training steps", "seconds", "seconds"),
    ]
    training = [
        line("train loss", "nats", "train/loss"),
        line("train top-1 error", "%", "train/top1_error"),
        line("train top-5 error", "%", "train/top5_error"),
        line("learning rate", "", "train/learning_rate", log_y=True),
        line("speed", "images/s", "train/images_per_second"),
        line("epochs", "", "train/epoch"),
    ]
    side_by_side = [
        line(
            f"{tower}: mean {size}",
            f"mean |{size}|",
            *(f"scales/{tower}/{layer}/{size}" for layer in layers),
            log_y=True,
        )
        for size in SIZES
        for tower in towers
    ]
    for title, unit, key in (
        (f"colour selectivity of {layers[0]}", "0 grey, 0.667 random, 1 colour", f"scales/%s/{layers[0]}/colour"),
        ("peak memory", "MiB", "memory/%s"),
    ):
        side_by_side += [line(f"{tower}: {title}", unit, key % tower) for tower in towers]
    exchange = [
        line("wait for the other tower, a step", "ms", "train/exchange_wait_ms"),
        line("bytes from tower 0 to tower 1, a step", "bytes", "train/exchange_bytes"),
        line("wait for images, a step", "ms", "train/input_wait_ms"),
    ]
    pictures = [
        media(f"{layers[0]}: tower 0 above tower 1" if len(towers) == 2 else layers[0], kernels_key(network)),
        media("validation images with the likeliest classes", IMAGES),
        panels.WeavePanelSummaryTable(table_name=PREDICTIONS),
        media("what the network is fed", PICTURE),
        media("drawn afterwards by launch/figure.py", *(f"figures/{name}" for name in FIGURES)),
    ]
    ablations = [
        bars("top-1 error, centre crop", "centre/top1_error"),
        bars("top-1 error, mean of ten crops", "ten/top1_error"),
        bars("top-5 error, centre crop", "centre/top5_error"),
        bars("top-5 error, mean of ten crops", "ten/top5_error"),
        media(
            "differences with intervals, and those of 2012, by launch/report.py",
            *(f"figures/{name}" for name in DIFFERENCES),
        ),
        panels.MarkdownPanel(markdown=differences_of_2012()),
    ]
    sections = [
        ("Sweep: networks and ablations compared", sweep, 3),
        ("Training", training, 3),
        ("The two towers side by side" if len(towers) == 2 else "The tower", side_by_side, len(towers)),
        ("The exchange", exchange, 3),
        ("Kernels and images", pictures, 2),
        ("Ablations: ours, and the differences of 2012", ablations, 2),
    ]
    found = workspaces.Workspace(
        entity=settings.entity or os.environ.get("WANDB_ENTITY") or "",
        project=settings.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
        name=settings.name,
        sections=[
            workspaces.Section(
                name=name,
                panels=part,
                is_open=True,
                layout_settings=workspaces.SectionLayoutSettings(columns=columns, rows=-(-len(part) // columns)),
            )
            for name, part, columns in sections
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(
            filters="" if settings.group is None else workspaces.And(workspaces.Metric("Group") == settings.group),
            groupby=[workspaces.Config(VARIANT)],
            pinned_columns=["summary:best_top1_error", "summary:ten/top1_error", "config:seed.value"],
        ),
    )
    check_metrics(found, network)
    return found


def metrics_in(panel: Any) -> list[str]:
    """The metrics, pictures and tables that a panel shows; the x axis is one of them."""
    kind = type(panel).__name__
    if kind == "LinePlot":
        return [panel.x, *panel.y]
    attribute = {"BarPlot": "metrics", "MediaBrowser": "media_keys", "WeavePanelSummaryTable": "table_name"}.get(kind)
    shown = getattr(panel, attribute) if attribute is not None else []
    return [shown] if isinstance(shown, str) else list(shown)


def panels_of(workspace: Any) -> Iterator[tuple[str, Any]]:
    """Each section's name with each of its panels."""
    for section in workspace.sections:
        for panel in section.panels:
            yield section.name, panel


def check_metrics(workspace: Any, network: NetworkConfig) -> None:
    """Raises: ValueError naming the first panel with a metric that no run of the network writes."""
    known = {STEP, *list_metrics(network), *list_summary_keys(), *list_figures()}
    for section, panel in panels_of(workspace):
        for metric in metrics_in(panel):
            if metric not in known:
                near = get_close_matches(metric, known, 1)
                meant = f"; {near[0]} may be meant" if near else ""
                raise ValueError(f"a panel of the section {section!r} shows {metric}, which no run writes{meant}.")


def describe(workspace: Any) -> list[str]:
    """A line for each section, and an indented one for each of its panels: kind, title, metrics."""
    lines, last = [], None
    for section, panel in panels_of(workspace):
        if section != last:
            lines.append(section)
            last = section
        shown = metrics_in(panel)
        if type(panel).__name__ == "LinePlot":
            shown = [metric for metric in shown if metric != STEP]
        text = ", ".join(shown) if len(shown) < 4 else f"{shown[0]}, ... {shown[-1]} ({len(shown)} metrics)"
        title = getattr(panel, "title", None) or getattr(panel, "markdown", "").partition("\n")[0].strip("# ")
        lines.append(f"  {type(panel).__name__}: " + ": ".join(part for part in (title, text) if part))
    return lines


def validate(workspace: Any) -> None:
    """Builds what would be sent. Raises: ValueError if W&B's own schema does not take it."""
    workspace._to_model().model_dump_json()


def push(workspace: Any) -> str:
    """Saves the workspace as a new view, and returns its address.

    Raises: ValueError without a key, or if W&B cannot be reached or does not take it.
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
