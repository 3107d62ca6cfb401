"""Ways of damaging one file, drawn from a stream: what a disk, a kill, an editor or a stranger may leave there."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml

from twotower.ground.files import hash_file

# It would set a terminal's title, colour it, end a table's cell and put an element into a page.
TAKEN = "window.taken"
HOSTILE = f"\x1b]0;pwn\x07\x1b[31m|`$x^$<img src=x onerror={TAKEN}=1>\n\u202e<script>{TAKEN}=1</script>"
DEEP = 100_000  # brackets within each other

Damage = Callable[[Random, bytes], bytes]


def flip_bits(stream: Random, content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(stream.choice((1, 1, 8, 100))):
        changed[stream.randrange(len(changed))] ^= 1 << stream.randrange(8)
    return bytes(changed)


def cut_short(stream: Random, content: bytes) -> bytes:
    return content[: stream.randrange(len(content) + 1)]


def empty(stream: Random, content: bytes) -> bytes:
    return b""


def zero_a_block(stream: Random, content: bytes) -> bytes:
    """As a disk does that lost a block."""
    begin = stream.randrange(len(content) + 1)
    length = len(content[begin : begin + 512])
    return content[:begin] + bytes(length) + content[begin + length :]


def insert_control_characters(stream: Random, content: bytes) -> bytes:
    begin = stream.randrange(len(content) + 1)
    return content[:begin] + b"\x1b]0;pwn\x07\xff\xfe" + content[begin:]


def replace_by_other_file(stream: Random, content: bytes) -> bytes:
    others = (
        b"<!DOCTYPE html><html>404</html>",
        b"PK\x03\x04",
        b"\x93NUMPY",
        b"version https://git-lfs",
        b"\x1f\x8b",
    )
    return stream.choice(others)


GENERAL = (flip_bits, cut_short, empty, zero_a_block, insert_control_characters, replace_by_other_file)

_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2.5, 10**9, 10**40, 1e308, float("nan"), float("inf"), "", "x", HOSTILE, "../../x"),
    *("/etc/passwd", "${oc.env:HOME}", [], {}, [1], [[]], {"x": 1}, ["x", None], "9" * 5000, "y" * 100_000),
)


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within nested dictionaries and lists."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [place for key in keys for place in ((content, key), *_places(content[key]))]


def change_tree(stream: Random, content: Any) -> Any:
    """One entry of nested dictionaries and lists is taken away, doubled, renamed or replaced."""
    places = _places(content)
    if not places or stream.random() < 0.05:
        return stream.choice(_ODD)
    container, key = stream.choice(places)
    how = stream.random()
    if how < 0.2:
        del container[key]
    elif how < 0.3 and isinstance(container, list):
        container.append(container[key])
    elif how < 0.35 and isinstance(container, dict):
        container[HOSTILE] = container.pop(key)
    elif how < 0.5 and isinstance(container[key], str):
        container[key] = HOSTILE
    elif how < 0.6 and isinstance(container[key], int | float):
        container[key] = stream.choice((-container[key], container[key] * 10**6, str(container[key])))
    else:
        container[key] = stream.choice(_ODD)
    return content


def change_json(stream: Random, content: bytes) -> bytes:
    """One value in a file of JSON, or in one line of several."""
    lines = content.splitlines()
    if content.startswith(b"{") and len(lines) > 1 and all(line.startswith(b"{") for line in lines):
        number = stream.randrange(len(lines))
        lines[number] = json.dumps(change_tree(stream, json.loads(lines[number]))).encode()
        return b"\n".join(lines) + b"\n"
    return json.dumps(change_tree(stream, json.loads(content))).encode()


def nest_json(stream: Random, content: bytes) -> bytes:
    opening = stream.choice((b"[", b'{"a":'))
    whole = stream.random() < 0.5
    nested = opening * DEEP + (b"1" + (b"]" if opening == b"[" else b"}") * DEEP if whole else b"")
    return nested if stream.random() < 0.5 else b'{"format": 2, "event": "train", "step": ' + nested + b"}\n"


def change_yaml(stream: Random, content: bytes) -> bytes:
    return yaml.safe_dump(change_tree(stream, yaml.safe_load(content))).encode()


def nest_yaml(stream: Random, content: bytes) -> bytes:
    return (
        content + b"odd: " + stream.choice((b"[" * 5000, b"[" * 300 + b"]" * 300, b"{a: " * 300 + b"}" * 300)) + b"\n"
    )


def add_aliases(stream: Random, content: bytes) -> bytes:
    """430 bytes that stand for a thousand million."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    text = "\n".join(lines) + "\n"
    return content + text.encode() if stream.random() < 0.7 else b"name: &n [*n]\n"


def add_tag(stream: Random, content: bytes) -> bytes:
    tags = (b"!!python/object/apply:os.system ['true']", b"!!timestamp x", b"!!int ''", b"!!bool x", b"!!binary x")
    return content + b"odd: " + stream.choice(tags) + b"\n"


def interpolate(stream: Random, content: bytes) -> bytes:
    text = yaml.safe_load(content)
    text[stream.choice(sorted(text))] = stream.choice(("${oc.env:HOME}", "${name}", "${", "a ${seed}"))
    return yaml.safe_dump(text).encode()


def _as_npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def change_array(stream: Random, content: bytes) -> bytes:
    """Another form, or numbers that are none."""
    array = np.load(io.BytesIO(content))
    other: list[Any] = [array[..., None], array[:0], array[::2], array.reshape(-1), np.array(1.0), np.array({"x": 1})]
    other += [np.zeros((3, 3), "<U4"), array.repeat(2, 0), np.zeros(4, [("label", "<u4")]), np.ones((4, 4, 3))]
    if array.dtype.names is None:
        other += [array.astype(np.float64), array.astype(np.int8), np.full(array.shape, np.nan, np.float32)]
        other += [np.full_like(array, np.inf) if array.dtype.kind == "f" else array[..., :1]]
    else:
        for name in array.dtype.names:
            for value in (0, 2**31, 2**32 - 1):
                changed = array.copy()
                changed[name][stream.randrange(len(array))] = value
                other.append(changed)
    return _as_npy(stream.choice(other))


def claim_shape(stream: Random, content: bytes) -> bytes:
    """A header that promises more than any memory holds, or something that is no shape."""
    shape = stream.choice(
        (
            "(10000000, 1000000, 3)",
            "(100000, 100000, 3)",
            "(-1, 4, 3)",
            "(99999999999999999999,)",
            "((((1,),),),)",
            "x",
        )
    )
    kind = stream.choice(("'<f4'", "'|u1'", "'|O'", "'<U999999999'", "[('label', '<u4')]", "'nothing'"))
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    if stream.random() < 0.2:
        header = b"(" * 3000 + b")" * 3000
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content[128:]


def zip_array(stream: Random, content: bytes) -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def change_tensors(stream: Random, content: bytes) -> bytes:
    """The header of a safetensors file with one value changed, before the tensors as they were."""
    length = int.from_bytes(content[:8], "little")
    header = change_tree(stream, json.loads(content[8 : 8 + length]))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def claim_tensors(stream: Random, content: bytes) -> bytes:
    text = b'{"conv1.weight":{"dtype":"F32","shape":[4000000000],"data_offsets":[0,16000000000]}}'
    return stream.choice((b"\xff" * 8 + content[8:], len(text).to_bytes(8, "little") + text, b"\0" * 8))


def swap_numbers(stream: Random, content: bytes) -> bytes:
    """Numbers of a tensor file that are none, of the right form."""
    length = int.from_bytes(content[:8], "little")
    begin = 8 + length + 4 * stream.randrange(max(1, (len(content) - length) // 4 - 4))
    return content[:begin] + stream.choice((b"\xff\xff\xff\x7f", b"\0\0\x80\x7f")) * 2 + content[begin + 8 :]


def ways_for(name: str) -> tuple[Damage, ...]:
    """The damages that are tried on a file of this name, general ones among them."""
    suffix = name.rpartition(".")[2]
    special: dict[str, tuple[Damage, ...]] = {
        "json": (change_json,) * 8 + (nest_json,),
        "jsonl": (change_json,) * 6 + (nest_json,),
        "yaml": (change_yaml,) * 8 + (nest_yaml, add_aliases, add_aliases, add_tag, interpolate),
        "npy": (change_array,) * 4 + (claim_shape,) * 3 + (zip_array,),
        "safetensors": (change_tensors,) * 4 + (claim_tensors, claim_tensors, swap_numbers, swap_numbers),
    }
    return GENERAL + special.get(suffix, ())


def make_outside(folder: Path) -> Path:
    """A folder of somebody else, which nothing that is tried may change: where links lead to."""
    (folder / "folder").mkdir(parents=True)
    (folder / "file").write_text("mine\n")
    return folder


def look_outside(outside: Path) -> dict[str, bytes | None]:
    """All that is in it: the content of files, None for folders."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(outside.rglob("*"))}


def replace_entry(stream: Random, path: Path, outside: Path) -> str:
    """Puts something else in the place of a file or folder, also where there is none. Returns in a word what."""
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    out = {"file": outside / "file", "folder": outside / "folder", "nothing": outside / "new"}
    links = out | {"a device": Path("/dev/zero"), "itself": Path(path.name), "below": Path("inside")}
    what = stream.choice(("pipe", "empty file", "empty folder", *links, *out, *out))
    if what == "pipe":
        os.mkfifo(path)
    elif what == "empty file":
        path.touch()
    elif what == "empty folder":
        path.mkdir()
    else:
        path.symlink_to(links[what])
        return f"link to {what}"
    return what


def damage_file(stream: Random, path: Path, outside: Path) -> str:
    """Damages one file, takes it away, or puts something else in its place. Returns in a word how.

    The checksum of a tensor file is replaced as well, in half of the cases, so that what lies behind is tried, too.
    """
    chance = stream.random()
    if chance < 0.16 or not path.is_file():
        return replace_entry(stream, path, outside)
    if chance < 0.2:
        path.unlink()
        return "deleted"
    damage = stream.choice(ways_for(path.name))
    path.write_bytes(damage(stream, path.read_bytes()))
    manifest = path.parent / "manifest.json"
    if path.suffix == ".safetensors" and manifest.exists() and stream.random() < 0.7:
        content = json.loads(manifest.read_text())
        content["sha256"][path.name] = hash_file(path)
        manifest.write_text(json.dumps(content))
        return f"{damage.__name__} with its checksum"
    return damage.__name__
