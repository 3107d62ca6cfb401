"""The cost of the ablations as a drawing: the difference of each one with its interval, and that of 2012."""

from pathlib import Path

from twotower.figures.drawing import open_pyplot, remove_frame, save
from twotower.figures.palette import HERE, OF_2012, REFERENCE
from twotower.reports.compare import MEASURES, TITLES, Comparison, find_recorded_difference


def draw_differences(comparison: Comparison, view: str, path: Path) -> None:
    """Differences to the baseline in percentage points of error, a row for each group.

    Args:
        view: `centre` or `ten`.
    """
    pyplot = open_pyplot("differences")
    groups = [g for g in comparison.groups[1:] if comparison.difference(g, view, "top1_error") is not None]
    figure, panels = pyplot.subplots(1, 2, figsize=(9.0, 2.0 + 0.5 * len(groups)), sharey=True, layout="constrained")
    rows = range(len(groups))
    for axes, measure in zip(panels, MEASURES, strict=True):
        for row, group in enumerate(groups):
            difference, recorded = (
                comparison.difference(group, view, measure),
                find_recorded_difference(group, comparison.baseline),
            )
            assert difference is not None
            if difference.interval is not None:
                axes.plot(difference.interval, [row, row], color=HERE, lw=3, alpha=0.45, solid_capstyle="butt")
            axes.plot(difference.mean, row, "o", color=HERE, ms=7)
            if recorded is not None:
                axes.plot(getattr(recorded, measure), row, "D", color=OF_2012, ms=6, mfc="none", mew=1.6)
        axes.axvline(0, color=REFERENCE, lw=0.8)
        axes.set_xlabel("more than the baseline's, percentage points", size=9)
        axes.set_title(f"{TITLES[measure]} error", size=10)
        axes.set_yticks(rows, [group.label for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        remove_frame(axes)
    panels[0].plot([], [], "o", color=HERE, label="here, mean over seeds; bar: 95 % interval")
    if any(find_recorded_difference(group, comparison.baseline) is not None for group in groups):
        label = "2012: all of ILSVRC-2012, ten crops, one run"
        panels[0].plot([], [], "D", color=OF_2012, mfc="none", mew=1.6, label=label)
    crops = "ten crops" if view == "ten" else "centre crop"
    figure.suptitle(f"What each change costs, {crops} (baseline: {comparison.baseline_name})", size=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)
