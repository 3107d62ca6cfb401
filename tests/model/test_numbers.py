"""The numbers of a network against the paper and the 2012 source; the lab book's differences against the paper."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.towers import load_network
from twotower.figures.figure2 import draw_figure2
from twotower.model.layer_numbers import describe, totals
from twotower.reports.labbook import find_baseline, find_difference, read_labbook

# The paper's section 3.5 prints 253,440 for the first; 55 x 55 x 96 is 290,400, and the others agree.
UNITS = [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
PARAMETERS = [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000]


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_units_and_parameters_are_those_of_the_paper(name: str) -> None:
    layers = describe(load_network(name), 1000, 128)
    assert [layer.units for layer in layers] == UNITS
    assert [sum(layer.parameters) for layer in layers] == PARAMETERS
    assert totals(layers)["units"] == 659_272
    assert totals(layers)["parameters"] == 60_965_224
    assert totals(layers)["parameters_of_tower"] == (30_482_612, 30_482_612)


def test_multiply_adds_are_counted_by_hand() -> None:
    """conv1: 55 x 55 positions, 96 kernels of 11 x 11 x 3; conv2: 27 x 27, 256 of 5 x 5 x 48; fc6: 9216 x 4096."""
    layers = {layer.name: layer for layer in describe(load_network("alexnet"), 1000, 128)}
    assert sum(layers["conv1"].multiply_adds) == 55 * 55 * 96 * 11 * 11 * 3
    assert sum(layers["conv2"].multiply_adds) == 27 * 27 * 256 * 5 * 5 * 48
    assert sum(layers["conv3"].multiply_adds) == 13 * 13 * 384 * 3 * 3 * 256
    assert sum(layers["fc6"].multiply_adds) == 9216 * 4096


def test_exchanged_bytes_are_the_halves_that_cross() -> None:
    """128 x 13 x 13 maps at conv3, 128 x 6 x 6 at fc6, 2048 units at fc7 and fc8; float32, 128 images."""
    layers = describe(load_network("alexnet_2012"), 1000, 128)
    sent = {layer.name: layer.exchanged_bytes for layer in layers if layer.exchanged_bytes}
    assert sent == {"conv3": 11_075_584, "fc6": 2_359_296, "fc7": 1_048_576, "fc8": 1_048_576}
    assert 2 * totals(layers)["exchanged_bytes"] == 31_064_064


def test_kept_memory_counts_sums_norms_and_pooled_maps() -> None:
    conv1 = describe(load_network("alexnet_2012"), 1000, 2)[0]
    assert conv1.activation_bytes == 2 * 4 * 48 * (55 * 55 + 55 * 55 + 27 * 27)


def test_another_network_has_other_numbers() -> None:
    narrow = describe(load_network("alexnet", width=0.5), 1000, 128)
    assert [layer.units for layer in narrow] != UNITS
    assert totals(narrow)["parameters"] < 60_965_224 / 3


def test_the_lab_book_gives_the_papers_numbers() -> None:
    """Sections 3.2 to 3.4 print differences to one digit; Tables 1 and 2 print rates to one digit."""
    entries = read_labbook()
    differences = {}
    for entry in entries:
        points = find_difference(entry, entries)
        if points is not None and entry.paper_item.startswith("Section"):
            top1, top5 = points
            differences[entry.paper_item] = f"{entry.paper_item.split(':')[0]}: {top1:+.1f} / {top5:+.1f}"
    assert len(differences) == 3
    assert all(printed == computed for printed, computed in differences.items())
    printed = [entry for entry in entries if entry.paper_item.startswith("Table")]
    assert len(printed) == 11
    assert sum(entry.is_only_printed for entry in printed) == 7
    for entry in printed:
        numbers = ["-" if error is None else f"{error:.1f}" for error in (entry.top1_error, entry.top5_error)]
        assert " / ".join(numbers) in entry.paper_item


def test_a_baseline_is_of_the_same_images_and_view() -> None:
    entries = read_labbook()
    half = next(entry for entry in entries if entry.run == "145-half")
    baseline = find_baseline(half, entries)
    assert baseline is not None
    assert (baseline.run, baseline.set, baseline.view) == ("145-2010", "test", "10-view")
    assert find_baseline(replace(half, set="val"), entries) is None


def test_figure_2_is_drawn_from_the_numbers(tmp_path: Path) -> None:
    """The SVG names every layer of both towers, and its arrows cross once for each layer that reads both."""
    layers = describe(load_network("alexnet_2012"), 1000, 128)
    for name in ("a.svg", "b.svg"):
        draw_figure2(layers, "alexnet_2012", 224, 128, tmp_path / name)
    drawing = (tmp_path / "a.svg").read_text()
    assert drawing == (tmp_path / "b.svg").read_text(), "the same numbers give the same bytes"
    assert all(drawing.count(f"<!-- {layer.name}:") == 2 for layer in layers)
    assert drawing.count("MB -->") + drawing.count("each way -->") >= 4
    narrow = describe(load_network("alexnet_2012", width=0.5), 1000, 128)
    draw_figure2(narrow, "alexnet_2012", 224, 128, tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_text() != drawing


@pytest.mark.slow
def test_the_command_prints_the_table_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "describe.py")]
    options = {"cwd": tmp_path, "env": dict(os.environ), "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run([*command, "network=alexnet", "output=figure2.png"], **options, check=False)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert "60,965,224" in done.stdout
    assert "659,272" in done.stdout
    assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG")
    refused = subprocess.run([*command, "output=figure2.bmp"], **options, check=False)  # type: ignore[call-overload]
    assert refused.returncode == 1
    assert "error: output=figure2.bmp must end in one of .svg, .png, .pdf." in refused.stderr
