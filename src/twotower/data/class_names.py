"""Names of classes for people: ImageNet calls its classes by WordNet ids, and few know n01440764 for a tench.

`synsets.tsv` holds the 1,000 classes of ILSVRC-2012 with WordNet's words. Ids and order were compared with
TF-slim's imagenet_lsvrc_2015_synsets.txt. The 2010 set has other classes, and brings its words in its devkit.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files


@cache
def ilsvrc_words() -> dict[str, str]:
    """The classes of ILSVRC-2012 by sorted id: {"n01440764": "tench, Tinca tinca", ...}."""
    text = files("twotower.data").joinpath("synsets.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines() if not line.startswith("#"))


def name_classes(classes: Sequence[str], words: Mapping[str, str] | None = None) -> list[str]:
    """Gives each class a name that a person understands: "tench" for n01440764.

    The name is the first of the class's words. Classes that share their first word get all of their words, and those
    that share all of them (ILSVRC has two kinds of cranes) get their id as well. A class without words keeps its id.

    Args:
        words: the data set's own words by class; they win over those of ILSVRC-2012.
    """
    known = {**ilsvrc_words(), **(words or {})}
    all_words = [known.get(name) or name for name in classes]
    first_words = [text.split(",")[0] for text in all_words]
    names = [
        first if first_words.count(first) == 1 else text for first, text in zip(first_words, all_words, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(names, classes, strict=True)]
