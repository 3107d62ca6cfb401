"""The panels of the W&B dashboard: the metrics of a run that each section shows.

`Panels` is given the module wandb_workspaces.reports.v2, so that this module needs no W&B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twotower.config import NetworkConfig
from twotower.ground.wording import signed
from twotower.reports.counterpart import COUNTERPARTS
from twotower.reports.labbook import find_difference, read_labbook
from twotower.reports.table import Cell, Table, as_markdown
from twotower.runs.mirrors.metric_names import DIFFERENCES, FIGURES, IMAGES, PICTURE, PREDICTIONS, SIZES, kernels_key

STEP = "train/step"
VARIANT = "variant"  # key of a run's configuration by which colours and bars are grouped


@dataclass(frozen=True)
class PanelSection:
    """A section of the dashboard: its title, its panels, and how many of them stand side by side."""

    title: str
    panels: Sequence[Any]
    columns: int


def format_differences_of_2012() -> str:
    """Markdown: the points of error that each change cost in 2012 against its baseline, from the lab book."""
    entries = read_labbook()
    ours = {run: name for name, runs in COUNTERPARTS.items() for run in runs}
    rows = []
    for entry in entries:
        points = find_difference(entry, entries)
        if points is not None:
            change = f"{entry.run} against {entry.baseline}: {entry.change}"
            numbers = [Cell(signed(value), value) for value in points]
            rows.append([Cell(ours.get(entry.run, "")), Cell(change), Cell(entry.view), *numbers])
    heads = ["here", "2012: run and change", "view", "top-1", "top-5"]
    note = "Points of error in percent; ILSVRC-2010 and 2012, as the lab book says. Other images, other errors."
    return as_markdown(Table("2012: differences to the baseline", heads, rows, note))


class Panels:
    """Makes the panels for runs of one network."""

    def __init__(self, module: Any, network: NetworkConfig) -> None:
        self._module, self._network = module, network
        self._layers = list(network.layers)
        self._towers = [f"tower{tower}" for tower in range(network.towers)]
        self._by_variant = {
            "groupby": module.Config(VARIANT),
            "groupby_aggfunc": "mean",
            "groupby_rangefunc": "minmax",
        }

    def make_sections(self) -> list[PanelSection]:
        """All sections, in the order of the dashboard."""
        title = "The two towers side by side" if len(self._towers) == 2 else "The tower"
        return [
            PanelSection("Sweep: networks and ablations compared", self._show_sweep(), 3),
            PanelSection("Training", self._show_training(), 3),
            PanelSection(title, self._show_towers(), len(self._towers)),
            PanelSection("The exchange", self._show_exchange(), 3),
            PanelSection("Kernels and images", self._show_pictures(), 2),
            PanelSection("Ablations: ours, and the differences of 2012", self._show_ablations(), 2),
        ]

    def _line(self, title: str, unit: str, *metrics: str, **options: Any) -> Any:
        return self._module.LinePlot(title=title, x=STEP, y=list(metrics), title_x="steps", title_y=unit, **options)

    def _bars(self, title: str, metric: str, unit: str = "%") -> Any:
        return self._module.BarPlot(title=title, metrics=[metric], title_x=unit, **self._by_variant)

    def _media(self, title: str, *keys: str) -> Any:
        return self._module.MediaBrowser(title=title, media_keys=list(keys), gallery_axis="step")

    def _show_sweep(self) -> list[Any]:
        lines = [
            self._line(f"validation {name} by network and ablation", unit, f"validation/{key}", **self._by_variant)
            for name, unit, key in (
                ("top-1 error", "%", "top1_error"),
                ("top-5 error", "%", "top5_error"),
                ("loss", "nats", "loss"),
            )
        ]
        return [
            *lines,
            self._bars("lowest validation top-1 error", "best_top1_error"),
            self._bars("lowest validation top-5 error", "best_top5_error"),
            self._bars("time of the training steps", "seconds", "seconds"),
        ]

    def _show_training(self) -> list[Any]:
        return [
            self._line("train loss", "nats", "train/loss"),
            self._line("train top-1 error", "%", "train/top1_error"),
            self._line("train top-5 error", "%", "train/top5_error"),
            self._line("learning rate", "", "train/learning_rate", log_y=True),
            self._line("speed", "images/s", "train/images_per_second"),
            self._line("epochs", "", "train/epoch"),
        ]

    def _show_towers(self) -> list[Any]:
        panels = []
        for size in SIZES:
            for tower in self._towers:
                metrics = (f"scales/{tower}/{layer}/{size}" for layer in self._layers)
                panels.append(self._line(f"{tower}: mean {size}", f"mean |{size}|", *metrics, log_y=True))
        first = self._layers[0]
        for title, unit, key in (
            (f"colour selectivity of {first}", "0 grey, 0.667 random, 1 colour", f"scales/%s/{first}/colour"),
            ("peak memory", "MiB", "memory/%s"),
        ):
            panels += [self._line(f"{tower}: {title}", unit, key % tower) for tower in self._towers]
        return panels

    def _show_exchange(self) -> list[Any]:
        return [
            self._line("wait for the other tower, a step", "ms", "train/exchange_wait_ms"),
            self._line("bytes from tower 0 to tower 1, a step", "bytes", "train/exchange_bytes"),
            self._line("wait for images, a step", "ms", "train/input_wait_ms"),
        ]

    def _show_pictures(self) -> list[Any]:
        first = self._layers[0]
        kernels = f"{first}: tower 0 above tower 1" if len(self._towers) == 2 else first
        return [
            self._media(kernels, kernels_key(self._network)),
            self._media("validation images with the likeliest classes", IMAGES),
            self._module.WeavePanelSummaryTable(table_name=PREDICTIONS),
            self._media("input of the network", PICTURE),
            self._media("drawn afterwards by launch/figure.py", *(f"figures/{name}" for name in FIGURES)),
        ]

    def _show_ablations(self) -> list[Any]:
        drawings = (f"figures/{name}" for name in DIFFERENCES)
        return [
            self._bars("top-1 error, centre crop", "centre/top1_error"),
            self._bars("top-1 error, mean of ten crops", "ten/top1_error"),
            self._bars("top-5 error, centre crop", "centre/top5_error"),
            self._bars("top-5 error, mean of ten crops", "ten/top5_error"),
            self._media("differences with intervals, and those of 2012, by launch/report.py", *drawings),
            self._module.MarkdownPanel(markdown=format_differences_of_2012()),
        ]
