"""A stranger's run, sweep or data set with links in it: no command reads or writes anything outside of the folder."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from campaigns import subjects
from campaigns.subjects import PREPARED_SIZE, Subjects, evaluate, evaluate_afresh, make_subjects, open_network, resume
from helpers.archives import prepare_here, tree_files, write_tree
from helpers.contents import contents
from helpers.fake_runs import fake_config
from twotower.config import DataConfig, EvaluateConfig, ExportConfig, FigureConfig, ReportConfig
from twotower.data.decoded_squares import decode_squares
from twotower.data.load_data import load
from twotower.data.preparing.first_use import prepare
from twotower.evaluation.evaluate import evaluate_run
from twotower.figures.draw_figure import draw_figure
from twotower.reports.make import make_report
from twotower.runs.elsewhere import note_elsewhere
from twotower.runs.rundir import find_home, hold_home
from twotower.training.sweep import Job, Sweep
from twotower.weights.export import export_run
from twotower.weights.identify import identify

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform == "win32", reason="links are for administrators there"),
]

OUT = "is a link that leads out of "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    return make_subjects(tmp_path_factory.mktemp("links"))


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim" / "folder").mkdir(parents=True)
    (tmp_path / "victim" / "file").write_text("mine")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "victim" / "private.png")
    return tmp_path / "victim"


@pytest.fixture
def run(made: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of somebody else, finished."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    subjects.leave_run_copy(made, runs / subjects.WHOLE, 1_000_000, finished=True)
    subjects.leave_run_copy(made, runs / "theirs-0", 0, finished=True)
    return runs / "theirs-0"


def export(run: Path) -> None:
    export_run(ExportConfig(run=str(run), force=True))


def figure(run: Path) -> None:
    draw_figure(FigureConfig(figure="figure3", run=str(run)), print)


def figure_of_a_checkpoint(run: Path) -> None:
    """Without a configuration nothing is known of the run, and the figure is drawn all the same."""
    (run / "config.yaml").unlink()
    figure(run)


def begin(run: Path) -> None:
    """A training, in a folder with whatever was put there, and without a checkpoint."""
    if not (run / "checkpoints").is_symlink():
        shutil.rmtree(run / "checkpoints")
    resume(run)


def look_at_weights(run: Path) -> None:
    identify(run)


def go_on_elsewhere(run: Path) -> None:
    """From its checkpoint, in another folder."""
    (run / "config.yaml").unlink()
    find_home(fake_config(Path("images"), f"resume={run}", "run_dir=new"))


def go_on_from(run: Path) -> None:
    """As with resume=CHECKPOINT, in the folder of its run."""
    (run / "config.yaml").unlink()
    path = run / "checkpoints" / "step-00000002"
    with hold_home(fake_config(Path("images"), f"resume={path}")):
        raise AssertionError("it was held")


def find_in(run: Path) -> None:
    """Nothing is written yet, and what is read is printed where it is damaged."""
    find_home(fake_config(Path("images"), "resume=auto", f"run_dir={run}"))


def evaluate_an_earlier_one(run: Path) -> None:
    evaluate_run(EvaluateConfig(run=str(run), checkpoint="1", device="cpu"))


def note(run: Path) -> None:
    note_elsewhere(run, "another")


# What each command writes in a run's folder, and where.
USES: list[tuple[Callable[[Path], object], str, str]] = [
    (evaluate_afresh, "predictions", "folder"),
    (evaluate_afresh, "predictions/step-00000002-val-centre.safetensors", "file"),
    (evaluate_afresh, "evaluation.json", "file"),
    (evaluate_afresh, "wandb", "folder"),
    (evaluate_afresh, "tensorboard", "folder"),
    (evaluate_afresh, ".wandb.json.pending", "new"),
    (evaluate, "predictions/.lock", "file"),
    (export, "export", "folder"),
    (export, "export/plain.py", "file"),
    (figure, "figures", "folder"),
    (figure, "figures/.figure3.png.pending", "new"),
    (figure_of_a_checkpoint, "figures", "folder"),
    (open_network, "mean_image.npy", "file"),
    (resume, ".lock", "file"),
    (resume, "checkpoints", "folder"),
    (resume, "checkpoints/pending-00000003", "folder"),
    (resume, ".energy.json.pending", "new"),
    (begin, "metrics.jsonl", "file"),
    (begin, "checkpoints", "folder"),
    (begin, ".lock", "new"),
    (find_in, "checkpoints", "folder"),
    (go_on_from, ".lock", "file"),
    (evaluate_an_earlier_one, "predictions", "folder"),
    (look_at_weights, "checkpoints", "folder"),
    (go_on_elsewhere, "checkpoints/step-00000002/tower0.safetensors", "file"),
    (note, ".kept_elsewhere.json.pending", "new"),
]


@pytest.mark.parametrize(("use", "place", "target"), USES)
def test_no_command_goes_through_a_link(
    run: Path, victim: Path, use: Callable[[Path], object], place: str, target: str
) -> None:
    path = run / place
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(victim / target)
    before = contents(victim)
    with pytest.raises(ValueError, match=f"/theirs-0/{place} {OUT}.*/theirs-0, to .*/victim/{target}, and") as told:
        use(run)
    assert "\n" not in str(told.value)
    assert contents(victim) == before
    assert not list((victim / "folder").iterdir())
    assert path.is_symlink(), "it is the person who decides what becomes of it"


def test_a_whole_run_may_be_moved_and_linked_to(run: Path, tmp_path: Path) -> None:
    run.rename(tmp_path / "disk")
    run.symlink_to(tmp_path / "disk")
    evaluate_afresh(run)
    export(run)
    assert (tmp_path / "disk" / "export" / "plain.py").exists()


def test_a_report_shows_no_file_from_elsewhere(run: Path, victim: Path) -> None:
    """Nor does it write anywhere else than into its folder."""
    (run / "figures" / "figure4.png").unlink()
    (run / "figures" / "figure4.png").symlink_to(victim / "private.png")
    (victim / "note.json").write_text('{"error": "my password is 1234"}')
    (run.parent / "never-begun").mkdir()
    (run.parent / "never-begun" / "failure.json").symlink_to(victim / "note.json")
    make_report(ReportConfig(folders=[str(run.parent)], output="report"))
    found = contents(Path("report"))
    private = (victim / "private.png").read_bytes()
    assert private not in found.values()
    assert not [name for name, content in found.items() if b"my password" in content]
    assert b"theirs-0/figures/figure4.png " + OUT.encode() in found["table.md"]
    before = contents(victim)
    for place, keep in (("report/curves.png", None), ("report/wandb", None), ("kept/runs", "kept")):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).unlink(missing_ok=True)
        Path(place).symlink_to(victim / "folder")
        with pytest.raises(ValueError, match=f"^{place} {OUT}{Path(place).parent}, to "):
            make_report(ReportConfig(folders=[str(run.parent)], output="report", keep=keep))
        Path(place).unlink()
    assert contents(victim) == before


@pytest.mark.parametrize("place", [".lock", "multirun.yaml", "seed0", ".submitit", ".submitit/7"])
def test_a_sweep_writes_through_no_link(tmp_path: Path, victim: Path, place: str) -> None:
    sweep = Sweep("trial", [Job("seed=0", tmp_path / "trial" / "seed0"), Job("seed=1", tmp_path / "trial" / "seed1")])
    path = tmp_path / "trial" / place
    path.parent.mkdir(parents=True)
    path.symlink_to(victim / ("file" if place.endswith(("lock", "yaml")) else "folder"))
    before = contents(victim)
    with pytest.raises(ValueError, match=f"trial/{place} {OUT}"), sweep.alone():
        raise AssertionError("it began")
    assert contents(victim) == before
    path.unlink()
    (tmp_path / "trial" / "seed1").mkdir()
    (tmp_path / "trial" / "seed1" / "figures").symlink_to(victim)
    with sweep.alone():  # one job of which is refused when its turn comes
        pass


def test_the_index_of_a_folder_goes_through_no_link(made: Subjects, tmp_path: Path, victim: Path) -> None:
    shutil.copytree(made.images, tmp_path / "images", ignore=shutil.ignore_patterns(".twotower"))
    data = DataConfig(kind="folder", root=str(tmp_path / "images"))
    cache = tmp_path / "images" / ".twotower"
    cache.symlink_to(victim / "folder")
    with pytest.raises(ValueError, match=rf"images/\.twotower {OUT}"):
        prepare(data, progress=False)
    cache.unlink()
    cache.mkdir()
    (cache / "mean_image.npy").symlink_to(victim / "file")
    with pytest.raises(ValueError, match=rf"\.twotower/mean_image\.npy {OUT}"):
        prepare(data, progress=False)
    (cache / "mean_image.npy").unlink()
    prepare(data, progress=False)
    assert not list((victim / "folder").iterdir())
    assert (victim / "file").read_text() == "mine"


def test_decoded_pixels_and_shards_go_through_no_link(made: Subjects, tmp_path: Path, victim: Path) -> None:
    shutil.copytree(made.prepared, tmp_path / "set", ignore=shutil.ignore_patterns("decoded"))
    (tmp_path / "set" / "decoded").symlink_to(victim / "folder")
    data = DataConfig(kind="folder", root=str(tmp_path / "set"), size=PREPARED_SIZE)
    with pytest.raises(ValueError, match=f"set/decoded {OUT}"):
        decode_squares(load(data), progress=False)
    (tmp_path / "disk").mkdir()
    (tmp_path / "pixels").symlink_to(tmp_path / "disk")  # which a person names
    decode_squares(load(replace(data, cache=str(tmp_path / "pixels"))), progress=False)
    assert len(list((tmp_path / "disk").iterdir())) == 2
    source = write_tree(tmp_path / "source", tree_files())
    for place in ("work", "train"):
        (tmp_path / "new" / "work").mkdir(parents=True)
        if place == "work":
            (tmp_path / "new" / "work").rmdir()
        (tmp_path / "new" / place).symlink_to(victim / "folder")
        with pytest.raises(ValueError, match=f"new/{place} {OUT}"):
            prepare_here(source, tmp_path / "new", size=64)
        shutil.rmtree(tmp_path / "new")
    assert not list((victim / "folder").iterdir())
