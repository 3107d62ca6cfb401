"""The launcher that runs the jobs of a sweep: here one after the other, or submitted to a cluster."""

import importlib.util
import shutil


def check_launcher(overrides: list[str]) -> None:
    """Raises: ValueError if jobs are to be submitted, and what submits them is not installed here."""
    chosen = [override for override in overrides if override.startswith("hydra/launcher=")]
    launcher = chosen[0].split("=", 1)[1] if chosen else "basic"
    if launcher not in ("slurm", "submitit_slurm", "submitit_local"):
        return
    if importlib.util.find_spec("submitit") is None:
        raise ValueError(f"hydra/launcher={launcher} needs the launcher for it; pip install -e '.[slurm]'.")
    if launcher != "submitit_local" and shutil.which("sbatch") is None:
        raise ValueError(
            f"hydra/launcher={launcher} needs SLURM, and there is no sbatch here; start the sweep on the cluster's "
            "login node, or leave the launcher out to run one job after the other."
        )
