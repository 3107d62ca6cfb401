"""Counts, durations, epochs, folders and errors in words, as a person reads them on screens and in tables."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

# What to do about an error of the system that names a file, by its number.
_REMEDIES = {
    errno.ENOENT: "check the path, or give one in a folder that is there",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its rights, or give another place"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTEMPTY), "something else has its place, so move that away or delete it"),
    errno.EISDIR: "a folder has the place of a file, so move it away or delete it",
    errno.ENOTDIR: "a file has the place of a folder, so move it away or delete it",
    errno.ELOOP: "it is a link in a circle, so delete it",
    errno.ENAMETOOLONG: "give a shorter name",
}


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 epoch`, `0 epochs`, `12,800 images`, `1 class`.

    Args:
        plural: plural of the noun, where it is not the noun with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_duration(seconds: float) -> str:
    """`40 s`, `3 min 05 s`, `2 h 05 min`, `6 d 04 h`: the largest unit and the one below it, rounded."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def epochs_done(epochs: float) -> str:
    """A number of epochs without its unit: `4`, `3.5`, `12.25`; below 0.1 with two significant digits, `0.017`."""
    if epochs >= 0.1:
        return f"{epochs:.2f}".rstrip("0").rstrip(".")
    return f"{epochs:.2g}"


def counted_epochs(epochs: float) -> str:
    """`1 epoch`, `0.017 epochs`, `3.5 epochs`."""
    return f"{epochs_done(epochs)} epoch{'' if epochs_done(epochs) == '1' else 's'}"


def printable(text: str) -> str:
    """A name from elsewhere as one line that any screen can show: bytes that are no UTF-8, line ends and the signs
    that steer a terminal as \\xNN or \\uNNNN.
    """
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:  # how Python writes a byte that is no UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def on_one_line(text: str, most: int = 2000) -> str:
    """A text from elsewhere, perhaps of several lines, as one printable line; what is beyond `most` signs is cut."""
    shown = printable(" ".join(text.split()) if "\n" in text else text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def on_lines(text: str) -> str:
    """A text of several lines, each of them `printable`."""
    return "\n".join(printable(line) for line in text.split("\n"))


def word_error(error: BaseException) -> str:
    """The text of an error; for one of the system that names a file, a sentence that says what to do."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return str(error)
    remedy = _REMEDIES.get(error.errno, "check the disk, or give another place")
    return f"{os.fsdecode(error.filename2 or error.filename)} cannot be used ({error.strerror}); {remedy}."


def split_common(paths: Sequence[Path]) -> tuple[str, list[str]]:
    """Splits paths into the folder that holds them all and the rest of each; the folder is "" if there is none.

    A path by itself, or one that is given twice, keeps its own name.
    """
    parts, common = [path.parts for path in paths], 0
    while all(len(names) > common + 1 for names in parts) and len({names[common] for names in parts}) == 1:
        common += 1
    folder = str(Path(*parts[0][:common])) if common else ""
    return folder, [str(Path(*names[common:])) for names in parts]


def signed(difference: float) -> str:
    """`+1.70`, `-0.16`, `0.00`: two digits, and a sign unless they are all zero."""
    return f"{difference:+.2f}".replace("-0.00", "0.00").replace("+0.00", "0.00")
