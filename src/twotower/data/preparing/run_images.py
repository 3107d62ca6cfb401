"""Opens the images of a run, for evaluation, figures and reports; never draws or downloads any."""

from dataclasses import replace
from pathlib import Path

from twotower.config import DataConfig
from twotower.data.dataset import DataSet
from twotower.data.folder_cache import find_root, has_index
from twotower.data.prepared_set import is_prepared
from twotower.data.preparing.first_use import prepare
from twotower.data.shapes import read_marker

KEY = "data_root"  # argument by which these commands take the folder of images


def open_images(run_dir: Path, data: DataConfig, given: str | None) -> tuple[DataConfig, DataSet]:
    """Opens the images that a run was trained on, in the folder that the run names or in another one.

    A folder without an index gets one (DIR/.twotower); nothing else is written. The `data.cache` in the configuration
    of a run from elsewhere may name any folder, so it is read where it has the index of these very images, and never
    written.

    Args:
        data: the run's settings.
        given: the folder where the images are now; None: the folder that the run names, below the current folder if
            it is relative, as in runs of earlier versions.

    Returns: the settings of the images that were opened, and the images.

    Raises: ValueError if the images are not there, or are other ones.
    """
    if data.kind == "synthetic":
        return data, prepare(data)
    if given is not None:
        data = replace(data, root=given, cache=None)
    root = find_root(data)
    if given is None and not root.is_dir():
        raise ValueError(_missing(run_dir, data, root))
    if data.kind == "shapes":
        data = _check_drawing(run_dir, data, root, given is not None)
    if data.cache is not None and (is_prepared(root) or not has_index(data)):
        data = replace(data, cache=None)
    return data, prepare(replace(data, kind="folder"), key=KEY)


def _describe(data: DataConfig) -> str:
    if data.kind == "shapes":
        return f"the {data.num_train} + {data.num_val} images that data=shapes draws"
    return "a folder that holds train/<class>/* and val/<class>/*, or a prepared set"


def _missing(run_dir: Path, data: DataConfig, root: Path) -> str:
    how = "" if data.root is not None and Path(data.root).is_absolute() else f" (the run says only {root})"
    return (
        f"{run_dir} was trained on the images in {root.absolute()}{how}, which is not there; say where they are now "
        f"with {KEY}=DIR: {_describe(data)}."
    )


def _check_drawing(run_dir: Path, data: DataConfig, root: Path, is_given: bool) -> DataConfig:
    """Checks that these are the shapes of the run. A person may give images of the same classes instead.

    Returns: the settings; of a folder, if it holds other images.

    Raises: ValueError if they are not, and nobody gave them.
    """
    marker = read_marker(root)
    if marker is None and is_given:
        return replace(data, kind="folder")
    if marker is None or (marker.get("num_train"), marker.get("num_val")) != (data.num_train, data.num_val):
        raise ValueError(
            f"{run_dir} was trained on {_describe(data)}, and {root} does not hold these; say where they are with "
            f"{KEY}=DIR."
        )
    return data
