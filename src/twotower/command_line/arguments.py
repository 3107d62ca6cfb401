"""Command lines with paths in them, before Hydra reads them.

Hydra takes a comma for the end of a value, and the folders of a sweep's jobs are called "ablation=no_lrn,seed=0".
Paths may also stand without a key, as in `evaluate.py A B C crops=ten`. How an argument is read, the first that fits:

    -m, --help                         begins with a hyphen: Hydra's (what belongs to `--cfg` and the like with it)
    runs/first                         has no equals sign: a path, there or not
    crops=ten, optim.momentum=0        begins with a key of the command: a key; ./seed=0 is the folder of that name
    sweeps/x/ablation=none,seed=0      has a slash before its first equals sign: a path (hydra/launcher=slurm is none)
    ablation=none,seed=0               is there, or matches as a pattern: a path
    crop=ten                           anything else: Hydra's, which says that there is no such key
"""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields

from twotower.ground.wording import on_one_line

# Hydra's flags that are followed by a value of their own.
_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"),
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
)


def quoted(text: str) -> str:
    """A string of Hydra's grammar, in which backslashes count only before a quotation mark."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


def is_path(argument: str, keys: Iterable[str]) -> bool:
    """Whether an argument is a path without a key, by the rule above; `keys` are those of the command."""
    if argument.startswith("-"):
        return False
    key, is_given, _ = argument.partition("=")
    if not is_given:
        return not argument.startswith("~")  # ~key takes a key away, in Hydra's grammar
    if "/" in key:
        return not key.startswith("hydra/")
    first = re.split(r"[.@]", key.lstrip("+~"))[0]
    return first not in {"hydra", *keys} and (os.path.lexists(argument) or bool(glob.glob(argument)))


def _marked(arguments: Iterable[str], schema: type) -> Iterator[tuple[str, bool]]:
    """Each argument, and whether it is a path without a key; what follows a flag of Hydra's belongs to the flag."""
    keys, belongs = [field.name for field in fields(schema)], False
    for argument in arguments:
        yield argument, not belongs and is_path(argument, keys)
        belongs = argument in _WITH_VALUE


def split_paths(arguments: Iterable[str], schema: type) -> tuple[list[str], list[str]]:
    """The paths that stand without a key, and all other arguments, both in their order.

    A pattern that matches something stands for what it matches, sorted; the shell has expanded most of them before.

    Args:
        schema: the dataclass of the command in config.py, whose fields are its keys.
    """
    paths: list[str] = []
    others: list[str] = []
    for argument, is_unnamed in _marked(arguments, schema):
        if not is_unnamed:
            others.append(argument)
        elif os.path.lexists(argument):
            paths.append(argument)
        else:
            paths += sorted(glob.glob(argument)) or [argument]
    return paths, others


def name_first(arguments: Sequence[str], schema: type, key: str) -> list[str]:
    """The arguments, with the first that stands without a key as the value of `key`, unless that was given."""
    if any(argument.startswith(f"{key}=") for argument in arguments):
        return list(arguments)
    marked = list(_marked(arguments, schema))
    first = next((index for index, (_, is_unnamed) in enumerate(marked) if is_unnamed), None)
    return [f"{key}={quoted(text)}" if index == first else text for index, text in enumerate(arguments)]


def name_paths(
    arguments: Iterable[str], schema: type, single: str | None = None, several: str | None = None
) -> list[str]:
    """The arguments, with paths that stand without a key as values of one.

    Args:
        single: the key of one path, such as `run`; None: as `several`.
        several: the key of a list, such as `runs`; None: there can be only one.

    Raises: ValueError if paths are given with and without a key, or several where there can be only one.
    """
    paths, others = split_paths(arguments, schema)
    if not paths:
        return others
    keyed = [other for other in others if other.split("=")[0] in (single, several)]
    if keyed:
        raise ValueError(
            f"{' and '.join(paths)} without a key and {' and '.join(keyed)} were given; give all of them in one way."
        )
    if single is not None and len(paths) == 1:
        return [*others, f"{single}={quoted(paths[0])}"]
    if several is None:
        raise ValueError(
            f"{len(paths)} paths were given, {', '.join(paths)}, and this takes one; give {single}=PATH."
        )
    return [*others, f"{several}=[{','.join(quoted(path) for path in paths)}]"]


def read_arguments(to_overrides: Callable[[list[str]], list[str]], arguments: list[str]) -> list[str]:
    """Turns the arguments into what Hydra is to read. Raises: SystemExit with a sentence if they contradict."""
    try:
        return to_overrides(arguments)
    except ValueError as error:
        raise SystemExit(f"error: {on_one_line(str(error))}") from error


def _paths_of(text: str) -> list[str]:
    """The elements of `a,b,c`, where a comma within an existing path, or a pattern of such, does not part them."""
    pieces, paths, begin = text.split(","), [], 0
    while begin < len(pieces):
        ends = range(len(pieces), begin + 1, -1)
        end = next((end for end in ends if glob.glob(",".join(pieces[begin:end]).strip())), begin + 1)
        paths.append(",".join(pieces[begin:end]).strip())
        begin = end
    return [path for path in paths if path]


def quote_paths(arguments: Iterable[str], keys: Sequence[str]) -> list[str]:
    """The arguments; paths and lists of paths that belong to `keys` are in quotation marks, if they have none."""
    quoted_arguments = []
    for argument in arguments:
        key, is_given, value = argument.partition("=")
        is_list = value.startswith("[") and value.endswith("]")
        has_marks = value[:1] in ("'", '"') or (is_list and value[1:2] in ("'", '"'))
        if key not in keys or not is_given or value in ("", "null") or has_marks:
            quoted_arguments.append(argument)
        elif is_list:
            quoted_arguments.append(f"{key}=[{','.join(quoted(path) for path in _paths_of(value[1:-1]))}]")
        else:
            quoted_arguments.append(f"{key}={quoted(value)}")
    return quoted_arguments
