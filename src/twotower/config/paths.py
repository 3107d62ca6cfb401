"""Where things lie: as a command was typed in one folder, and as a run notes it for whoever reads it in another."""

from dataclasses import replace
from pathlib import Path

from twotower.config.schema import Config

SHAPES_ROOT = Path("datasets/shapes")  # root of data=shapes where data.root is not given


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())


def make_absolute(config: Config) -> Config:
    """The same configuration with every path absolute, taken from the current folder.

    So the data of a run, and the run that a command was interrupted in, are found from whatever folder.
    """
    root = config.data.root
    if config.data.kind == "shapes":
        root = root or str(SHAPES_ROOT)
    is_path = config.resume not in ("none", "auto")
    return replace(
        config,
        data=replace(config.data, root=_absolute(root), cache=_absolute(config.data.cache)),
        initial_weights=replace(config.initial_weights, path=_absolute(config.initial_weights.path)),
        run_dir=_absolute(config.run_dir),
        sweep_dir=_absolute(config.sweep_dir),
        resume=str(Path(config.resume).absolute()) if is_path else config.resume,
    )


def without_places(config: Config) -> Config:
    """The same configuration for others: without the places where runs and data happened to lie."""
    root, weights = config.data.root, config.initial_weights
    name = None if root is None or config.data.kind == "shapes" else Path(root).name
    return replace(
        config,
        data=replace(config.data, root=name, cache=None),
        initial_weights=replace(weights, path=None if weights.path is None else short_place(weights.path)),
        run_dir=None,
        sweep_dir=None,
        resume="none",
    )


def from_here(path: str | Path) -> Path:
    """`path` as a person sees it from the current folder: what lies below it without the way there."""
    path = Path(path)
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


def short_place(path: str | Path) -> str:
    """A name for a place in what others read: as it is seen from here, or its last parts, never the way there."""
    seen = from_here(path)
    return str(Path(*seen.parts[-2:]) if seen.is_absolute() else seen)
