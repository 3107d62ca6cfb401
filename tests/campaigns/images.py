"""Files named as images that are something else, through both ways of preparing: training's and prepare_data's.

Each folder holds a few photographs and many mutated files, of every kind in `KINDS`, some of them under odd names. No
process may end by a signal, print a traceback or hang; each file is accepted or left out for a reason in words; what
was accepted is then fed as training and both validations feed it.

    python -m campaigns.images --count 1000 --seed 0      in the folder tests/
"""

import io
import os
import shutil
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from campaigns import FAILURES, HITS, Say, run_alone
from helpers.feeds import PLAIN, share
from helpers.marked import Marked
from twotower.config import DataConfig
from twotower.data.feed import open_train, open_validation
from twotower.data.prepared_set import read_dataset_json
from twotower.data.preparing.first_use import prepare

SHORT, FULL = 60, 10_000
FILES, FOLDERS = 100, 3  # so many files are in so many folders: 10,000 in 300
SECONDS = 300.0  # for a folder; a PNG of 2^27 pixels alone takes some
PLAIN_SIZES = ((40, 50), (64, 64), (300, 20), (257, 256), (1, 1), (7, 400))

Make = Callable[[Random], bytes]


def _picture(stream: Random, mode: str = "RGB") -> Image.Image:
    size = stream.choice(PLAIN_SIZES)
    noise = np.random.default_rng(stream.randrange(2**32)).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA")
    if mode in ("I;16", "I", "F"):
        return Image.fromarray(noise[..., 0].astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 200)
    if mode == "LAB":
        return image.convert("RGB").convert("L").convert("RGB")
    return image.convert(mode)


def _save(stream: Random, form: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    _picture(stream, mode).save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def _icon(stream: Random) -> bytes:
    """In one size that the format has: others cannot be saved."""
    file = io.BytesIO()
    _picture(stream).resize((48, 48)).save(file, "ICO")
    return file.getvalue()


def _saved(form: str, mode: str = "RGB", **options: object) -> Make:
    return lambda stream: _save(stream, form, mode, **options)


def _cut(make: Make) -> Make:
    def cut(stream: Random) -> bytes:
        content = make(stream)
        return content[: stream.randrange(len(content))]

    return cut


def _flipped(make: Make, begin: int = 0, end: int | None = None, most: int = 8) -> Make:
    """Some bytes between `begin` and `end` are changed."""

    def flip(stream: Random) -> bytes:
        content = bytearray(make(stream))
        stop = min(len(content), end or len(content))
        for _ in range(stream.randint(1, most)):
            content[stream.randrange(min(begin, stop - 1), stop)] ^= stream.randint(1, 255)
        return bytes(content)

    return flip


def _zip(stream: Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "nothing to see" * stream.randint(1, 200))
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _huge_png(stream: Random) -> bytes:
    """A header that claims up to 2^31 pixels a side, over the rows of a small image."""
    sides = [stream.choice((1, 16_000, 60_000, 2**31 - 1)) for _ in range(2)]
    header = struct.pack(">IIBBBBB", max(sides), sides[0], 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * 64 * 64))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _huge_jpeg(stream: Random) -> bytes:
    """A JPEG whose header claims up to 65,535 pixels a side."""
    content = bytearray(_save(stream, "JPEG"))
    place = content.find(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(
        ">HH", stream.choice((65_535, 20_000, 0)), stream.choice((65_535, 1))
    )
    return bytes(content)


def _huge_bmp(stream: Random) -> bytes:
    content = bytearray(_save(stream, "BMP"))
    content[18:26] = struct.pack(
        "<ii", stream.choice((2**31 - 1, 100_000, -1)), stream.choice((2**31 - 1, 100_000, 0))
    )
    return bytes(content)


def _bomb(stream: Random) -> bytes:
    """A real PNG of 12,000 x 12,000 equal pixels, more than is allowed."""
    rows = zlib.compressobj(1)
    row = b"\0" + bytes(3 * 12_000)
    content = b"".join(rows.compress(row) for _ in range(12_000)) + rows.flush()
    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def _two(first: Make, second: Make) -> Make:
    return lambda stream: first(stream) + second(stream)


_jpeg, _png = _saved("JPEG"), _saved("PNG")
KINDS: dict[str, Make] = {
    "JPEG": _jpeg,
    "JPEG, grey": _saved("JPEG", "L"),
    "JPEG, CMYK": _saved("JPEG", "CMYK"),
    "JPEG, progressive": _saved("JPEG", progressive=True),
    "JPEG, 4:4:4": _saved("JPEG", subsampling=0),
    "JPEG, worst quality": _saved("JPEG", quality=1),
    "JPEG, restarts": _saved("JPEG", restart_marker_rows=1),
    "JPEG, turned": lambda stream: _with_exif(stream),
    "JPEG, long comment": _saved("JPEG", comment=b"x" * 60_000),
    "JPEG, cut": _cut(_jpeg),
    "JPEG, progressive, cut": _cut(_saved("JPEG", progressive=True)),
    "JPEG, flipped anywhere": _flipped(_jpeg),
    "JPEG, flipped header": _flipped(_jpeg, 0, 20),
    "JPEG, flipped tables": _flipped(_jpeg, 20, 600),
    "JPEG, flipped much": _flipped(_jpeg, 0, None, 400),
    "JPEG, no start": lambda stream: _jpeg(stream)[2:],
    "JPEG, no end": lambda stream: _jpeg(stream)[:-2],
    "JPEG, start alone": lambda stream: b"\xff\xd8\xff",
    "JPEG, zeros in it": lambda stream: (c := _jpeg(stream))[: len(c) // 2] + bytes(len(c) // 2),
    "JPEG, huge": _huge_jpeg,
    "JPEG, another behind": _two(_jpeg, _jpeg),
    "JPEG, zeros behind": _two(_jpeg, lambda stream: bytes(5000)),
    "JPEG, page before": _two(lambda stream: b"<html>", _jpeg),
    "PNG": _png,
    "PNG, grey": _saved("PNG", "L"),
    "PNG, grey and alpha": _saved("PNG", "LA"),
    "PNG, alpha": _saved("PNG", "RGBA"),
    "PNG, palette": _saved("PNG", "P"),
    "PNG, palette, clear colour": _saved("PNG", "P", transparency=0),
    "PNG, one bit": _saved("PNG", "1"),
    "PNG, 16 bits": _saved("PNG", "I;16"),
    "PNG, 32 bits": _saved("PNG", "I;16"),
    "PNG, cut": _cut(_png),
    "PNG, no end": lambda stream: _png(stream)[:-12],
    "PNG, flipped anywhere": _flipped(_png),
    "PNG, flipped header": _flipped(_png, 0, 33),
    "PNG, huge": _huge_png,
    "PNG, too many pixels": _bomb,
    "GIF": _saved("GIF", "P"),
    "GIF, cut": _cut(_saved("GIF", "P")),
    "WebP": _saved("WEBP"),
    "WebP, lossless": _saved("WEBP", lossless=True),
    "WebP, flipped": _flipped(_saved("WEBP")),
    "BMP": _saved("BMP"),
    "BMP, huge": _huge_bmp,
    "BMP, flipped header": _flipped(_saved("BMP"), 0, 54),
    "TIFF": _saved("TIFF"),
    "TIFF, float": _saved("TIFF", "F"),
    "TIFF, flipped": _flipped(_saved("TIFF")),
    "PPM": _saved("PPM"),
    "PPM, huge": lambda stream: b"P6 99999 99999 255\n" + stream.randbytes(3000),
    "ICO": _icon,
    "JPEG 2000": _saved("JPEG2000"),
    "TGA": _saved("TGA"),
    "PCX": _saved("PCX"),
    "page": lambda stream: b"<!DOCTYPE html>\n<html><body>404 not found</body></html>\n" * stream.randint(1, 50),
    "SVG": lambda stream: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "program": lambda stream: b"\x7fELF" + stream.randbytes(5000),
    "archive": _zip,
    "PDF": lambda stream: b"%PDF-1.7\n" + stream.randbytes(900),
    "zeros": lambda stream: bytes(stream.choice((1, 2, 3, 100, 5000))),
    "ones": lambda stream: b"\xff" * stream.choice((1, 2, 3, 100, 5000)),
    "empty": lambda stream: b"",
    "noise": lambda stream: stream.randbytes(stream.choice((1, 10, 1000, 30_000))),
    "text": lambda stream: b"This was a photograph.\n",
    "pointer": lambda stream: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}

ODD_NAMES = (
    b"\xe9t\xe9 {}.jpg",
    b"\xff\xfe{}.png",
    b"two\nlines {}.jpg",
    b"\x1b]0;title\x07 {}.jpg",
    b"-rf {}.jpg",
    b"per%scent {}.jpeg",
    b"'quote\" {}.jpg",
    "\N{CAMERA}\N{COMBINING ACUTE ACCENT} {}.JPG".encode(),
    b"brace{{}} [x] *? {}.jpg",
    b"back\\slash {}.jpg",
    b"   {}.jpg",
    b"a" * 200 + b"{}.jpg",
    b"{}.tar.gz.jpg",
    b"$HOME `id` {}.jpg",
)
CLASSES = (b"plain", b"\xe9", "\N{BLACK HEART SUIT} and more".encode())


def _with_exif(stream: Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = stream.randint(0, 9)
    return _save(stream, "JPEG", exif=exif.tobytes())


def draw_names(stream: Random, count: int) -> Iterator[bytes]:
    for number in range(count):
        text = str(number).encode()
        yield stream.choice(ODD_NAMES).replace(b"{}", text) if stream.random() < 0.3 else text + b".jpg"


def fill(root: Path, stream: Random, kinds: list[str]) -> dict[str, str]:
    """Writes a folder with a file of each kind. Returns the kinds by path below `root`, as Python writes it."""
    where: dict[str, str] = {}
    photograph = Image.fromarray(np.full((50, 60, 3), 120, np.uint8))
    for split in (b"train", b"val"):
        for name in CLASSES:
            folder = os.fsencode(root) + b"/" + split + b"/" + name
            os.makedirs(folder)
            photograph.save(os.fsdecode(folder) + "/0photograph.jpg")
            where[os.fsdecode(split + b"/" + name + b"/0photograph.jpg")] = "photograph"
    for kind, name in zip(kinds, draw_names(stream, len(kinds)), strict=True):
        path = stream.choice((b"train", b"val")) + b"/" + stream.choice(CLASSES) + b"/" + name
        Path(os.fsdecode(os.fsencode(root) + b"/" + path)).write_bytes(KINDS[kind](stream))
        where[os.fsdecode(path)] = kind
    _add_what_is_no_file(root / "train" / "plain")
    return where


def _add_what_is_no_file(folder: Path) -> None:
    """A folder, a pipe, a link to nothing, a link in a circle and a device, all named as images."""
    (folder / "folder.jpg").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.jpg")
    (folder / "nowhere.jpg").symlink_to("nothing.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")


def judge(reason: str) -> str | None:
    """What is wrong with a reason for leaving a file out; None if it is in words."""
    if "ends the process with" in reason:
        return "a process ended by a signal"
    if "did not come to an end" in reason:
        return "a hang"
    words = reason.partition("it begins with")[0]  # what follows is the file's own
    for sign in ("Traceback", "nvImageCodec", "0x", "<_io", "Error("):
        if sign in words:
            return f"a reason with {sign}"
    return None if len(reason.split()) >= 3 and reason.isprintable() else "a reason that is no sentence"


def _try_first_use(root: Path, where: dict[str, str], counts: Counter[str]) -> list[str]:
    """Training's way, and then everything that was accepted is fed."""
    problems = []
    with redirect_stdout(io.StringIO()):
        dataset = prepare(DataConfig(kind="folder", root=str(root), on_error="skip"), progress=True)
    for path, reason in dataset.rejects.items():
        if path not in where:
            problems.append(f"{path!r} is no file of this folder")
        if wrong := judge(reason):
            problems.append(f"{path!r} ({where.get(path)}): {wrong}: {reason!r}")
    accepted = len(dataset.train) + len(dataset.val)
    if accepted + len(dataset.rejects) != len(where):
        problems.append(f"{accepted} accepted and {len(dataset.rejects)} left out, of {len(where)}")
    num_train, num_val = len(dataset.train), len(dataset.val)
    fed, expected = 0, num_train + 2 * num_val
    for crops in ("centre", "ten"):
        for batch in open_validation(dataset, PLAIN, share(batch_size=8), crops=crops):
            fed += len(batch.labels) * bool(torch.isfinite(batch.images).all())
    # Training leaves out what does not fill a batch, so the size is one that leaves nothing.
    size = max(number for number in range(1, 9) if num_train % number == 0)
    feed = open_train(dataset, PLAIN, share(batch_size=size), seed=0, first_step=0)
    for _ in range(num_train // size):
        batch = next(feed)
        fed += len(batch.labels) * bool(torch.isfinite(batch.images).all())
    feed.close()
    if fed != expected:
        problems.append(f"{expected - fed} of {expected} images were not fed as numbers")
    counts["first use: accepted"] += accepted
    counts["first use: left out"] += len(dataset.rejects)
    counts["fed"] += fed
    counts[HITS] += len(dataset.rejects)
    return problems


def _try_prepare(root: Path, folder: Path, where: dict[str, str], counts: Counter[str]) -> list[str]:
    problems = []
    arguments = ("prepare_data.py", "source=folder", f"source.root={root}", "output=set", "max_rejects=1")
    command = Marked((*arguments, "images_per_shard=16", "size=64"), folder)
    status = command.wait(SECONDS)
    command.end()
    if status != 0:
        problems.append("it hangs" if status is None else f"exit status {status}")
    if "Traceback" in command.said():
        problems.append("a traceback")
    if problems:
        return [f"prepare_data: {problem}: {command.said()[-1000:]}" for problem in problems]
    content = read_dataset_json(folder / "set")
    links = ("nowhere.jpg", "circle.jpg")  # which are listed as unusable files there, and passed over by training
    rejects = [reject for reject in content["rejects"] if not reject["name"].endswith(links)]
    for reject in rejects:
        if wrong := judge(reject["reason"]):
            problems.append(f"prepare_data: {reject['name']!r}: {wrong}: {reject['reason']!r}")
    accepted = sum(split["images"] for split in content["splits"].values())
    if accepted + len(rejects) != len(where):
        problems.append(f"prepare_data: {accepted} accepted and {len(rejects)} left out, of {len(where)}")
    counts["prepare_data: accepted"] += accepted
    counts["prepare_data: left out"] += len(rejects)
    return problems


def bounds_of_folders(count: int) -> list[int]:
    """The numbers of the files at which folders begin, and the end."""
    num_folders = -(-count * FOLDERS // FILES)
    return [min(number * FILES // FOLDERS, count) for number in range(num_folders)] + [count]


def run(count: int, seed: int, say: Say) -> dict[str, int]:
    """Mutates `count` files. Returns how many were accepted and left out by each way, and fed.

    A file that training leaves out is a hit.
    """
    counts: Counter[str] = Counter()
    kinds = list(KINDS)
    for begin, end in pairwise(bounds_of_folders(count)):
        stream = Random(f"{seed}/{begin}")
        drawn = [kinds[number % len(kinds)] for number in range(begin, end)]
        folder = Path(tempfile.mkdtemp(prefix="campaign-images-"))
        began = time.monotonic()
        where = fill(folder / "images", stream, drawn)
        problems: list[str] = []
        for way in (
            lambda: _try_prepare(folder / "images", folder, where, counts),  # noqa: B023  # called at once
            lambda: _try_first_use(folder / "images", where, counts),  # noqa: B023
        ):
            try:
                problems += way()
            except Exception as error:  # any kind: each is a failure of this campaign
                problems.append(f"{type(error).__name__}: {error}")
        for problem in problems:
            say(f"FAILED {folder}: {problem}")
        counts["folders"] += 1
        counts[FAILURES] += len(problems)
        say(f"{end} files, {time.monotonic() - began:.0f} s for the last {len(drawn)}")
        if not problems:
            shutil.rmtree(folder)
    return {FAILURES: 0, HITS: 0} | dict(sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(run_alone("images", run, FULL))
