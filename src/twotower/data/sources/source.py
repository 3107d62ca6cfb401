"""Lists what a source holds before any image is read: its classes, and where the images of each split lie.

The order is that of the archives, so that they are read from front to back. From here on, splits in archives of their
own and a tree that mixes them look the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from twotower.config import SourceConfig, check_bounds
from twotower.data.sources import ilsvrc, tree
from twotower.data.sources.archives import Member, printable

CIFAR10 = tree.CIFAR10


@dataclass(frozen=True)
class Entry:
    """One image of a source: `size` bytes at `offset` of `file`, counted after decompression.

    Attributes:
        file: path of the archive or image.
        class_name: name of its class.
        name: path in the archive or folder, for people.
        problem: reason why it cannot be used, as far as that is known without reading it; else empty.
        form: `file` for an encoded image, or `cifar10` for 32 x 32 planes of R, G, B.
    """

    file: str
    offset: int
    size: int
    class_name: str
    name: str
    problem: str
    form: str


@dataclass(frozen=True)
class Source:
    """A source whose archives are all there.

    Attributes:
        files: all archives; by their sizes a plan recognises them.
        words: {class: readable name}, where the classes are known beforehand; else empty.
        walk: yields split and entry of each image, and calls its argument with each file that it passes over.
    """

    files: list[Path]
    words: dict[str, str]
    walk: Callable[[Callable[[str], None]], Iterator[tuple[str, Entry]]]


def _entry(file: Path, class_name: str, member: Member) -> Entry:
    return Entry(
        file=str(file),
        offset=member.offset,
        size=member.size,
        class_name=class_name,
        name=printable(member.name),
        problem=member.problem,
        form=member.form,
    )


def _missing(config: SourceConfig, key: str, path: Path | str) -> ValueError:
    hints = [f"get it from {config.page}"] if config.page else []
    if config.downloads:
        hints.append("let it be downloaded with download=true")
    hint = f"; {' or '.join(hints)}" if hints else ""
    return ValueError(f"{path} is not there ({key}){hint}.")


def find_source(config: SourceConfig) -> Source:
    """Opens a source. Raises: ValueError in one sentence if an archive is missing, or the devkit is none."""
    check_bounds(config, "source.")
    if config.root is None:
        instead = ", or download=true" if config.downloads else ""
        raise ValueError(
            f"source={config.name} needs source.root=DIR, the folder with its archives or images{instead}."
        )
    root = Path(config.root)
    if not root.is_dir():
        raise ValueError(f"source.root={root} does not exist or is no folder.")
    return _find_ilsvrc(config, root) if config.kind == "ilsvrc" else _find_tree(config, root)


def _find_ilsvrc(config: SourceConfig, root: Path) -> Source:
    paths: dict[str, Path] = {}
    for key in ("train", "val", "test", "devkit", "test_truth"):
        name = getattr(config, key)
        if name is None:
            if key in ("train", "val", "devkit"):
                raise ValueError(f"source.{key} must be given: the name of the archive.")
            continue
        paths[key] = root / name
        if not paths[key].is_file():
            raise _missing(config, f"source.{key}", paths[key])
    if ("test" in paths) != ("test_truth" in paths):
        raise ValueError("source.test and source.test_truth belong together; give both or set both to null.")
    devkit = ilsvrc.read_devkit(paths["devkit"])

    def walk(ignore: Callable[[str], None]) -> Iterator[tuple[str, Entry]]:
        # The small archives come first, because their faults then show at once.
        for class_name, member in ilsvrc.walk_numbered(paths["val"], devkit.truth, "val"):
            yield "val", _entry(paths["val"], class_name, member)
        if "test" in paths:
            truth = ilsvrc.read_truth(paths["test_truth"].read_bytes(), devkit.by_id, paths["test_truth"])
            for class_name, member in ilsvrc.walk_numbered(paths["test"], truth, "test"):
                yield "test", _entry(paths["test"], class_name, member)
        for class_name, member in ilsvrc.walk_train(paths["train"], devkit.words):
            yield "train", _entry(paths["train"], class_name, member)

    return Source(list(paths.values()), devkit.words, walk)


def _find_tree(config: SourceConfig, root: Path) -> Source:
    if not config.archives:

        def walk_folder(ignore: Callable[[str], None]) -> Iterator[tuple[str, Entry]]:
            for split, class_name, member in tree.walk_folder(root, config.splits, ignore):
                yield split, _entry(root / member.name, class_name, member)

        return Source([], {}, walk_folder)
    try:
        archives = tree.find_archives(root, config.archives)
    except FileNotFoundError as error:
        raise _missing(config, "source.archives", root / str(error)) from error

    def walk_archives(ignore: Callable[[str], None]) -> Iterator[tuple[str, Entry]]:
        seen: dict[tuple[str, str, str], Path] = {}
        for path in archives:
            for split, class_name, member in tree.walk_archive(path, config.splits, ignore):
                # Archives of one set in several sizes often lie in one folder and fit one pattern.
                first = seen.setdefault((split, class_name, member.name.rpartition("/")[2]), path)
                if first != path:
                    raise ValueError(
                        f"{path} and {first} both hold {member.name}; name those that belong together with "
                        "'source.archives=[...]'."
                    )
                yield split, _entry(path, class_name, member)

    return Source(archives, {}, walk_archives)
