"""Reports what sweeps and runs show: a page, tables and pictures.

python launch/report.py DIR [DIR ...] [output=report] [baseline=none] [evaluate=true] [figures=true] [data_root=DIR]
                        [keep=DIR]

DIR is the folder of a sweep or of a run, or one that holds several. keep=DIR keeps what reports read of each finished
run there, without weights; given as a folder, they stand in a later report beside runs of other days and machines.
"""

from twotower.command_line.arguments import name_paths, quote_paths
from twotower.command_line.command import command
from twotower.config import ReportConfig
from twotower.ground.screen import show
from twotower.reports.make import make_report


def to_overrides(arguments: list[str]) -> list[str]:
    """Folders without a key are `folders`. Raises: ValueError."""
    named = name_paths(arguments, ReportConfig, several="folders")
    return quote_paths(named, ("folders", "output", "baseline", "data_root", "keep"))


@command("report", to_overrides=to_overrides)
def main(settings: ReportConfig) -> None:
    page = make_report(settings)
    show((page.parent / "table.md").read_text(encoding="utf-8").split("### All runs")[0].rstrip())
    show(f"\nwritten: {page}, and beside it table.md, table.csv, runs.csv, summary.json and the pictures")


if __name__ == "__main__":
    main()
