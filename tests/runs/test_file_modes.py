"""The modes of a run's files after training, evaluation and export: what the umask gives, as SECURITY.md says."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import environment
from helpers.fake_runs import draw_images
from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such modes there")

PROGRAM = """
import os, sys
from pathlib import Path
from helpers.fake_runs import fake_config
from twotower.config import EvaluateConfig, ExportConfig, FigureConfig
from twotower.evaluation.evaluate import evaluate_run
from twotower.figures.draw_figure import draw_figure
from twotower.training.processes import run
from twotower.weights.export import export_run

if __name__ == "__main__":
    for umask in sys.argv[1:]:
        os.umask(int(umask, 8))
        short = ["schedule=fixed", "schedule.epochs=1", "schedule.drop_epochs=[]", "optim.batch_size=4"]
        places = [f"run_dir={umask}/run", f"data.cache={umask}/cache"]
        logging = ["logging.wandb=offline", "logging.tensorboard=true"]
        run(fake_config(Path("images"), *short, *places, *logging, "machine.threads=1"))
        os.environ["WANDB_MODE"] = "disabled"  # from here on, as it takes seconds each time
        evaluate_run(EvaluateConfig(run=f"{umask}/run", crops="ten", device="cpu", batch_size=8))
        for to in ("merged", "huggingface"):
            export_run(ExportConfig(run=f"{umask}/run", force=True, to=to))
        draw_figure(FigureConfig(figure="figure4", run=f"{umask}/run"), print)
        del os.environ["WANDB_MODE"]
"""
# Every kind of file that is looked at, so that none is forgotten.
KINDS = {
    *(".lock", "config.yaml", "energy.json", "evaluation.json", "mean_image.npy", "metrics.jsonl", "summary.json"),
    *("versions.json", "wandb.json", "checkpoints/*/manifest.json", "checkpoints/*/tower0.safetensors"),
    *("predictions/.lock", "predictions/*-ten.safetensors", "features/*.npy", "features/*.json", "figures/*.png"),
    *("figures/*.csv", "figures/*.json", "tensorboard/events.*", "export/*.safetensors"),
    *("export/plain.py", "huggingface/model.safetensors", "huggingface/README.md", "wandb/*/*.wandb"),
}


@pytest.mark.timeout(400)
def test_every_file_has_what_the_umask_gives(tmp_path: Path) -> None:
    """For a group that works together, and for a user alone."""
    draw_images(tmp_path / "images", num_val=1)
    (tmp_path / "program.py").write_text(PROGRAM)  # its processes are started anew, and read it again
    done = subprocess.run(
        [sys.executable, "program.py", "002", "077"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=360,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    wrong = {}
    for umask in ("002", "077"):
        run = tmp_path / umask / "run"
        assert [kind for kind in KINDS if not list(run.glob(kind))] == []
        for path in (tmp_path / umask).rglob("*"):
            mode = stat.S_IMODE(path.lstat().st_mode)
            usual = (0o777 if path.is_dir() else 0o666) & ~int(umask, 8)
            # W&B's own copies of what it is to send, which it makes for the user alone.
            is_staged = path.is_file() and path.parent == run / "wandb" / "staged" / "artifacts" / "staging"
            if not path.is_symlink() and mode != (0o400 if is_staged else usual):
                wrong[str(path.relative_to(tmp_path))] = f"{mode:o}"
    assert wrong == {}
    assert {path.name for path in tmp_path.iterdir()} <= {"002", "077", "images", "program.py", "__pycache__"}
