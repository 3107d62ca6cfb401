"""Reads ILSVRC-2010 and 2012 as published: a tar of 1,000 class tars, flat tars for val and test, a devkit."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from twotower.data.sources.archives import TOO_LARGE, Member, open_archive, walk
from twotower.ground.wording import counted

CLASS_ARCHIVE = re.compile(r"(?:.*/)?(n\d{8})\.tar")
CLASS_FOLDER = re.compile(r"(?:.*/)?(n\d{8})/[^/]+")
NUMBERED = re.compile(r".*_(\d{8})\.\w+")


@dataclass(frozen=True)
class Devkit:
    """The classes by WordNet id, in sorted order, and the class of each validation image.

    Attributes:
        words: {wnid: "tench, Tinca tinca"}.
        truth: the wnid of validation image 1, 2, ...
        by_id: {ILSVRC id: wnid}; ids count from 1 and are not sorted like wnids.
    """

    words: dict[str, str]
    truth: list[str]
    by_id: dict[int, str]


def read_devkit(path: Path) -> Devkit:
    """Reads the devkit's archive. Raises: ValueError if it is missing, damaged or no devkit."""
    files: dict[str, bytes] = {}
    with open_archive(path) as view:
        for member in walk(view, path):
            for ending in ("data/meta.mat", "validation_ground_truth.txt"):
                if member.name.endswith(ending) and not member.problem:
                    files[ending] = view.part(member).read()
    if len(files) < 2:
        raise ValueError(f"{path} is no ILSVRC devkit: it has no data/meta.mat with a validation_ground_truth.txt.")
    by_id, words = _read_synsets(files["data/meta.mat"], path)
    return Devkit(words, read_truth(files["validation_ground_truth.txt"], by_id, path), by_id)


def _read_synsets(content: bytes, path: Path) -> tuple[dict[int, str], dict[str, str]]:
    """The attributes `by_id` and `words` of a `Devkit`, from its meta.mat."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)["synsets"])
        (id_field,) = [name for name in synsets.dtype.names or () if name.endswith("_ID")]
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        by_id = {int(leaf[id_field]): str(leaf["WNID"]) for leaf in leaves}
        words = {str(leaf["WNID"]): str(leaf["words"]) for leaf in leaves}
    except Exception as error:  # any kind, because the file may hold anything
        raise ValueError(f"{path}: its meta.mat cannot be read ({error}); get the devkit again.") from error
    return by_id, dict(sorted(words.items()))


def read_truth(content: bytes, by_id: dict[int, str], path: Path) -> list[str]:
    """The wnid of each image, from a text with one ILSVRC id a line. Raises: ValueError for an unknown id."""
    truth = []
    for number, line in enumerate(content.decode("ascii", "replace").split(), 1):
        if not line.isdigit() or int(line) not in by_id:
            raise ValueError(
                f"{path}: line {number} of the ground truth is {line!r}, which is no class of the devkit."
            )
        truth.append(by_id[int(line)])
    return truth


def walk_train(path: Path, words: dict[str, str]) -> Iterator[tuple[str, Member]]:
    """Yields class and member of each training image. Raises: ValueError if this is not the training archive."""
    with open_archive(path) as view:
        for outer in walk(view, path):
            archive, folder = CLASS_ARCHIVE.fullmatch(outer.name), CLASS_FOLDER.fullmatch(outer.name)
            if archive is None and folder is None:
                raise ValueError(
                    f"{path} is not the training archive: it holds {outer.name}, not tars named by class like "
                    "n01440764.tar. Did you give the archive of another split as source.train?"
                )
            wnid = (archive or folder)[1]  # type: ignore[index]
            if wnid not in words:
                raise ValueError(
                    f"{path} holds class {wnid}, which the devkit does not know; do both belong together?"
                )
            if archive is None:
                yield wnid, outer
                continue
            if outer.problem not in ("", TOO_LARGE):  # that limit is for images
                raise ValueError(f"{path} is damaged: {outer.name} cannot be used ({outer.problem}).")
            for inner in walk(view.part(outer), path / outer.name):
                yield (
                    wnid,
                    Member(
                        name=f"{wnid}/{PurePosixPath(inner.name).name}",
                        offset=outer.offset + inner.offset,
                        size=inner.size,
                        problem=inner.problem,
                    ),
                )


def walk_numbered(path: Path, truth: list[str], split: str) -> Iterator[tuple[str, Member]]:
    """Yields class and member of each image of a flat archive, whose names end in the line of the ground truth.

    Raises: ValueError if this is another archive, or holds an image twice.
    """
    seen: set[int] = set()
    with open_archive(path) as view:
        for member in walk(view, path):
            if CLASS_ARCHIVE.fullmatch(member.name):
                raise ValueError(
                    f"{path} is the training archive: it holds {member.name}. Give the archive of the images as "
                    f"source.{split}."
                )
            number = NUMBERED.fullmatch(member.name)
            if number is None or f"_{split}_" not in member.name:
                raise ValueError(f"{path} is not the {split} archive: it holds {member.name}.")
            if not 1 <= int(number[1]) <= len(truth):
                raise ValueError(
                    f"{path} holds {member.name}, but the ground truth has {counted(len(truth), 'line')}; do "
                    "both belong together?"
                )
            if int(number[1]) in seen:
                raise ValueError(f"{path} is damaged: it holds {member.name} twice; get it again.")
            seen.add(int(number[1]))
            yield truth[int(number[1]) - 1], member
