"""Stored files of another form are refused in one sentence that names them, whatever they claim."""

import json
import os
import struct
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from annotated_types import Len
from pydantic import TypeAdapter
from safetensors.torch import save_file

from twotower.ground.screen import show
from twotower.ground.stored_files import (
    ANYTHING,
    Count,
    check_form,
    read_json,
    read_limited,
    read_npy,
    read_numbers,
    read_tensors,
)
from twotower.ground.wording import on_lines, on_one_line, printable

REMEDY = "make it again"


def header(shape: str, kind: str = "'<f4'") -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Invalid JSON: EOF"),
        (b"[1]", "Input should be an object"),
        (b"null", "Input should be an object"),
        (b'{"a": "\xff"}', "Invalid JSON"),
        (b'{"a": ' * 100_000, "recursion limit"),
        (b'{"a": -1}', "a: Input should be greater than or equal to 0"),
        (b'{"a": 1.0}', "a: Input should be a valid integer"),
        (b'{"a": true}', "a: Input should be a valid integer"),
        (b'{"a": "1"}', "a: Input should be a valid integer"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "number out of range"),
    ],
)
def test_json_of_another_form(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "numbers.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"numbers\.json") as told:
        read_json(path, TypeAdapter(dict[str, Count]), REMEDY)
    sentence = str(told.value)
    assert sentence.startswith(f"{path} is damaged (")
    assert sentence.endswith("); make it again.")
    assert reason in sentence
    assert len(sentence) < 1000
    path.write_bytes(b'{"a": 3}')
    assert read_json(path, TypeAdapter(dict[str, Count]), REMEDY) == {"a": 3}


def test_names_of_files_that_are_no_utf8_are_read_back(tmp_path: Path) -> None:
    path, name = tmp_path / "names.json", os.fsdecode(b"a\xff")
    path.write_text(json.dumps({name: name}))
    assert read_json(path, TypeAdapter(dict[str, str]), REMEDY) == {name: name}
    path.write_text(json.dumps({name: name}).replace("}", ""))
    with pytest.raises(ValueError, match=r"names\.json is damaged"):
        read_json(path, TypeAdapter(dict[str, str]), REMEDY)
    pair, row = TypeAdapter(tuple[str, int]), ["a\udcff", 1]
    path.write_text(json.dumps(row))
    assert read_json(path, pair, REMEDY) == tuple(row)
    long_enough = TypeAdapter(list[Annotated[str, Len(1)]])
    assert check_form([name, "é"], long_enough, path, REMEDY) == [name, "é"]
    path.write_text(json.dumps([row[0], "1"]))
    with pytest.raises(ValueError, match=r"names\.json is damaged \(1: Input should be a valid integer\)"):
        read_json(path, pair, REMEDY)
    path.write_text('{"a": "\\udcff", "b": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"names\.json is damaged"):
        read_json(path, ANYTHING, REMEDY)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"1,099,511,627,776 bytes, and 1,000 are the most"):
        read_limited(path, 1000, REMEDY)
    with pytest.raises(ValueError, match=r"b is damaged \(it is missing\)"):
        read_limited(tmp_path / "b", 1000, REMEDY)
    with pytest.raises(ValueError, match=r"it is no file"):
        read_json(tmp_path, ANYTHING, REMEDY)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",
        header("(10000000, 1000000, 3)"),
        header("(99999999999999999999, 99999999999999999999)"),
        header("(-1, 4)"),
        header("(4,)"),
        header("(4,)") + bytes(15),
        header("(4,)") + bytes(17),
        header("(1,)", "'|O'") + bytes(8),
        header("(1,)", "'nothing'"),
        header("((1,),)"),
        header("x"),
        header("(" * 900 + ")" * 900),
        header("(1,)")[:30] + b"\x1b\xff" + header("(1,)")[30:],
        header("(1,)").replace(b"'shape'", b"('shape'"),
    ],
)
def test_arrays_that_are_not_what_they_claim(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    for mapped in (False, True):
        with pytest.raises(ValueError, match=r"a\.npy is damaged \(.*\); make it again\.$"):
            read_npy(path, REMEDY, mapped=mapped)


def test_arrays_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.array(2.0), np.asfortranarray(np.ones((2, 3)))):
        np.save(path, array)
        for mapped in (False, True):
            assert np.array_equal(read_npy(path, REMEDY, mapped=mapped), array)
    assert read_numbers(path, np.float64, (None, 3), REMEDY).shape == (2, 3)
    for kind, shape in ((np.float32, (2, 3)), (np.float64, (3, 2)), (np.float64, (2, 3, 1))):
        with pytest.raises(ValueError, match=r"a\.npy is damaged \(it holds float64 \[2, 3\], not"):
            read_numbers(path, kind, shape, REMEDY)
    np.save(path, np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="not all of its numbers are finite"):
        read_numbers(path, np.float64, (2,), REMEDY)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\0" * 8, struct.pack("<Q", 10**6) + b"{}"])
def test_tensor_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged \(.*\); make it again\.$"):
        read_tensors(path, REMEDY)


def test_tensors_that_are_no_numbers(tmp_path: Path) -> None:
    path, tensor = tmp_path / "a.safetensors", torch.ones(3)
    save_file({"w": tensor}, path, {"k": "v"})
    tensors, about = read_tensors(path, REMEDY)
    assert torch.equal(tensors["w"], tensor)
    assert about == {"k": "v"}
    tensor[1] = float("inf")
    save_file({"w": tensor}, path)
    with pytest.raises(ValueError, match="w has numbers that are not finite"):
        read_tensors(path, REMEDY)
    assert torch.equal(read_tensors(path, REMEDY, finite=False)[0]["w"], tensor)


def test_signs_that_steer_a_terminal_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b]0;pwn\x07b\u202ec\r\udcff é 漢"
    assert printable(hostile) == r"a\x1b]0;pwn\x07b\u202ec\x0d\xff é 漢"
    assert on_lines("x\n" + hostile).split("\n") == ["x", printable(hostile)]
    assert on_one_line("a\n  b\tc") == "a b c"
    assert len(on_one_line("x" * 9000, 50)) == 50
    show(hostile)
    assert "\x1b" not in capsys.readouterr().out
    assert json.loads(json.dumps(printable(hostile))) == printable(hostile)
