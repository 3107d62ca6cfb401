"""Printed commands as a shell would get them: placeholders, optional parts, alternatives, functions, quotes.

    python launch/evaluate.py RUN crops=centre|ten [split=test] ['coefficients=[0.5,1]']    # a remark

RUN, DIR, FILE ... stand as they are: a test has folders of these names. `[part]` may be left out, `[key=value: why]`
has an explanation, `a|b` are alternatives, `...` is "and more of these". What follows two spaces, or a blank and #,
is no part of the command. Everything else must be as a shell takes it: sh, bash and zsh alike.
"""

import re
import shlex

FUNCTION = re.compile(r"(\w+)\(\) \{ (.+) \"\$@\"; \}")


class NotUnderstoodError(ValueError):
    """What is printed is no command that can be typed."""


def _walk(text: str) -> list[tuple[int, str, str]]:
    """Each character with its place and the quotation mark that it is within; marks themselves count as within."""
    found, mark = [], ""
    for place, c in enumerate(text):
        if mark:
            found.append((place, c, mark))
            mark = "" if c == mark else mark
        else:
            mark = c if c in "'\"" else ""
            found.append((place, c, mark))
    if mark:
        raise NotUnderstoodError(f"a quotation mark {mark} is not closed")
    return found


def without_remark(line: str) -> str:
    """The command of a line, without what is said about it. Raises: NotUnderstoodError."""
    line, mark = line.strip(), ""
    for place, c in enumerate(line):
        if mark:
            mark = "" if c == mark else mark
        elif c in "'\"":
            mark = c
        elif line[place:].startswith(("  ", " #")):
            about = line[place:].strip(" #")
            if re.match(r"[a-z_.]+=\S", about):
                raise NotUnderstoodError(f"two spaces stand before {about.split()[0]}, and a remark begins there")
            return line[:place]
    return line


def _parts(text: str) -> list[tuple[str, bool]]:
    """Words, and whether each may be left out. Raises: NotUnderstoodError for a bracket that is not closed."""
    parts: list[tuple[str, bool]] = []
    word, depth = "", 0
    for _, c, mark in _walk(text):
        if not mark and c == "[" and (depth or not word):
            depth += 1
            if depth == 1:
                continue
        if not mark and c == "]" and depth:
            depth -= 1
            if depth == 0:
                inner = re.split(r": (?=[^'\"]*$)", word)[0]  # [key=value: an explanation]
                parts += [(one, True) for one, _ in _parts(inner)]
                word = ""
                continue
        if not mark and c == " " and not depth:
            parts += [(word, False)] if word else []
            word = ""
        else:
            word += c
    if depth:
        raise NotUnderstoodError("a bracket is not closed")
    return [*parts, (word, False)] if word else parts


def _choices(word: str) -> list[str]:
    """`crops=centre|ten` as ["crops=centre", "crops=ten"]."""
    bars = [place for place, c, mark in _walk(word) if c == "|" and not mark]
    if not bars or word == "|":
        return [word]
    pieces = [word[a:b] for a, b in zip([0, *(bar + 1 for bar in bars)], [*bars, len(word)], strict=True)]
    key = pieces[0].partition("=")[0] + "=" if "=" in pieces[0] else ""
    return [pieces[0], *(piece if "=" in piece else key + piece for piece in pieces[1:])]


def variants(command: str) -> list[str]:
    """The shell lines that a printed command stands for: without and with its optional parts, each alternative once.

    Raises: NotUnderstoodError.
    """
    parts = [(_choices(word), optional) for word, optional in _parts(command) if word != "..."]
    lines: list[str] = []
    for with_optional in (False, True):
        used = [choices for choices, optional in parts if with_optional or not optional]
        for k in range(max((len(choices) for choices in used), default=0)):
            line = " ".join(choices[min(k, len(choices) - 1)] for choices in used)
            lines += [line] if line not in lines else []
    return lines


def expand_function(line: str, functions: dict[str, str]) -> str:
    """`run a b` in place of which stands what the function does with its arguments."""
    name, _, rest = line.partition(" ")
    return f"{functions[name]} {rest}".strip() if name in functions else line


def check_quoting(line: str) -> None:
    """Raises: NotUnderstoodError for what some shell reads as something else than text.

    Patterns are taken in words without an equals sign, where they stand for folders.
    """
    word = ""
    for place, c, mark in _walk(line):
        if mark == '"' and c in "$`" and not line[place:].startswith('$@"'):
            raise NotUnderstoodError(f"{c} within double quotes is replaced by the shell")
        if mark:
            word += c
            continue
        if c in " \t":
            word = ""
            continue
        if c == "$":
            raise NotUnderstoodError("a variable is not split into words by zsh; write a shell function")
        if c in "[]{}()" or (c in "*?" and "=" in word):
            raise NotUnderstoodError(
                f"{c} is not in quotes, and zsh takes it for a pattern; quote the whole argument"
            )
        if c in "`\\!^;" or (c == "~" and "=" in word) or (c == "=" and not word):
            raise NotUnderstoodError(f"{c} is not in quotes, and shells read it in different ways")
        word += c


def words_of(line: str) -> list[str]:
    """The arguments that a shell would pass, patterns as they are. Raises: NotUnderstoodError."""
    check_quoting(line)
    return shlex.split(line)


def simple_commands(line: str) -> list[list[str]]:
    """The words of each of the commands that &&, | or > join; what a > writes to is left out."""
    found: list[list[str]] = [[]]
    words = iter(words_of(line))
    for word in words:
        if word in ("&&", "|"):
            found.append([])
        elif word == ">":
            next(words, None)
        elif not (re.fullmatch(r"[A-Z_]+=\S*", word) and not found[-1]):  # LC_ALL=C sort
            found[-1].append(word)
    return [one for one in found if one]
