"""The lab book of 2012/13 on one page: Tables 1 and 2 and the ablations, with our own results beside them.

For each row: what the paper prints, what the notes record, and the difference to the run that it is a change of. A
run of ours counts for a row by its network and ablation (`COUNTS_FOR`) and its recipe (`recipe`); runs of one row, as
with several seeds, are averaged. Ours are headed by the images that they were measured on: only the same images give
comparable errors.
"""

import csv
import io
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from twotower.config import Config
from twotower.config.presets import CONF, preset
from twotower.config.stored import read_config
from twotower.evaluation import predictions
from twotower.ground.words import counted
from twotower.reports.labbook import Entry, difference_of, read_labbook
from twotower.reports.recipe import other_experiment, other_training
from twotower.runs import checkpoint

FORMATS = ("text", "markdown", "csv")
BASELINE, PRETRAINED = "alexnet_2012", "six_conv"
COUNTS_FOR = {  # network or ablation of ours -> runs of 2012/13, or what only the paper has
    BASELINE: ("145", "145-2010"),
    "no_lrn": ("148",),
    "no_overlap": ("147",),
    "one_tower": ("145-half",),
    "no_exchange": ("150",),
    "norm_below_relu": ("166",),
    "lrn1_only": ("167",),
    "half_exchange": ("170-quant",),
    "no_colour_noise": ("no-colour-noise",),
    "no_conv3": ("no-conv3",),
    "no_conv4": ("no-conv4",),
    "no_conv5": ("no-conv5",),
    PRETRAINED: ("146-2012-2011",),  # experiment/chain_146_4.yaml
}
SIZE_KEYS = ("width", "image_size", "prepared_size")  # keys of a network's size; the heading says the width
ABLATIONS = CONF / "ablation"
VIEWS = {"centre": "centre", "ten": "10-view"}  # as evaluated here -> as the notes say
_PRINTED = re.compile(r"([+-]?\d+(?:\.\d)?|-) / ([+-]?\d+(?:\.\d)?|-)")
_NOTHING = ("", "")

Pair = tuple[str, str]  # top-1 and top-5 in percent, as text


@dataclass(frozen=True)
class OwnResult:
    """Errors of one of our runs, in percent.

    Attributes:
        name: the key of `COUNTS_FOR`.
        images: what it was measured on, for the heading.
        comparable: whether these are the images of the paper, at the paper's width.
        view: centre or 10-view.
    """

    name: str
    images: str
    comparable: bool
    view: str
    top1_error: float
    top5_error: float


@dataclass(frozen=True)
class Stored:
    """Errors in percent that a run keeps; `identity` as in `predictions`, `view` centre or ten."""

    identity: dict[str, Any]
    view: str
    top1_error: float
    top5_error: float


@dataclass(frozen=True)
class OwnCell:
    """Our mean in one row. `runs` is 0 where a run exists and was not evaluated, None where there is no run."""

    runs: int | None
    errors: Pair
    difference: Pair  # to ours of run 145


@dataclass(frozen=True)
class Line:
    """One row: an entry of the lab book, what the paper prints of it, and ours for each heading."""

    entry: Entry
    paper: Pair
    notes: Pair
    difference: Pair
    own: tuple[OwnCell, ...]


@dataclass(frozen=True)
class Page:
    """Titles with their rows, the headings of our columns, and what has to be said below."""

    sections: list[tuple[str, list[Line]]]
    headings: list[str]
    has_runs: bool
    remarks: list[str]
    has_comparable: bool = False  # whether any of ours was measured on the paper's images, at the paper's width


def counts_for(config: Config) -> str | None:
    """The key of `COUNTS_FOR` that a run has: its network or its ablation, whichever differs from the paper's run.

    None if it is a change of two things, or one that the lab book does not have. A run that began with the weights of
    another one counts only for the six convolutions, and these only so: from scratch they overfitted in 2012.
    """
    changed = [name for name in (config.network.name, config.ablation) if name not in (BASELINE, "none")]
    name = changed[0] if changed else BASELINE
    weights = config.initial_weights
    pretrained = weights.path is not None and (not weights.layers or "fc7" in weights.layers)
    fits = pretrained if name == PRETRAINED else weights.path is None
    return name if len(changed) < 2 and name in COUNTS_FOR and fits else None


def overridden(config: Config) -> list[str]:
    """Keys of the network and of the update in which a run differs from its yamls, apart from its size.

    Raises: ValueError if there is no such network or ablation in conf/ any more.
    """
    path = ABLATIONS / f"{config.ablation}.yaml"
    if not path.exists():
        raise ValueError(f"ablation={config.ablation} is not among the yamls of {ABLATIONS}.")
    ablation: Any = OmegaConf.to_container(OmegaConf.load(path))
    theirs, ours = asdict(preset(config.network.name, ablation.get("network"))), asdict(config.network)
    found = [f"network.{key}" for key in ours if key not in SIZE_KEYS and ours[key] != theirs[key]]
    rule = ablation.get("optim", {}).get("rule", "paper")
    return found + (["optim.rule"] if config.optim.rule != rule else [])


def images_of(identity: dict[str, Any]) -> tuple[str, bool]:
    """Describes the images of predictions for a heading, and whether that is comparable with the paper.

    A folder is called ILSVRC only if it has 1000 classes and 50,000 images (or the 150,000 of 2010's test set).
    """
    data, split, about = identity["data"], identity["split"], ""
    size = (data["num_classes"], data["num_images"])
    comparable = data["kind"] == "folder" and size in ((1000, 50_000), (1000, 150_000))
    if comparable:
        of_2010 = data["source"] == "ilsvrc2010" or size[1] == 150_000
        about = f"{'ILSVRC-2010' if of_2010 else 'ILSVRC-2012'} {split}"
    elif data["kind"] == "folder":
        classes = counted(size[0], "class", "classes")
        about = f"folder {Path(data['root']).name}, {classes}, {counted(size[1], 'image')}"
    else:
        about = f"{data['kind']}, {counted(size[1], 'image')}"
    if identity["width"] != 1:
        comparable, about = False, f"{about}, width {identity['width']:g}"
    return about, comparable


def stored_results(run_dir: Path) -> list[Stored]:
    """Results of a run's last checkpoint: from stored predictions, and what only evaluation.json still has.

    Raises: ValueError for a folder without a complete checkpoint.
    """
    path = checkpoint.find(run_dir)
    sha256 = checkpoint.read_manifest(path).sha256
    found = []
    for view in VIEWS:
        for file in sorted((run_dir / predictions.FOLDER).glob(f"{path.name}-*-{view}.safetensors")):
            identity = predictions.read_identity(file)
            if identity is not None and identity["checkpoint"] == sha256:
                stored = predictions.read(file, identity)
                assert stored is not None
                counts = stored.counts()
                found.append(Stored(identity, view, counts.top1_error, counts.top5_error))
    report = run_dir / "evaluation.json"
    content = json.loads(report.read_text()) if report.exists() else {}
    if content.get("identity", {}).get("checkpoint") == sha256:
        for view in VIEWS:
            if content[view] is not None:
                one = content[view]
                found.append(Stored(content["identity"], view, one["top1_error"], one["top5_error"]))
    return found


def _evaluated(run_dir: Path, name: str) -> list[OwnResult]:
    """One result for each set of images and view."""
    found: dict[tuple[str, str], OwnResult] = {}
    for one in stored_results(run_dir):
        images, comparable = images_of(one.identity)
        result = OwnResult(name, images, comparable, VIEWS[one.view], one.top1_error, one.top5_error)
        found.setdefault((images, one.view), result)
    return list(found.values())


def own_results(runs: Sequence[str]) -> tuple[list[OwnResult], set[str], list[str]]:
    """The results of our runs, the rows that they count for, and remarks on what is missing.

    Raises: ValueError for a folder without run or checkpoint.
    """
    results, names, remarks = [], set(), []
    unlike: dict[str, list[str]] = {}  # differences in training -> runs
    for run in runs:
        config = read_config(Path(run))
        name = counts_for(config)
        if name is None:
            about = f"network={config.network.name}, ablation={config.ablation}"
            weights = "" if config.initial_weights.path is None else ", with initial weights of another run"
            remarks.append(f"{run} is {about}{weights}, which is no run of the lab book")
            continue
        changes = overridden(config) + other_experiment(config)
        if changes:
            remarks.append(
                f"{run} is not the run that its yamls describe ({', '.join(changes)} differ), so it is left out"
            )
            continue
        unlike.setdefault(", ".join(other_training(config, name)), []).append(run)
        names.add(name)
        evaluated = _evaluated(Path(run), name)
        results += evaluated
        wanted = {entry.view for entry in read_labbook() if entry.run in COUNTS_FOR[name]}
        for crops, view in VIEWS.items():
            if view in wanted and view not in {result.view for result in evaluated}:
                remarks.append(
                    f"{run}, {view}, not evaluated: python launch/evaluate.py {shlex.quote(run)} crops={crops}"
                )
    for differences, alike in unlike.items():
        if differences:
            which = f"{alike[0]} counts" if len(alike) == 1 else f"{alike[0]} and {len(alike) - 1} more count"
            remarks.append(f"{which}, though not trained as in 2012: {differences}")
    return results, names, remarks


def _printed(entry: Entry) -> Pair:
    """Writes errors as the paper prints them; "-" where it leaves out one of the two."""
    match = _PRINTED.search(entry.paper_item)
    return _NOTHING if match is None else (match[1], match[2])


def signed(difference: float) -> str:
    """With two digits, and a sign unless it is nothing."""
    return f"{difference:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00")


def _own_cell(entry: Entry, images: str, results: Sequence[OwnResult], names: set[str]) -> OwnCell:
    here = [result for result in results if (result.images, result.view) == (images, entry.view)]
    if any(result.comparable for result in here) and images != f"ILSVRC-{entry.year} {entry.set}":
        return OwnCell(None, _NOTHING, _NOTHING)
    ours = [result for result in here if entry.run in COUNTS_FOR[result.name]]
    if not ours:
        exists = any(entry.run in COUNTS_FOR[name] for name in names)
        return OwnCell(0 if exists else None, _NOTHING, _NOTHING)
    top1, top5 = mean(result.top1_error for result in ours), mean(result.top5_error for result in ours)
    base, difference = [result for result in here if result.name == BASELINE], _NOTHING
    if base and ours[0].name != BASELINE:
        of_base = mean(result.top1_error for result in base), mean(result.top5_error for result in base)
        difference = (signed(top1 - of_base[0]), signed(top5 - of_base[1]))
    return OwnCell(len(ours), (f"{top1:.2f}", f"{top5:.2f}"), difference)


def make_page(runs: Sequence[str] = ()) -> Page:
    """The page, with a column for each set of images that our runs were evaluated on; without runs it is empty.

    Differences of the notes are to the baseline that the notes name, ours to our run of the paper's network.

    Raises: ValueError for a folder without run or checkpoint.
    """
    results, names, remarks = own_results(runs)
    headings = list(dict.fromkeys(result.images for result in results))
    for images in dict.fromkeys(result.images for result in results if not result.comparable):
        remarks.append(f"ours ({images}) cannot be compared with the paper's: other images, or another width")
    entries = read_labbook()

    comparable = {result.images for result in results if result.comparable}

    def line(entry: Entry, only_comparable: bool = False) -> Line:
        points = difference_of(entry, entries)
        difference = _NOTHING if points is None else (signed(points[0]), signed(points[1]))
        notes = _NOTHING if entry.is_only_printed else (f"{entry.top1_error:.4f}", f"{entry.top5_error:.4f}")
        own = tuple(
            OwnCell(None, _NOTHING, _NOTHING)
            if only_comparable and images not in comparable
            else _own_cell(entry, images, results, names)
            for images in headings or [""]
        )
        return Line(entry, _printed(entry), notes, difference, own)

    def of_table(entry: Entry, number: int) -> bool:
        return entry.paper_item.startswith(f"Table {number}")

    can_be_repeated = {run for runs in COUNTS_FOR.values() for run in runs}
    changes = [entry for entry in entries if entry.baseline and entry.run in can_be_repeated]
    rest = [entry for entry in entries if entry not in changes and not entry.paper_item.startswith("Table")]
    changes.sort(key=lambda entry: not entry.paper_item.startswith("Section"))
    ablations = [line(entry) for entry in changes]
    # Of the other changes the paper prints errors, not differences: those are in Table 2.
    ablations = [one if one.paper[0].startswith(("+", "-")) else replace(one, paper=_NOTHING) for one in ablations]
    sections = [
        # What was measured on other images stands in one place only.
        ("Table 1: ILSVRC-2010, test set", [line(e, True) for e in entries if of_table(e, 1)]),
        ("Table 2: ILSVRC-2012, validation and test set", [line(e) for e in entries if of_table(e, 2)]),
        ("Ablations: sections 3.2 to 3.4, 4.1 and 7, and networks of the lab book that are here", ablations),
        ("The rest of the lab book, and section 6: ImageNet of Fall 2009", [line(e, True) for e in rest]),
    ]
    return Page(
        sections, [f"ours ({images})" for images in headings] or ["ours"], bool(runs), remarks, bool(comparable)
    )


HEADS = ("network", "run", "baseline", "images, view")
PAIRS = ("paper", "notes of 2012/13", "to the baseline")


def _words(line: Line) -> list[str]:
    entry = line.entry
    run = f"{entry.run} (paper only)" if entry.is_only_printed else entry.run
    images = f"{entry.year} {entry.set}"
    return [entry.change, run, entry.baseline, f"{images}, {entry.view}" if entry.view else images]


def _joined(pair: Pair) -> str:
    return " / ".join(pair) if any(pair) else ""


def _joined_row(line: Line, page: Page) -> list[str]:
    cells = [*_words(line), _joined(line.paper), _joined(line.notes), _joined(line.difference)]
    for own in line.own:
        runs = f" ({counted(own.runs, 'run')})" if own.runs is not None and own.runs > 1 else ""
        cells += ["not evaluated" if own.runs == 0 else _joined(own.errors) + runs, _joined(own.difference)]
    return cells[: len(_joined_heads(page))]


def _joined_heads(page: Page) -> list[str]:
    if not page.has_runs:
        return [*HEADS, *PAIRS, *page.headings]
    return [*HEADS, *PAIRS, *(head for heading in page.headings for head in (heading, "to ours of 145"))]


def as_rows(page: Page) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, heads and rows of each table, as text."""
    heads = _joined_heads(page)
    return [(title, heads, [_joined_row(line, page) for line in lines]) for title, lines in page.sections]


def as_text(page: Page, width: int) -> str:
    """Tables of box characters, at most `width` characters wide."""
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, emoji=False)
    for title, lines in page.sections:
        table = Table(title=f"{title} (top-1 / top-5 error, %)", title_justify="left")
        for i, head in enumerate(_joined_heads(page)):
            justify: Literal["left", "right"] = "right" if i >= len(HEADS) else "left"
            # Names of folders stand in the heads: folded, never cut.
            table.add_column(head, justify=justify, overflow="fold", no_wrap=0 < i < len(HEADS + PAIRS))
        for line in lines:
            table.add_row(*_joined_row(line, page))
        console.print(table)
    lines_of_text = [line.rstrip() for line in file.getvalue().splitlines()]
    return "\n".join([*lines_of_text, *page.remarks]) + "\n"


def as_markdown(page: Page) -> str:
    """Tables of GitHub's Markdown."""
    heads, parts = _joined_heads(page), []
    ruler = ["---"] * len(HEADS) + ["---:"] * (len(heads) - len(HEADS))
    for title, lines in page.sections:
        rows = [heads, ruler, *(_joined_row(line, page) for line in lines)]
        text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"### {title} (top-1 / top-5 error, %)\n\n{text}\n")
    return "\n".join([*parts, *(f"- {remark}" for remark in page.remarks)]).rstrip() + "\n"


def as_csv(page: Page) -> str:
    """One table, its first column the title; every number in a column of its own, all in percent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    pairs = [*PAIRS, *(head for heading in page.headings for head in (heading, f"{heading}, to 145"))]
    columns = [f"{head}, {top}" for head in pairs for top in ("top-1", "top-5")]
    writer.writerow(["table", *HEADS, *columns, *(f"{heading}, runs" for heading in page.headings)])
    for title, lines in page.sections:
        for line in lines:
            numbers = [*("" if word == "-" else word for word in line.paper), *line.notes, *line.difference]
            for own in line.own:
                numbers += [*own.errors, *own.difference]
            counts = ["" if own.runs is None else str(own.runs) for own in line.own]
            writer.writerow([title, *_words(line), *numbers, *counts])
    return file.getvalue()


def render(page: Page, form: str, width: int) -> str:
    """The page as `text`, `markdown` or `csv`. Raises: ValueError for another word."""
    if form not in FORMATS:
        raise ValueError(f"format={form} is not known; choose one of {', '.join(FORMATS)}.")
    return as_text(page, width) if form == "text" else as_markdown(page) if form == "markdown" else as_csv(page)
