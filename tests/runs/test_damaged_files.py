"""Damaged files of runs and data sets, a short form of the campaign; and one damaged run beside whole ones."""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from campaigns import files, subjects
from campaigns.damage import HOSTILE, TAKEN
from campaigns.subjects import (
    RUN_FILES,
    RUN_PLACES,
    Subjects,
    leave_run_copy,
    make_subjects,
    report,
    resume,
    resume_another,
    show_labbook,
)
from twotower.config import Config
from twotower.config.stored_config import read_config, read_yaml
from twotower.reports.collect import find_runs
from twotower.reports.compare import compare
from twotower.reports.data_sets import check_one_data_set, leave_out_odd_images
from twotower.reports.tables import make_repeating_command
from twotower.runs.events import read_events
from twotower.runs.rundir import find_home

pytestmark = pytest.mark.usefixtures("one_thread")

COMMAND = "command: python launch/two_gpu.py name=fake"
PREDICTIONS = "predictions/step-00000002-val-centre.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    return make_subjects(tmp_path_factory.mktemp("damaged-files-"))


@pytest.fixture
def runs(made: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole run, an interrupted one, and one to be damaged."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    leave_run_copy(made, tmp_path / "runs" / subjects.WHOLE, 1_000_000, finished=True)
    leave_run_copy(made, tmp_path / "runs" / subjects.INTERRUPTED, 1_000_001, finished=False)
    leave_run_copy(made, tmp_path / "runs" / "damaged-0", 0, finished=True)
    return tmp_path / "runs"


@pytest.mark.timeout(900)
def test_forty_damaged_files() -> None:
    said: list[str] = []
    outcomes = files.run(40, 1, said.append, at_once=6)
    assert outcomes["failures"] == 0, "\n".join(said)
    assert outcomes[files.WENT_ON] > 10
    assert outcomes[files.SENTENCE] > 10


def wrong(folder: Path) -> None:
    raise KeyError("x")


def several_lines(folder: Path) -> None:
    raise ValueError(f"{folder}\nis damaged")


def nameless(folder: Path) -> None:
    raise ValueError("it is damaged")


def steering(folder: Path) -> None:
    print("\x1b[31m")


def marking(folder: Path) -> str:
    return f"<img src=x onerror={TAKEN}=1>"


def clear(folder: Path) -> None:
    raise ValueError(f"{folder} is damaged; make it again.")


@pytest.mark.parametrize(
    ("use", "outcome"),
    [
        (wrong, "traceback"),
        (several_lines, "unclear sentence"),
        (nameless, "unclear sentence"),
        (steering, "signs reach the reader"),
        (marking, "signs reach the reader"),
        (clear, files.SENTENCE),
    ],
)
def test_the_campaign_sees_what_it_is_made_for(
    use: Callable[[Path], str | None], outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "tried", use, raising=False)
    folder = tmp_path / "damaged-files-x" / "run-7"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert files.use("tried", folder)[0] == outcome


def test_a_hang_is_seen_and_waiting_for_a_processor_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ever comes: it is given up after the limit, and later by as much as the child was starved."""
    child, (ours, _theirs) = files.Child(tmp_path), Pipe()
    began = time.monotonic()
    assert not child._poll(ours, 0.1)
    assert time.monotonic() - began >= 0.1
    began = time.monotonic()
    monkeypatch.setattr(child, "_read_starved", lambda: min(2.0, time.monotonic() - began))
    assert not child._poll(ours, 0.1)
    assert time.monotonic() - began > 2.0


ALIASES = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no mapping|does not fit"),
        ("[]", "no mapping"),
        ("null", "no mapping|does not fit"),
        ("{", "damaged"),
        (ALIASES, "it has aliases, which no run stores"),
        ("a: &a [*a]", "it has aliases"),
        ("a: " + "[" * 100_000, "nested more than 20 deep|is damaged"),
        ("a: !!timestamp x", "it has the tag"),
        ("a: !!python/object/apply:os.system ['true']", "it has the tag"),
        ("x" * (2 << 20), "are the most"),
        ("network: 1", "does not fit"),
        ("no_such_key: 1", "does not fit"),
    ],
)
def test_a_configuration_of_another_form_is_one_sentence(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.yaml .*({reason}).*; copy it again from where") as told:
        read_config(tmp_path)
    assert "\n" not in str(told.value)


def test_bounds_hold_for_stored_configurations(made: Subjects, tmp_path: Path) -> None:
    text = (made.run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("stride: 4", "stride: 0", 1))
    with pytest.raises(ValueError, match=r"config\.yaml does not fit \(network\.layers\.conv1\.stride=0"):
        read_config(tmp_path)
    assert isinstance(read_config(made.run), Config)
    assert read_yaml(made.run / "config.yaml")["name"] == "fake"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "["),
        ("config.yaml", ALIASES),
        ("summary.json", "[]"),
        ("metrics.jsonl", '{"event": "train", "step": 1}\n'),
        ("mean_image.npy", "PK\x03\x04"),
        ("evaluation.json", '{"identity": 3}'),
        ("checkpoints/step-00000002/manifest.json", "null"),
        ("failure.json", "{}"),
        (PREDICTIONS, ""),
    ],
)
def test_one_damaged_run_ends_nothing_for_the_others(runs: Path, file: str, content: str) -> None:
    damaged = runs / "damaged-0"
    (damaged / file).write_text(content)
    found = {run.name: run for run in find_runs([str(runs)])}
    assert found[subjects.WHOLE].status == "finished"
    is_left_out = file not in ("evaluation.json", PREDICTIONS)
    assert (found["damaged-0"].status == "damaged") == is_left_out
    if is_left_out:
        assert f"{file} " in found["damaged-0"].remark
    assert "Table 1" in show_labbook(damaged)
    (damaged / "summary.json").unlink()
    resume_another(runs)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "null",
        '"x"',
        '{"host": 3}',
        "[" * 100_000,
        '{"host": ' * 2000,
        '{"host": "\xff',
        " " * 100_000,
    ],
)
def test_a_damaged_note_of_another_host_is_one_sentence(runs: Path, content: str) -> None:
    run = runs / "damaged-0"
    subjects.leave_note_of_another_host(run)
    with pytest.raises(ValueError, match=r"kept_elsewhere\.json says that node7 keeps this run on its disk"):
        resume(run)
    (run / "kept_elsewhere.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"damaged-0/kept_elsewhere\.json is damaged \(.*\); delete it, unless"
    ) as told:
        resume(run)
    assert len(str(told.value)) < 1000
    (run / "kept_elsewhere.json").write_text(json.dumps({"host": HOSTILE}))
    with pytest.raises(ValueError, match="keeps this run on its disk") as told:
        resume(run)
    assert files.find_signs(str(told.value)) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes there")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("file", [*RUN_FILES, *RUN_PLACES])
def test_nobody_waits_for_a_pipe_in_a_files_place(runs: Path, file: str) -> None:
    """Every use goes on or ends in a sentence."""
    run = runs / "damaged-0"
    if file != "summary.json":
        (run / "summary.json").unlink()
    if file == "kept_elsewhere.json":
        subjects.leave_note_of_another_host(run)
    if (run / file).is_dir():
        shutil.rmtree(run / file)
    (run / file).unlink(missing_ok=True)
    os.mkfifo(run / file)
    for use in (subjects.evaluate, resume):
        with suppress(ValueError, OSError):
            use(run)
    assert {run.name for run in find_runs([str(runs)])} == {"damaged-0", subjects.INTERRUPTED, subjects.WHOLE}


def test_a_report_goes_without_what_is_damaged_in_its_own_run(runs: Path) -> None:
    """Predictions that say the right identity and hold something else, and a figure that is none."""
    shutil.rmtree(runs / "damaged-0")
    run = runs / subjects.WHOLE
    with safe_open(run / PREDICTIONS, framework="pt") as file:
        about = file.metadata()
    save_file({"labels": torch.zeros(3, dtype=torch.int64)}, run / PREDICTIONS, about)
    (run / "figures" / "figure4.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (run / "figures" / "figure4.html").write_text("<script>")
    report(runs)
    assert not list(runs.parent.glob("report-runs/figure4*seed=1000000*"))
    assert not list(runs.parent.glob("report-runs/confusion*"))


def test_a_mean_image_with_one_bit_changed_leaves_its_run_out(runs: Path) -> None:
    path = runs / "damaged-0" / "mean_image.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    found = {run.name: run for run in leave_out_odd_images(find_runs([str(runs)]))}
    assert {name: run.status for name, run in found.items()} == {
        "damaged-0": "damaged",
        subjects.INTERRUPTED: "unfinished",
        subjects.WHOLE: "finished",
    }
    assert "damaged-0/mean_image.npy is of other images" in found["damaged-0"].remark
    check_one_data_set(list(found.values()))
    two = [run for run in find_runs([str(runs)]) if run.name != subjects.INTERRUPTED]
    with pytest.raises(ValueError, match="different mean images"):
        check_one_data_set(leave_out_odd_images(two))


def test_a_report_of_several_names_the_damaged_run_and_spells_out_what_it_says(runs: Path) -> None:
    (runs / "damaged-0" / "failure.json").write_text(json.dumps({"error": HOSTILE}))
    shutil.rmtree(runs / subjects.INTERRUPTED)  # a group shows the command of its first run
    path, command = runs / subjects.WHOLE / "config.yaml", "python launch/two_gpu.py 'odd"
    text = path.read_text()
    assert COMMAND in text
    for each in (path, runs / "damaged-0" / "config.yaml"):
        each.write_text(each.read_text().replace(COMMAND, f"command: {json.dumps(command)}"))
    shown = report(runs)
    assert files.find_signs(shown, markup=True) is None
    assert "pwn" in shown, "the reason stands there"
    assert TAKEN in shown
    assert "not noted by these runs" in shown, "a command with an odd quotation mark ends no report"


def test_a_command_that_does_something_else_is_not_offered_for_copying(runs: Path) -> None:
    for name in ("damaged-0", subjects.INTERRUPTED):
        shutil.rmtree(runs / name)
    path = runs / subjects.WHOLE / "config.yaml"
    kept = path.read_text()
    for command, shown in (
        (COMMAND, "python launch/two_gpu.py name=fake seed=1000000"),
        ("command: rm -rf /", ""),
        ("command: null", ""),
        (f"{COMMAND}; true", "python launch/two_gpu.py 'name=fake;' true seed=1000000"),
    ):
        path.write_text(kept.replace(COMMAND, command))
        assert make_repeating_command(compare(find_runs([str(runs)])).baseline) == shown


def test_a_run_goes_on_from_its_last_whole_checkpoint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kill while a checkpoint was being deleted left half of it."""
    run = runs / subjects.INTERRUPTED
    (run / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    resume_another(runs)
    config = subjects.find_config(runs, seed=1_000_001, run_dir=str(run))
    home = find_home(config)
    assert home.resume_from is not None
    assert home.resume_from.name == "step-00000001"
    assert "passed over: " in capsys.readouterr().out
    (run / "checkpoints" / "step-00000001" / "tower0.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step-00000002/manifest\.json is damaged \(it is missing\)"):
        find_home(config)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "train", "step": 2, "epoch": 1.0, "learning_rate": "0.01"},
        {"event": "train", "step": "2"},
        {"event": "validation", "step": 2, "epoch": 1, "loss": "1.5"},
        {"event": "memory", "step": 2, "tower0": "7"},
        {"event": "scales", "step": 2, "tower0/conv1/colour": "0.5"},
    ],
    ids=lambda event: event["event"],
)
def test_a_number_within_quotes_is_none(tmp_path: Path, event: dict[str, object]) -> None:
    """It would be taken for a number when it is checked, and be a text where it is used."""
    path = tmp_path / "metrics.jsonl"
    whole = json.loads(json.dumps(event).replace('"0.01"', "1").replace('"1.5"', "NaN").replace('"2"', "2"))
    whole = {key: float(value) if key in ("tower0", "tower0/conv1/colour") else value for key, value in whole.items()}
    path.write_text(json.dumps(whole) + "\n")
    assert str(read_events(path)) == str([whole])
    path.write_text(json.dumps(event) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged \(line 1: "):
        read_events(path)
