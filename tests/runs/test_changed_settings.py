"""A run goes on in its folder with the settings of its config.yaml, but for its length; elsewhere as one likes."""

import shutil
from pathlib import Path

import pytest

from helpers.fake_runs import fake_config, fake_run
from twotower.config import Config
from twotower.runs import checkpoint
from twotower.runs.changed_settings import check_changes

REFUSED = {
    "optim.learning_rate=0.05": "optim.learning_rate was 0.01 and is 0.05 now",
    "optim.momentum=0.8": "optim.momentum was 0.9 and is 0.8 now",
    "optim.weight_decay=0": "optim.weight_decay was 0.0005 and is 0.0 now",
    "optim.rule=torch": "optim.rule was paper and is torch now",
    "input.flip=false": "input.flip was True and is False now",
    "input.offsets=null": "input.offsets was 33 and is null now",
    "input.colour_noise=none": "input.colour_noise was 2012 and is none now",
    "schedule.patience=1": "schedule.patience was 5 and is 1 now",
    "schedule=run_145_2012": "schedule.rule was plateau and is recorded now",
    "machine.precision=bf16": "machine.precision was fp32 and is bf16 now",
}
ALLOWED = {
    "schedule.epochs=200": "schedule.epochs was 90 and is 200 now",
    "schedule.max_steps=7": "schedule.max_steps was null and is 7 now",
    "input.loader=torch": "input.loader was auto and is torch now",
}
SILENT = [
    *("machine.threads=1", "logging.every_steps=3", "checkpoint.keep=4", "name=other", "data.root=MOVED"),
    *("machine.replicas=2", "optim.batch_size=64", "initial_weights.path=RUN"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fake_run(tmp_path_factory.mktemp("changed") / "run", Path("DIR"))
    (run / "metrics.jsonl").touch()
    return run


def told(run: Path, run_dir: Path, config: Config) -> str:
    lines: list[str] = []
    check_changes(checkpoint.find(run), run_dir, config, lines.append)
    return "\n".join(lines)


@pytest.mark.parametrize("change", REFUSED)
def test_other_numbers_are_refused_in_the_same_folder_and_told_in_another(run: Path, change: str) -> None:
    config = fake_config(Path("DIR"), change)
    with pytest.raises(ValueError, match=r"cannot go on with other settings .* resume=.*run run_dir=NEW\.$") as error:
        told(run, run, config)
    assert REFUSED[change] in str(error.value)
    assert REFUSED[change] in told(run, run.parent / "new", config)


@pytest.mark.parametrize("change", ALLOWED)
def test_its_length_may_change_and_is_told(run: Path, change: str) -> None:
    assert told(run, run, fake_config(Path("DIR"), change)).endswith(f"with a change: {ALLOWED[change]}")


@pytest.mark.parametrize("change", [None, *SILENT])
def test_what_changes_no_number_is_not_told(run: Path, change: str | None) -> None:
    """Nor what a checkpoint is compared by in other ways, such as the batch of all replicas."""
    assert told(run, run, fake_config(Path("DIR"), *([] if change is None else [change]))) == ""


def test_a_damaged_configuration_lets_no_other_settings_in(run: Path, tmp_path: Path) -> None:
    """It is told of where another folder's epochs are not touched, and one that was removed was not wanted."""
    broken, config = tmp_path / "broken", fake_config(Path("DIR"))
    shutil.copytree(run, broken)
    (broken / "config.yaml").write_text("{")
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read, .* copy it again, or remove it to go on"):
        told(broken, broken, config)
    assert told(broken, run, config).endswith("whether the settings are those of the run")
    (broken / "config.yaml").unlink()
    assert told(broken, broken, config) == ""


def test_a_missing_journal_is_told_of(run: Path, tmp_path: Path) -> None:
    without, config = tmp_path / "without", fake_config(Path("DIR"))
    shutil.copytree(run, without)
    (without / "metrics.jsonl").unlink()
    assert told(without, without, config).endswith("so curves and reports will begin where this goes on")
    assert told(without, run, config) == ""
