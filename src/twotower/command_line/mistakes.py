"""Command lines that do not compose, each told in one sentence: what was given, and what may have been meant.

Hydra tells the same in four to twenty lines, and takes a mistyped key for a new one where a plus stands before it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException

from twotower.config.moved_keys import MOVED
from twotower.ground.wording import on_one_line

MOST = 3  # suggestions
_ALIKE = 0.6  # similarity of two words: difflib's own threshold
# Lines that Hydra and OmegaConf add, and that tell a person nothing more.
_NOISE = re.compile(r"\s*(full_key|reference_type|object_type|See http|To append|Config search path|provider=)")
# What OmegaConf converts to, and what a person has to give.
_KINDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}


def _without_null(kind: Any) -> Any:
    """`X` of `X | None`."""
    if get_origin(kind) in (Union, UnionType):
        return next(inner for inner in get_args(kind) if inner is not type(None))
    return kind


def list_keys_of(schema: type) -> dict[str, Any]:
    """The keys of a dataclass with their types."""
    hints = get_type_hints(schema)
    return {field.name: _without_null(hints[field.name]) for field in fields(schema)}


def _all_keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Every full key that ends in a value: "optim.learning_rate". Rows of a network are left out."""
    for name, kind in list_keys_of(schema).items():
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _all_keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def suggest(word: str, known: Sequence[str]) -> list[str]:
    """Lists what may have been meant, the likeliest first: names that are alike, or contain it or its initials.

    `lr` is `learning_rate`, `rate` as well.
    """
    if len(word) < 2:
        return []
    alike = [name for name in known if _initials(name) == word]
    alike += get_close_matches(word, known, MOST, _ALIKE)
    alike += [name for name in known if word in name.split("_")]
    return list(dict.fromkeys(alike))[:MOST]


def _did_you_mean(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"did you mean {' or '.join(part for part in (', '.join(names[:-1]), names[-1]) if part)}?"


def _find_stranger(path: Sequence[str], schema: type) -> tuple[int, type] | None:
    """The place in a key's path where it leaves the schema, and the dataclass there; None if it does not."""
    kind: Any = schema
    for place, name in enumerate(path):
        if get_origin(kind) is dict:  # layers, which may have any name
            kind = get_args(kind)[1]
        elif is_dataclass(kind) and isinstance(kind, type):
            known = list_keys_of(kind)
            if name not in known:
                return place, kind
            kind = known[name]
        else:
            return None  # a value that is given an inside: Hydra says what is wrong with that
    return None


def _find_list(path: Sequence[str], schema: type) -> str | None:
    """The key of a list that a path goes into otherwise than by a number."""
    kind: Any = schema
    for place, name in enumerate(path):
        if get_origin(kind) is list:
            return None if name.isdecimal() else ".".join(path[:place])
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = list_keys_of(kind).get(name) if is_dataclass(kind) and isinstance(kind, type) else None
    return None


def explain_key(key: str, schema: type, groups: Sequence[str]) -> str | None:
    """Why there is no such key, and what it may have been; None if there is.

    Args:
        key: as on the command line, without a plus: "optim.lr".
        groups: names that stand for a yaml each, as in network=alexnet.
    """
    path = key.split(".")
    whole = _find_list(path, schema)
    if whole is not None:
        return f"{whole} is a list; give all of it, as '{whole}=[A,B]'."
    stranger = _find_stranger(path, schema)
    if stranger is None:
        return None
    if key in MOVED:
        return f"{key} is called {MOVED[key]} now."
    depth, kind = stranger
    word, before = path[depth], ".".join(path[:depth])
    known = [*list_keys_of(kind), *(groups if depth == 0 else ())]
    everywhere = {full.rpartition(".")[2]: full for full in reversed(list(_all_keys(schema)))}
    alike = suggest(word, known)
    meant = [f"{before}.{name}" if before else name for name in alike]
    if not meant or alike[0] not in get_close_matches(word, alike, 1, _ALIKE):
        # The same name elsewhere is likelier than a part of a name here: epochs is schedule.epochs.
        elsewhere = [full for full in _all_keys(schema) if full.rpartition(".")[2] == path[-1]]
        meant = [*elsewhere, *meant] or [everywhere[name] for name in suggest(word, list(everywhere))]
    if not word:
        return "a name is missing before the =; give KEY=VALUE."
    what = f"{before} has no key {word}" if before else f"there is no key {word}"
    if meant:
        return f"{what}; {_did_you_mean(list(dict.fromkeys(meant))[:MOST])}"
    return f"{what}; it has {', '.join(known)}." if before else f"{what}; --help lists all keys."


def check_overrides(
    overrides: Sequence[str], schema: type, groups: Sequence[str], unchosen: Sequence[str] = ()
) -> None:
    """Refuses what Hydra would not explain.

    Args:
        groups: names that stand for a yaml each, as in network=alexnet.
        unchosen: those of them for which the command chooses no yaml by itself.

    Raises: ValueError naming the first key that the schema does not have, or that stands in a group that was not
        chosen; OverrideParseException for what is no key=value at all.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    chosen = {override.key_or_group for override in parsed}
    for override in parsed:
        key = override.key_or_group
        if key in groups and not (override.is_delete() or override.is_sweep_override()):
            _check_choice(override)
        group = key.partition(".")[0]
        if group != key and group in unchosen and group not in chosen:
            changed = on_one_line(f"{override.input_line} changes a part of {group}")
            raise ValueError(f"{changed}, and none is chosen; give {group}=NAME as well.")
        if key.split(".")[0].split("/")[0] == "hydra" or key in groups or override.package is not None:
            continue
        reason = explain_key(key, schema, groups)
        if reason is not None:
            raise ValueError(on_one_line(f"{override.input_line}: {reason}"))


def _check_choice(override: Override) -> None:
    """Raises: ValueError for a value that cannot be the name of a yaml."""
    if not isinstance(override.value(), str | QuotedString):
        raise ValueError(
            f"{override.input_line} is not possible; give the name of a yaml, as {override.key_or_group}=NAME "
            "(--help lists them)."
        )


def explain_null(overrides: Sequence[str], schema: type) -> str:
    """Why OmegaConf has found nothing where an override sets a key: its group is null, as the norm of a network
    without one. The override is the first that goes through a group which may be null.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        kind: Any = schema
        path = override.key_or_group.split(".")
        for depth, name in enumerate(path[:-1]):
            hint = get_type_hints(kind).get(name) if is_dataclass(kind) else None
            kind = _without_null(hint)
            if not is_dataclass(kind):
                break
            if kind is not hint:
                group = ".".join(path[: depth + 1])
                return (
                    f"{override.input_line}: {group} is null here, so it has no keys; choose a yaml that has it, or "
                    f"leave {override.key_or_group} out."
                )
    return f"{' '.join(overrides)} sets a key of a group that is null; leave it out."


def _explain_option(error: MissingConfigException) -> str | None:
    group, _, given = str(error.missing_cfg_file).rpartition("/")
    if not group or not error.options:
        return None
    options = [str(option) for option in error.options]
    close = _did_you_mean(suggest(given, options))
    return f"{group}={given} is not known; {close + ' ' if close else ''}{group} is one of {', '.join(options)}."


def explain_composition(error: BaseException) -> str:
    """Puts what Hydra or OmegaConf says of a command line into one sentence."""
    return on_one_line(_explain(error))


def _explain(error: BaseException) -> str:
    if isinstance(error, MissingConfigException):
        sentence = _explain_option(error)
        if sentence is not None:
            return sentence
    text = str(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} is no setting; one is key=value, with quotation marks around what has "
            "blanks, commas, brackets or another equals sign: \"key='a=b'\"."
        )
    several = re.match(r"Ambiguous value for argument '(.*)'\n", text)
    if several is not None:
        key, _, values = several[1].partition("=")
        return (
            f"{several[1]} has several values; put -m first for a sweep over them, or write '{key}=[{values}]' for a "
            f"list and \"{key}='{values}'\" for one text."
        )
    layer = re.search(r"Could not override 'network\.layers\.(\w+)", f"{text}\n{error.__cause__}")
    if layer is not None:
        return (
            f"network.layers has no {layer[1]} here; python launch/describe.py network=NAME lists a network's layers."
        )
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        text = f"{text}\n{error.__cause__}"
    merged = re.match(r"Error merging override (.*)\n(.*)", text)
    if merged is not None:
        kind = re.search(r"could not be converted to (\w+)|not a valid (bool)", merged[2])
        name = "" if kind is None else kind[1] or kind[2]
        wanted = f"it must be {_KINDS[name]}" if name in _KINDS else merged[2].rstrip(".")
        return f"{merged[1]} does not fit: {wanted}."
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    sentence = ": ".join(dict.fromkeys(line.rstrip(".") for line in lines)) + "."
    key = re.search(r"full_key: (\S+)", text)  # in OmegaConf's own errors
    return f"{key[1]}: {sentence}" if key is not None and key[1] not in sentence else sentence
