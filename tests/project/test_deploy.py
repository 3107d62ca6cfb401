"""deploy/: each file parses, asks for what its scheduler knows, and calls the one training line, which composes.

The tools' own schemas are asked where they are installed: kubeflow-trainer-api takes few megabytes, and skypilot with
what it needs 460, so neither is a dependency of the tests.
"""

import copy
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.command_checks import check_torchrun, within_hydra
from helpers.paths import ROOT

DEPLOY = ROOT / "deploy"
TRAINING = 'launch/two_gpu.py data=folder data.root="$DATA" run_dir="$RUN" resume=auto'
# What each scheduler fills in, as on two nodes of two GPUs.
VALUES = {
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_JOB_ID": "7",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "2",
    "SKYPILOT_TASK_ID": "7",
    "PET_MASTER_ADDR": "twotower-node-0-0.twotower",
    "PET_MASTER_PORT": "29400",
    "first": "node0",
    "DATA": "DIR",
    "RUN": "run",
}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def read_sbatch() -> str:
    return (DEPLOY / "train.sbatch").read_text()


def read_script(name: str) -> str:
    """What the scheduler runs on each node."""
    if name == "train.sbatch":
        return read_sbatch()
    if name == "skypilot.yaml":
        return str(read(name)["run"])
    trainer = read(name)["spec"]["trainer"]
    assert trainer["command"] == ["bash", "-c"]
    (script,) = trainer["args"]
    return str(script)


SCRIPTS = ("train.sbatch", "trainjob.yaml", "skypilot.yaml")


def test_every_file_is_checked() -> None:
    """Here, and the audit in test_audit_offline."""
    assert {path.name for path in DEPLOY.iterdir() if path.is_file()} == {"Dockerfile", "audit_offline.py", *SCRIPTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_training_line_is_the_same_and_composes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = read_script(name)
    assert TRAINING in script
    bash = shutil.which("bash")
    assert bash is not None
    checked = subprocess.run([bash, "-n"], input=script, text=True, capture_output=True, timeout=20, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    joined = script.replace("\\\n", " ")
    (line,) = [line for line in joined.splitlines() if "launch/two_gpu.py" in line and not line.startswith("#")]
    command = re.sub(r"\$\{?(\w+)\}?", lambda match: VALUES[match[1]], line.replace('"$@"', "").replace('"', ""))
    words = command[command.index("torchrun") :].split()[1:]
    # Kubeflow gives the numbers of nodes and processes as variables that torchrun reads.
    if name == "trainjob.yaml":
        trainer = read(name)["spec"]["trainer"]
        words = [f"--nnodes={trainer['numNodes']}", f"--nproc-per-node={trainer['numProcPerNode']}", *words]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    with within_hydra():
        check_torchrun(words, True, monkeypatch)
        with pytest.raises(AssertionError, match="c10d"):
            check_torchrun([word for word in words if "rdzv-backend" not in word], True, monkeypatch)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_lost_node_may_come_back(name: str) -> None:
    """torch's shared store would keep a new node waiting for ever: docs/clusters.md."""
    script = read_script(name) + (DEPLOY / "Dockerfile").read_text() * (name == "trainjob.yaml")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in script
    assert "--max-restarts=" in script


def test_slurm_starts_one_torchrun_a_node() -> None:
    options = dict(re.findall(r"(?m)^#SBATCH --([\w-]+)(?:=(\S+))?$", read_sbatch()))
    assert options["ntasks-per-node"] == "1"
    assert int(options["nodes"]) > 1
    assert int(options["gpus-per-node"]) % 2 == 0
    assert {"requeue", "time", "mem", "cpus-per-task"} <= options.keys()


def test_kubernetes_gives_each_process_a_gpu() -> None:
    job = read("trainjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"] == 2


def test_skypilot_has_gpus_and_images() -> None:
    task = read("skypilot.yaml")
    assert re.fullmatch(r"\w+:2", task["resources"]["accelerators"])
    assert task["num_nodes"] > 1
    assert {"DATA", "RUN"} <= task["envs"].keys()
    assert task["setup"] == "make install"


# The tools' own schemas


def describe_difference(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """The places at which two nested values differ; a key that one of them lacks is a difference."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = sorted(ours.keys() | theirs.keys())
        return [one for key in keys for one in describe_difference(ours.get(key), theirs.get(key), f"{place}.{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [one for number, pair in pairs for one in describe_difference(*pair, f"{place}[{number}]")]
    return [] if ours == theirs else [place]


def test_kubeflow_takes_the_job() -> None:
    """Its models refuse what has another type, and drop keys that they do not know."""
    reason = "kubeflow-trainer-api is not installed: pip install kubeflow-trainer-api"
    models = pytest.importorskip("kubeflow_trainer_api.models", reason=reason)
    job = read("trainjob.yaml")
    assert describe_difference(job, models.TrainerV1alpha1TrainJob.from_dict(job).to_dict()) == []
    wrong = copy.deepcopy(job)
    wrong["spec"]["trainer"]["numNode"] = 2
    assert describe_difference(wrong, models.TrainerV1alpha1TrainJob.from_dict(wrong).to_dict()) == [
        ".spec.trainer.numNode"
    ]
    wrong = copy.deepcopy(job)
    wrong["spec"]["trainer"]["numNodes"] = "two"
    with pytest.raises(ValueError, match="numNodes"):
        models.TrainerV1alpha1TrainJob.from_dict(wrong)


SKY = """
import sys
import sky
for path in sys.argv[1:]:
    try:
        task = sky.Task.from_yaml(path)
        print(task.name, task.num_nodes, [resources.accelerators for resources in task.resources])
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


def test_skypilot_takes_the_task(tmp_path: Path) -> None:
    """In a process and a home of its own, as it writes there when it is imported."""
    if importlib.util.find_spec("sky") is None:
        pytest.skip("skypilot is not installed: pip install skypilot")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((DEPLOY / "skypilot.yaml").read_text().replace("num_nodes:", "num_node:"))
    done = subprocess.run(
        [sys.executable, "-c", SKY, str(DEPLOY / "skypilot.yaml"), str(wrong)],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    right, refused = done.stdout.splitlines()[-2:]
    assert right == "twotower 2 [{'A100': 2}]", done.stdout + done.stderr
    assert "num_node" in refused


def test_the_image_is_made_by_make() -> None:
    """Each instruction is known, and what it copies and calls is there."""
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / "Dockerfile").read_text()).replace("\\\n", " ")
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    assert {word for word, _ in instructions} <= {"FROM", "ARG", "RUN", "USER", "WORKDIR", "COPY", "ENV", "CMD"}
    by_word = dict(instructions)
    assert instructions[0][0] == "FROM"
    assert by_word["USER"] == "1000", "training needs no root"
    assert 'make .venv/installed-dev TORCH="$TORCH"' in by_word["RUN"]
    assert "$(VENV)/installed-dev:" in (ROOT / "Makefile").read_text()
    kept = (ROOT / ".dockerignore").read_text().split()
    for needed in (
        "tests",
        "conf",
        "docs",
        "src",
        "launch",
        "course",
        "deploy",
        "Makefile",
        "pyproject.toml",
        ".github",
    ):
        assert needed not in kept, "make quick reads it"
