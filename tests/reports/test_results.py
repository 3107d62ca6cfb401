"""The results in the repository: complete, free of a machine's paths, and their summaries follow from their data."""

import csv
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

import pytest

from helpers.paths import ROOT
from helpers.shells import SHELLS
from twotower.config import check
from twotower.config.stored_config import read_config_file

RESULTS = sorted(path for path in (ROOT / "results").iterdir() if path.is_dir())
ABLATIONS = ROOT / "results" / "imagenette_narrow"
BF16 = [ROOT / "results" / name for name in ("bf16_shapes", "bf16_photographs")]
FIGURE_1 = ROOT / "results" / "figure1_cifar10"


def test_there_are_results() -> None:
    assert {ABLATIONS, FIGURE_1, *BF16} <= set(RESULTS)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_a_result_is_complete(folder: Path) -> None:
    names = [path.name for path in folder.iterdir()]
    assert {"README.md", "summary.json"} <= set(names)
    assert any(name.endswith(".csv") for name in names)
    assert any(name.endswith(".png") for name in names)
    configs = [name for name in names if name.startswith("config-")]
    assert configs
    for name in configs:
        check(read_config_file(folder / name))
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        if path.suffix not in (".png", ".safetensors"):
            assert not re.search(r"(?<![\w.])/(tmp|home|work|root|Users|mnt)/", path.read_text()), path
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    assert sizes.pop("model.safetensors", 0) < 8e6, "a network of a few MB"
    assert sum(sizes.values()) < 2e6, "small files"


def test_the_ablations_follow_from_their_runs() -> None:
    summary = json.loads((ABLATIONS / "summary.json").read_text())
    runs = list(csv.DictReader((ABLATIONS / "runs.csv").open()))

    def errors(network: str, ablation: str) -> dict[str, float]:
        chosen = [run for run in runs if (run["network"], run["ablation"]) == (network, ablation)]
        assert all(run["status"] == "finished" for run in chosen)
        return {run["seed"]: float(run["top1_error_ten"]) for run in chosen}

    base = errors("alexnet_2012", "none")
    assert len(base) >= 3
    for label, group in summary["groups"].items():
        ours = errors(group["network"], group["ablation"])
        assert len(ours) >= 3, label
        assert group["errors"]["top1_error_ten"]["mean"] == pytest.approx(mean(ours.values()), abs=1e-3)
        if label != summary["baseline"]:
            pairs = [ours[seed] - base[seed] for seed in ours]
            difference = group["differences"]["top1_error_ten"]
            assert difference["mean"] == pytest.approx(mean(pairs), abs=1e-3)
            half = {3: 4.302653, 4: 3.182446, 5: 2.776445}[len(pairs)] * stdev(pairs) / len(pairs) ** 0.5
            assert difference["high"] - difference["mean"] == pytest.approx(half, abs=1e-3)


def test_the_text_counts_the_intervals_that_exclude_zero() -> None:
    rows = list(csv.DictReader((ABLATIONS / "table.csv").open()))
    columns = [f"{measure}_error_{view}" for measure in ("top1", "top5") for view in ("centre", "ten")]
    intervals = {
        (row["group"], column): (float(row[f"{column}_low"]), float(row[f"{column}_high"]))
        for row in rows
        for column in columns
        if row[f"{column}_low"]
    }
    excluding = {key for key, (low, high) in intervals.items() if not low <= 0 <= high}
    assert (len(intervals), excluding) == (
        12,
        {
            ("no_overlap", "top5_error_centre"),
            ("no_exchange", "top1_error_centre"),
            ("no_exchange", "top5_error_centre"),
        },
    )
    text = " ".join((ABLATIONS / "README.md").read_text().split())
    assert "three of the twelve intervals exclude zero, where 0.6 would by chance" in text
    assert 0.05 * len(intervals) == pytest.approx(0.6)


@pytest.mark.parametrize("folder", BF16, ids=lambda folder: folder.name)
def test_what_bf16_costs_follows_from_its_runs(folder: Path) -> None:
    """Summary and text: the errors of each seed, and the mean of the differences with its interval."""
    runs = list(csv.DictReader((folder / "runs.csv").open()))
    text = (folder / "README.md").read_text()
    group = json.loads((folder / "summary.json").read_text())["groups"]["none, machine.precision=bf16"]
    for column, view in (("top1_error_centre", "centre crop"), ("top1_error_ten", "ten crops")):
        by_precision = [
            {run["seed"]: float(run[column]) for run in runs if f"precision={precision} " in run["command"]}
            for precision in ("fp32", "bf16")
        ]
        fp32, bf16 = by_precision
        assert sorted(fp32) == sorted(bf16) == ["0", "1", "2"]
        pairs = [bf16[seed] - fp32[seed] for seed in fp32]
        half = 4.302653 * stdev(pairs) / len(pairs) ** 0.5
        difference = group["differences"][column]
        assert difference["mean"] == pytest.approx(mean(pairs), abs=1e-3)
        assert difference["high"] - difference["mean"] == pytest.approx(half, abs=1e-3)
        for precision, errors in zip(("fp32", "bf16"), by_precision, strict=True):
            (line,) = (line for line in text.splitlines() if line.startswith(f"| {precision}, {view} |"))
            shown = [float(cell.split("/")[0]) for cell in line.split("|")[2:6]]
            assert shown == pytest.approx([*errors.values(), mean(errors.values())], abs=0.051)
            if precision == "bf16":
                numbers = [float(number) for number in re.findall(r"[-+]?[\d.]+", line.split("|")[6])[:3]]
                expected = [mean(pairs), mean(pairs) - half, mean(pairs) + half]
                assert numbers == pytest.approx(expected, abs=0.051)


def test_figure_1_follows_from_its_curves() -> None:
    summary = json.loads((FIGURE_1 / "summary.json").read_text())
    rows = list(csv.DictReader((FIGURE_1 / "figure1.csv").open()))
    for level in summary["levels"]:
        for activation, summary in level["activations"].items():
            epochs = []
            for seed in sorted({row["seed"] for row in rows if row["activation"] == activation}):
                errors = [
                    float(row["train_top1_error"])
                    for row in rows
                    if (row["activation"], row["seed"]) == (activation, seed)
                ]
                first = next((i for i, error in enumerate(errors) if error <= level["level"]), None)
                if first is None:
                    epochs.append(None)
                else:
                    share = (errors[first - 1] - level["level"]) / (errors[first - 1] - errors[first])
                    epochs.append(pytest.approx(first + share, abs=1e-2))
            assert summary["epochs"] == epochs


# Which images


def test_the_thousand_photographs_are_named() -> None:
    """validation.txt: 100 of each class, sorted, with the fingerprint that the text gives."""
    lines = (ABLATIONS / "validation.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    assert sorted(Counter(line.split("/")[1] for line in lines).values()) == [100] * 10
    assert all(re.fullmatch(r"val/(n\d{8})/(ILSVRC2012_val_\d{8}|\1_\d+)\.JPEG", line) for line in lines)
    listed = hashlib.sha256((ABLATIONS / "validation.txt").read_bytes()).hexdigest()
    assert f"| names for validation here: `validation.txt` | `{listed}` |" in (ABLATIONS / "README.md").read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_thousand_can_be_taken_from_the_public_archive(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of the text, on an archive with the names of the public one; then the fingerprint by its command."""
    monkeypatch.chdir(tmp_path)
    names = (ABLATIONS / "validation.txt").read_text().split()
    others = ["train/n01440764/a.JPEG", "train/n02102040/b.JPEG", "val/n01440764/not_ours.JPEG"]
    archive = Path("datasets/downloads/imagenette/imagenette2-320.tgz")
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name in [*names, *others]:
            tar.addfile(tarfile.TarInfo(f"imagenette2-320/{name}"), io.BytesIO())
    Path("results").symlink_to(ROOT / "results")
    fences = re.findall(r"```sh\n(.*?)```", (ABLATIONS / "README.md").read_text(), re.DOTALL)
    (recipe,) = (fence for fence in fences if "mkdir" in fence)
    (listing,) = (fence for fence in fences if "sha256sum" in fence)
    subprocess.run([shell, "-c", recipe], check=True, timeout=60)
    place = Path("datasets/thousand/imagenette2-320")
    taken = sorted(str(path.relative_to(place)) for path in place.rglob("*.JPEG"))
    assert taken == sorted([*names, *others[:2]])
    sums = subprocess.run([shell, "-c", listing], cwd=place, check=True, timeout=60, capture_output=True, text=True)
    assert sums.stdout.split()[2] == hashlib.sha256((ABLATIONS / "validation.txt").read_bytes()).hexdigest()
    assert place.parts[1] in next(line for line in recipe.splitlines() if line.startswith("run()"))
