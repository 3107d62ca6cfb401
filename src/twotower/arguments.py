"""Command lines with paths in them, before Hydra reads them.

Hydra takes a comma for the end of a value, and the folders of a sweep's jobs are called "ablation=no_lrn,seed=0".
"""

import glob
import re
from collections.abc import Iterable, Sequence


def quoted(text: str) -> str:
    """A string of Hydra's grammar, in which backslashes count only before a quotation mark."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"


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
    found = []
    for argument in arguments:
        key, is_given, value = argument.partition("=")
        is_list = value.startswith("[") and value.endswith("]")
        has_marks = value[:1] in ("'", '"') or (is_list and value[1:2] in ("'", '"'))
        if key not in keys or not is_given or value in ("", "null") or has_marks:
            found.append(argument)
        elif is_list:
            found.append(f"{key}=[{','.join(quoted(path) for path in _paths_of(value[1:-1]))}]")
        else:
            found.append(f"{key}={quoted(value)}")
    return found
