"""Refuses images that cannot be used: counts those of a source, and words the errors for those of a folder."""

from pathlib import Path

from twotower.data.folder import FolderIndex
from twotower.data.prepared_set import SPLITS
from twotower.data.preparing.shard_sums import read_sums
from twotower.ground.files import write_text
from twotower.ground.wording import counted, printable


class Rejects:
    """Counts the unusable images of a source, and stops the work when there are too many.

    Args:
        max_rejects: part of the images that may be unusable, 0..1.
        num_images: images of the source, usable or not.
        work: folder of the finished shards' sums.
        size: sides of the set's squares, in pixels.
    """

    def __init__(self, max_rejects: float, num_images: int, work: Path, size: int) -> None:
        self._max, self._total, self._work, self._size = max_rejects, num_images, work, size
        self.count = 0

    def add(self, count: int) -> None:
        """Counts `count` more. Raises: ValueError with the first of them, if there are more than `max_rejects`."""
        self.count += count
        if count == 0 or self.count <= self._max * self._total:
            return
        listed = [
            f"{split}: {printable(name)}: {reason}"
            for split in SPLITS
            for sums in sorted(self._work.glob(f"{split}-*.npz"))
            for name, reason in read_sums(sums, self._size)[0]["rejects"]
        ]
        write_text(self._work / "rejects.txt", "".join(line + "\n" for line in listed))
        first = "".join(f"\n  {printable(line)}" for line in listed[:20])
        raise ValueError(
            f"{self.count:,} of {counted(self._total, 'image')} cannot be used, more than max_rejects={self._max:g} "
            "allows. If that is as it should be, give a larger max_rejects (at most 1). The list, also in "
            f"{self._work / 'rejects.txt'}:{first}"
        )


def refuse_file(path: str, reason: str) -> ValueError:
    """The error for a file of a folder that cannot be decoded and may not be left out."""
    return ValueError(
        f"{printable(str(path))} cannot be decoded ({reason}); mend or remove it, or leave such files out with "
        "data.on_error=skip."
    )


def check_remaining(index: FolderIndex, rejects: dict[str, str]) -> None:
    """Checks that each class of each split keeps an image.

    Args:
        rejects: reasons by path below the root.

    Raises: ValueError naming a class that has none.
    """
    for split, by_class in index.files.items():
        for name, files in by_class.items():
            if all(f"{split}/{name}/{file}" in rejects for file in files):
                raise ValueError(
                    f"No image of {index.root / split / name} can be decoded; the class needs at least one."
                )
