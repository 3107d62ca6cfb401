"""Finds every command that the project prints: in texts, headers, results, docstrings, helps and messages.

    python tests/printed_commands.py      lists them by place, with their number

Within a fence, and on lines of comments and docstrings that begin with a program, a command is the whole line up to
a remark; within backticks it is the whole span; elsewhere it ends before the first word that is no argument.
"""

import ast
import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import OmegaConf

from helpers.paths import ROOT
from helpers.shell_lines import FUNCTION, NotUnderstoodError, without_remark

FIGURES = ("figure1", "figure3", "figure4", "activations", "confusion", "towers", "colour", "curves")
KINDS = ("README and docs", "conf", "results", "records", "docstrings", "messages", "comments", "set up")

# How commands begin, in backticks or a fence ...
_PROGRAMS = (
    r"(?:[A-Z_]+=\S+ )*(?:python3?|torchrun|make|pip|conda|wandb|find|sed|tar|mkdir|curl|git|source|\.|export) \S"
)
# ... and in other texts, where "make" and "find" are English.
_PLAIN = (
    r"(?:[A-Z_]+=\S+ )*(?:python3? (?:launch/|course/|-m )|torchrun (?:--|launch/)|pip install |"
    r"conda (?:env|activate) |wandb (?:sync|sweep|agent|login)\b|"
    r"make (?:train|test-gpu|test|lint|install|clean|quick)\b)"
)
_LINE = re.compile(rf"(?:{_PLAIN}|\w+\(\) \{{|\.\.\. [a-z])")
_SENTENCE = re.compile(rf"(?<![\w/.`-]){_PLAIN}")
_ARGUMENT = re.compile(
    rf"-\S*|\S*=\S*|\S*/\S*|[A-Z][A-Z0-9_]*(?:\.\w+)?|\.\.\.|[\[\]'\"].*|.*[\]'\"]|\{{.*|{'|'.join(FIGURES)}|install|torch|\S+\.(?:jpg|png|yml|py)"
    r"|sync|sweep|agent|login|env|create|clean|train"
)


@dataclass(frozen=True)
class Printed:
    """A command as it is printed. `text` has the placeholders of an f-string as {source of the expression}."""

    kind: str
    file: Path
    line: int
    text: str
    functions: tuple[tuple[str, str], ...] = ()  # name and command of the shell functions that stand before it
    problem: str = ""  # why it cannot be typed, as far as that is known from the line
    is_whole: bool = True  # false: only settings of a script, as in `launch/evaluate.py split=test`

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Text:
    """Something that people read. `form`: markdown | lines (of a comment, a docstring, a help) | message."""

    kind: str
    file: Path
    line: int
    text: str
    form: str = "lines"


def _of_lines(of: Text, lines: list[tuple[int, str]], is_fence: bool = False) -> Iterator[Printed]:
    """Commands on lines of their own, with lines that end in a backslash joined, and functions for what follows them.

    Args:
        is_fence: whether it is a fence for a shell, in which each line is to be typed.
    """
    functions: dict[str, str] = {}
    before, pending, begin = "", "", 0
    for number, raw in lines:
        line = f"{pending} {raw.strip()}".strip() if pending else raw.strip()
        begin = begin if pending else number
        pending = ""
        if not (_LINE.match(line) or line.split(" ")[0] in functions or (is_fence and line)):
            continue
        if line.endswith("\\"):
            pending = line[:-1].strip()
            continue
        text, problem, is_whole = line, "", True
        try:
            text = without_remark(line)
        except NotUnderstoodError as error:
            problem = str(error)
        if is_fence and (line.startswith("#") or " #" in line.removeprefix(text)):
            problem = "zsh at its prompt has no remarks: # and what follows are arguments to it; say it in the text"
        defined = FUNCTION.fullmatch(text)
        if defined is not None:
            functions[defined[1]] = text = defined[2]
            is_whole = False
        if text.startswith("... "):
            text = f"{before} {text.removeprefix('... ')}"
        before = text
        yield Printed(of.kind, of.file, begin, text, tuple(functions.items()), problem, is_whole)


def _of_spans(of: Text, text: str) -> Iterator[Printed]:
    """Commands in backticks, and arguments of a launch script in such."""
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        span, is_whole = " ".join(match[1].split()).replace("\\|", "|"), True
        line = of.line + text.count("\n", 0, match.start())
        if re.match(r"launch/\w+\.py \S", span):
            span, is_whole = f"python {span}", False
        elif re.match(rf"(?:{'|'.join(FIGURES)}) \S", span):
            span = f"python launch/figure.py {span}"
        if re.match(_PROGRAMS, span):
            yield Printed(of.kind, of.file, line, span, is_whole=is_whole)


def _of_sentences(of: Text, text: str) -> Iterator[Printed]:
    for match in _SENTENCE.finditer(text):
        if text.count("`", 0, match.start()) % 2:  # in backticks
            continue
        words = re.split(r"\s+", text[match.start() :].strip())
        taken, depth = words[:1], 0
        for word in words[1:]:
            if depth == 0 and not _ARGUMENT.fullmatch(word.rstrip(",.;:)")):
                break
            depth += word.count("[") - word.count("]")
            taken.append(word)
            if depth <= 0 and re.search(r"[,;:)]$|[^.]\.$", word):
                break
        command = re.sub(r"(?<!\.)[.,;:]$", "", " ".join(taken))
        command = command[:-1] if command.endswith(")") and "(" not in command else command
        yield Printed(of.kind, of.file, of.line + text.count("\n", 0, match.start()), command)


def _of_lines_and_sentences(of: Text) -> Iterator[Printed]:
    lines = list(enumerate(of.text.splitlines(), of.line))
    own = {number for number, line in lines if _LINE.match(line.strip())}
    yield from _of_lines(of, lines)
    rest = "\n".join("" if number in own else line for number, line in lines)
    yield from _of_spans(of, rest)
    yield from _of_sentences(of, rest)


def _of_markdown(of: Text) -> Iterator[Printed]:
    prose: list[str] = []
    fence: list[tuple[int, str]] | None = None
    is_shell = False
    for number, line in enumerate(of.text.splitlines(), 1):
        if line.startswith("```"):
            if fence is not None:
                yield from _of_lines(of, fence, is_fence=is_shell)
            is_shell = line.strip() in ("```sh", "```bash", "```shell", "```zsh", "```console")
            fence = [] if fence is None else None
        elif fence is not None:
            fence.append((number, line))
        prose.append("" if fence is not None or line.startswith("```") else line)
    yield from _of_spans(of, "\n".join(prose))
    yield from _of_sentences(of, "\n".join(prose))


def _of_yaml(kind: str, file: Path) -> Iterator[Text]:
    """Comments, and the texts of --help; the rest is left blank."""
    lines, depth = [], None  # of the key whose text the lines are
    for line in file.read_text().splitlines():
        indent = len(line) - len(line.lstrip())
        depth = None if line.strip() and depth is not None and indent <= depth else depth
        lines.append(line if depth is not None else line.partition("#")[2])
        if re.search(r": \|$", line):
            depth = indent
    yield Text(kind, file, 1, "\n".join(lines))


def _of_python(file: Path) -> Iterator[Text]:
    """Docstrings, comments and strings; of an f-string the placeholders are {source of the expression}."""
    source = file.read_text()
    nodes = list(ast.walk(ast.parse(source)))
    owners = [one for one in nodes if isinstance(one, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(one.body[0].value) for one in owners if ast.get_docstring(one) is not None}  # type: ignore
    joined = [one for one in nodes if isinstance(one, ast.JoinedStr)]
    inner = {id(part) for one in joined for part in ast.walk(one)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            if id(node) in docstrings:
                yield Text("docstrings", file, node.lineno, node.value)
            else:
                yield Text("messages", file, node.lineno, node.value, "message")
    for one in joined:
        parts = (p.value if isinstance(p, ast.Constant) else f"{{{ast.unparse(p.value)}}}" for p in one.values)  # type: ignore
        yield Text("messages", file, one.lineno, "".join(str(part) for part in parts), "message")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text("comments", file, token.start[0], token.string.lstrip("# "))


@cache
def texts() -> tuple[Text, ...]:
    """All texts of the project, by place."""
    return tuple(_read_texts())


def _read_texts() -> Iterator[Text]:
    pages = {
        *ROOT.glob("*.md"),
        *(page for name in ("docs", "course", "results") for page in (ROOT / name).rglob("*.md")),
    }
    for file in sorted(pages):
        kind = "results" if ROOT / "results" in file.parents else "README and docs"
        yield Text(kind, file, 1, file.read_text(), "markdown")
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        yield from _of_yaml("conf", file)
    for file in (
        *sorted((ROOT / "launch").glob("*.py")),
        *sorted((ROOT / "course").rglob("*.py")),
        *sorted((ROOT / "src").rglob("*.py")),
    ):
        yield from _of_python(file)
    pattern = r"(?m)^(?!#|\t.*launch/).*$|^[#\t] ?@?|\$\(BIN\)/| \$\(DEVICE\)"
    yield Text("set up", ROOT / "Makefile", 1, re.sub(pattern, "", (ROOT / "Makefile").read_text()))
    for name in ("environment.yml", "pyproject.toml"):
        yield from _of_yaml("set up", ROOT / name)


def _of_records() -> Iterator[Printed]:
    """`command` of a stored configuration or summary, which is what a report prints."""

    def commands(node: object) -> Iterator[str]:
        for key, value in (
            node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ())
        ):
            if key == "command" and isinstance(value, str):
                yield value
            else:
                yield from commands(value)

    for file in sorted((ROOT / "results").rglob("*")):
        if file.suffix == ".json" or file.name.startswith("config-"):
            text = file.read_text()
            content = json.loads(text) if file.suffix == ".json" else OmegaConf.to_container(OmegaConf.load(file))
            for command in commands(content):
                yield Printed("records", file, text.count("\n", 0, text.find(command[:60])) + 1, command)


def commands_in(text: Text) -> Iterator[Printed]:
    if text.form == "markdown":
        yield from _of_markdown(text)
    elif text.form == "lines":
        yield from _of_lines_and_sentences(text)
    else:
        yield from _of_spans(text, text.text)
        yield from _of_sentences(text, text.text)


@cache
def collect() -> tuple[Printed, ...]:
    """All commands, by place, each once in a line."""
    return tuple(dict.fromkeys([*(one for text in texts() for one in commands_in(text)), *_of_records()]))


def lists_in(text: Text) -> list[str]:
    """Where a list is printed without quotes: `key=[a,b]`, which zsh takes for a pattern."""
    return [
        f"{text.file.relative_to(ROOT)}:{text.line + text.text.count(chr(10), 0, match.start())}: {match[0]}"
        for match in re.finditer(r"(?<![\w.'\"])[a-z][\w.]*=\[[^\]]*\]?", text.text)
    ]


if __name__ == "__main__":
    for command in collect():
        print(f"{command.kind:16} {command}")
    print(dict(Counter(command.kind for command in collect())))
