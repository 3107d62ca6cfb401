"""The images of a run that is there already, for evaluation, figures and reports: never drawn, never downloaded."""

from dataclasses import replace
from pathlib import Path

from twotower.config import DataConfig
from twotower.data.dataset import DataSet
from twotower.data.folder_cache import has_index, root_of
from twotower.data.prepared_set import is_prepared
from twotower.data.preparing.first_use import prepare
from twotower.data.shapes import read_marker

KEY = "data_root"  # by which these commands take the folder of images


def open_images(run_dir: Path, data: DataConfig, given: str | None) -> DataSet:
    """The images that a run was trained on, where it found them, or where they are now.

    A folder that has no index yet gets one (DIR/.twotower), and nothing else is written. The `data.cache` that a run
    stored may name any folder of whoever evaluates it, so it is read where it has the index of these very images, and
    never written.

    Args:
        data: of the run; changed to what was opened.
        given: the folder where the images are now; None: as the run says, from the current folder if that is
            relative, as it is in runs of earlier versions.

    Raises: ValueError if they are not there, or others are.
    """
    if data.kind == "synthetic":
        return prepare(data)
    if given is not None:
        data.root, data.cache = given, None
    root = root_of(data)
    if given is None and not root.is_dir():
        raise ValueError(_missing(run_dir, data, root))
    if data.kind == "shapes":
        _check_drawing(run_dir, data, root, given is not None)
    if data.cache is not None and (is_prepared(root) or not has_index(data)):
        data.cache = None
    return prepare(replace(data, kind="folder"), key=KEY)


def _wanted(data: DataConfig) -> str:
    if data.kind == "shapes":
        return f"the {data.num_train} + {data.num_val} images that data=shapes draws"
    return "a folder that holds train/<class>/* and val/<class>/*, or a prepared set"


def _missing(run_dir: Path, data: DataConfig, root: Path) -> str:
    how = "" if data.root is not None and Path(data.root).is_absolute() else f" (the run says only {root})"
    return (
        f"{run_dir} was trained on the images in {root.absolute()}{how}, which is not there; say where they are now "
        f"with {KEY}=DIR: {_wanted(data)}."
    )


def _check_drawing(run_dir: Path, data: DataConfig, root: Path, is_given: bool) -> None:
    """Whether these are the shapes of the run. Images of one's own in the same classes may be given instead."""
    found = read_marker(root)
    if found is None and is_given:
        data.kind = "folder"
    elif found is None or (found.get("num_train"), found.get("num_val")) != (data.num_train, data.num_val):
        raise ValueError(
            f"{run_dir} was trained on {_wanted(data)}, and {root} does not hold these; say where they are with "
            f"{KEY}=DIR."
        )
