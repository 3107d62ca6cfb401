"""What a source holds, before any image is read: classes, and for each split where its images lie.

The order is that of the archives, so that the disk reads from front to back. Splits with one archive each and a tree
that mixes them look the same from here on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from twotower.config import SourceConfig
from twotower.data.sources import ilsvrc, tree
from twotower.data.sources.archives import Member, printable

CIFAR10 = tree.CIFAR10
DOWNLOADS = Path("datasets", "downloads")  # git ignores datasets/


@dataclass(frozen=True)
class Entry:
    """One image of a source: `size` bytes at `offset` of `file`, counted after decompression.

    Attributes:
        name: for people, the path in the archive or folder.
        problem: why it cannot be used, as far as that is known without reading it; else empty.
        form: `file`, or `cifar10` for 32 x 32 planes of R, G, B.
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
    """A source that was found.

    Attributes:
        files: all archives, whose size and time of change tell whether they are still the same.
        words: {class: readable name}, where the classes are known beforehand; else empty.
        walk: split and entry of each image, told what is passed over.
    """

    files: list[Path]
    words: dict[str, str]
    walk: Callable[[Callable[[str], None]], Iterator[tuple[str, Entry]]]


def _entry(file: Path, class_name: str, member: Member) -> Entry:
    return Entry(
        str(file), member.offset, member.size, class_name, printable(member.name), member.problem, member.form
    )


def _missing(config: SourceConfig, key: str, path: Path | str) -> ValueError:
    hints = [f"get it from {config.page}"] if config.page else []
    if config.downloads:
        hints.append("let it be downloaded with download=true")
    hint = f"; {' or '.join(hints)}" if hints else ""
    return ValueError(f"{path} is not there ({key}){hint}.")


def find_source(config: SourceConfig) -> Source:
    """Raises: ValueError in one sentence if an archive is missing, or the devkit is none."""
    if config.kind not in ("ilsvrc", "tree"):
        raise ValueError(f"source.kind={config.kind} is not known; choose one of ilsvrc, tree.")
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
        # The small ones first: what is wrong with them shows at once.
        for class_name, member in ilsvrc.walk_numbered(paths["val"], devkit.truth, "val"):
            yield "val", _entry(paths["val"], class_name, member)
        if "test" in paths:
            truth = ilsvrc.truth_from(paths["test_truth"].read_bytes(), devkit.by_id, paths["test_truth"])
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
                # Several sizes of one set lie easily in one folder, and fit one pattern.
                other = seen.setdefault((split, class_name, member.name.rpartition("/")[2]), path)
                if other != path:
                    raise ValueError(
                        f"{path} and {other} both hold {member.name}; name those that belong together with "
                        "'source.archives=[...]'."
                    )
                yield split, _entry(path, class_name, member)

    return Source(archives, {}, walk_archives)


def download(config: SourceConfig, say: Callable[[str], None]) -> None:
    """Fetches the archives that are not there yet, and compares their checksums.

    Without `root` they go to datasets/downloads/<name>, which becomes the root.

    Raises: ValueError, OSError.
    """
    import pooch  # here, as only a download needs it
    import requests

    if config.root is None:
        if not config.downloads:
            by_hand = f", only by hand from {config.page}" if config.page else ""
            raise ValueError(f"source={config.name} cannot be downloaded{by_hand}; give source.root=DIR.")
        config.root = str(DOWNLOADS / config.name)
    root = Path(config.root)
    for one in config.downloads:
        if (root / one.file).exists():
            continue
        say(f"downloading {one.url}")
        try:
            pooch.retrieve(one.url, one.checksum, one.file, root, progressbar=True)
        except ValueError as error:
            raise ValueError(f"{one.url} did not arrive as it should be: {error}") from error
        except requests.RequestException as error:
            raise ValueError(
                f"{one.url} could not be reached ({error}); get {one.file} elsewhere and put it into {root}."
            ) from error
