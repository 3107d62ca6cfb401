"""Reads data sets that are trees, .../<split>/<class>/<image>, in a folder or in archives; and CIFAR-10's batches."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from twotower.data.sources.archives import MAX_IMAGE_BYTES, TOO_LARGE, Member, open_archive, walk

SUFFIXES = {"", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
CIFAR10 = "cifar10"  # form of its entries
CIFAR_SIDE = 32  # pixels
CIFAR_MEMBERS = 20  # entries to search for its list of classes; its binary archive has fewer
CIFAR_RECORD = 1 + 3 * CIFAR_SIDE**2  # bytes: a label, then the planes R, G, B


def _split_and_class(name: str, splits: dict[str, str]) -> tuple[str, str] | None:
    """Split and class of the path of an image; None for other files."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or parts[-3] not in splits or parts[-2].startswith(".") or parts[-1].startswith("."):
        return None
    return (splits[parts[-3]], parts[-2]) if PurePosixPath(name).suffix.lower() in SUFFIXES else None


def walk_folder(
    root: Path, splits: dict[str, str], ignore: Callable[[str], None]
) -> Iterator[tuple[str, str, Member]]:
    """Yields split, class and member of each image of a folder, sorted by name; a member's offset is 0.

    Links are followed, because it is the user's own folder. Raises: ValueError if a part of it cannot be read.
    """
    try:
        for folder, split in splits.items():
            if not (root / folder).is_dir():
                continue
            for class_folder in _sorted(root / folder):
                if not class_folder.is_dir():
                    ignore(class_folder.name)
                    continue
                for path in _sorted(class_folder):
                    name = path.relative_to(root).as_posix()
                    problem = _file_problem(path)
                    if problem is None or _split_and_class(name, splits) is None:
                        ignore(name)
                    else:
                        size = 0 if problem else path.stat().st_size
                        yield split, class_folder.name, Member(name, 0, size, problem)
    except OSError as error:
        raise ValueError(f"{error.filename or root} cannot be read ({error.strerror}).") from error


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: f"{path.as_posix()}/")


def _file_problem(path: Path) -> str | None:
    """The problem of a file, as far as its size shows it; empty if it has none, None if it is no file."""
    if not path.is_file():
        return "it is a broken link" if path.is_symlink() and not path.exists() else None
    size = path.stat().st_size
    return TOO_LARGE if size > MAX_IMAGE_BYTES else ("" if size else "the file is empty")


def walk_archive(
    path: Path, splits: dict[str, str], ignore: Callable[[str], None]
) -> Iterator[tuple[str, str, Member]]:
    """Yields split, class and member of each image of an archive, in the order of the archive.

    Raises: ValueError if it holds pickles, which can run code.
    """
    cifar = _cifar_classes(path)
    with open_archive(path) as view:
        for member in walk(view, path):
            base = PurePosixPath(member.name).name
            if base in ("data_batch_1", "test_batch"):
                raise ValueError(
                    f"{path} holds Python pickles, which can run code; get the binary version instead "
                    "(cifar-10-binary.tar.gz)."
                )
            if cifar and base.endswith(".bin") and not member.problem:
                split = splits.get("test" if base.startswith("test") else "train")
                for record in range(member.size // CIFAR_RECORD if split else 0):
                    offset = member.offset + record * CIFAR_RECORD
                    view.seek(offset)
                    label = int.from_bytes(view.read(1))
                    problem = "" if label < len(cifar) else f"its label is {label}"
                    name = f"{base.removesuffix('.bin')}_{record:05d}"
                    yield (
                        split or "",
                        cifar[min(label, len(cifar) - 1)],
                        Member(name, offset + 1, CIFAR_RECORD - 1, problem, CIFAR10),
                    )
                continue
            split_and_class = _split_and_class(member.name, splits)
            if split_and_class is None:
                ignore(member.name)
            else:
                yield *split_and_class, member


def _cifar_classes(path: Path) -> list[str]:
    """Reads CIFAR-10's list of classes; empty for any other archive."""
    with open_archive(path) as view:
        for member in islice(walk(view, path), CIFAR_MEMBERS):
            base = PurePosixPath(member.name).name
            if base == "batches.meta.txt" and not member.problem:
                return view.part(member).read().decode("ascii", "replace").split()
    return []


def find_archives(root: Path, patterns: list[str]) -> list[Path]:
    """The files of `root` that match one of the patterns, sorted.

    Raises: FileNotFoundError naming a pattern that matches none.
    """
    archives: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_absolute():
            matches = [path] if path.exists() else []
        else:
            matches = [match for match in root.glob(pattern) if match.is_file()]
        if not matches:
            raise FileNotFoundError(pattern)
        archives.update(matches)
    return sorted(archives)
