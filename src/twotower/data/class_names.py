"""What classes are called: ImageNet names its classes by WordNet ids, and people do not know n01440764 for a tench.

`synsets.tsv` holds the 1,000 classes of ILSVRC-2012 with WordNet's words. Ids and order were compared with
TF-slim's imagenet_lsvrc_2015_synsets.txt; the 2010 set has other classes, and brings its words in its devkit.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files


@cache
def ilsvrc_words() -> dict[str, str]:
    """{"n01440764": "tench, Tinca tinca", ...} of the 1,000 classes of ILSVRC-2012, in their order (sorted ids)."""
    text = files("twotower.data").joinpath("synsets.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines() if not line.startswith("#"))


def name_classes(classes: Sequence[str], words: Mapping[str, str] | None = None) -> list[str]:
    """A name for each class that a person understands: "tench" for n01440764.

    That is the first of the class's words. Classes that share their first word are called by all of their words, and
    those that share all of them (ILSVRC has two kinds of cranes) have their id added. A class that nobody has words
    for keeps its name.

    Args:
        words: what the data set knows of its classes; it wins over the 1,000 classes known here.
    """
    known = {**ilsvrc_words(), **(words or {})}
    whole = [known.get(name) or name for name in classes]
    first = [one.split(",")[0] for one in whole]
    named = [short if first.count(short) == 1 else all_of_it for short, all_of_it in zip(first, whole, strict=True)]
    return [
        short if named.count(short) == 1 else f"{short} ({wnid})" for short, wnid in zip(named, classes, strict=True)
    ]
