"""A run's network, or those of all runs of a sweep, in files that others can load; or the check of such a file.

python launch/export.py RUN to=merged|huggingface|onnx|html [checkpoint=120|all] [output=DIR] [force=true]
python launch/export.py SWEEP checkpoint=all
python launch/export.py verify=FILE.safetensors
"""

from dataclasses import replace
from pathlib import Path

from twotower.command_line.arguments import name_paths, quote_paths
from twotower.command_line.command import command, describe_error
from twotower.config import ExportConfig, check_bounds
from twotower.evaluation.measured import Measurer
from twotower.ground.screen import show
from twotower.ground.wording import counted, on_one_line
from twotower.runs.folders import list_folders
from twotower.weights.export import export_run
from twotower.weights.hub import check_whole, locate
from twotower.weights.proof import check_file
from twotower.weights.verify import Verified, verify


def _show(path: Path, checked: Verified) -> None:
    network = checked.network
    show(
        f"{path}: {network.name}, width {network.width:g}, {checked.num_parameters:,} parameters, "
        f"{counted(len(checked.classes), 'class', 'classes')} ({checked.classes[0]} ... {checked.classes[-1]}), "
        f"step {checked.step}"
    )
    if checked.errors:
        show(
            f"validation: top-1 error {checked.errors['top1_error']:.2f} %, top-5 error "
            f"{checked.errors['top5_error']:.2f} %, loss {checked.errors['loss']:.4f}"
        )
    else:
        show("warning: no epoch was finished, so there is no validation error")
    show(f"names, shapes and SHA-256 are as written ({checked.sha256[:16]}...)")
    show(f"known answer: the logits differ by {checked.deviation:.1g} of the largest")
    if checked.untrained:
        show(f"warning: {', '.join(checked.untrained)} look untrained: weights and biases are as they were drawn")


def to_overrides(arguments: list[str]) -> list[str]:
    """A folder without a key is `run`. Raises: ValueError."""
    return quote_paths(
        name_paths(arguments, ExportConfig, single="run"), ("run", "verify", "checkpoint", "output", "data_root")
    )


@command("export", to_overrides=to_overrides)
def main(settings: ExportConfig) -> None:
    if (settings.run is None) == (settings.verify is None):
        raise ValueError("give either a run or verify=FILE: python launch/export.py RUN to=merged")
    if settings.verify is not None:
        file = locate(settings.verify)
        if file.is_dir() or file.suffix != ".safetensors":
            kind = "a folder" if file.is_dir() else f"a {file.suffix or 'file without a suffix'}"
            raise ValueError(
                f"{file} is {kind}; verify= takes a .safetensors that launch/export.py has written, or the folder of "
                "to=huggingface."
            )
        check_whole(file)
        check_file(file, settings.force)  # its sentences say what is wrong, those of `verify` that the answer is
        _show(file, verify(file))
        show("each layer of each tower computes what it did when the file was written")
        return
    check_bounds(settings)
    folder = Path(str(settings.run))
    jobs = [] if (folder / "config.yaml").exists() else list_folders(folder)
    if jobs:
        _export_each(settings, folder, jobs)
    else:
        _export(settings)


def _export_each(settings: ExportConfig, sweep: Path, jobs: list[Path]) -> None:
    """Each run into a folder of its own: RUN/export as ever, or one of the run's name below `output`.

    Raises: ValueError at the end, if some could not be exported.
    """
    failed = []
    for number, job in enumerate(jobs, 1):
        name = str(job.relative_to(sweep))
        if not (job / "config.yaml").exists():
            show(f"left out: {name}, where no training has begun")
            continue
        show(f"run {number} of {len(jobs)}: {name}")
        output = None if settings.output is None else str(Path(settings.output) / name)
        try:
            _export(replace(settings, run=str(job), output=output))
        except ValueError as error:  # of a damaged run, say, which leaves the others theirs
            show(f"error: {describe_error(error)}")
            failed.append(name)
    if failed:
        raise ValueError(f"{len(failed)} of {counted(len(jobs), 'run')} could not be exported: {', '.join(failed)}")


def _export(settings: ExportConfig) -> None:
    measurer = Measurer(settings)
    if measurer.dataset is None and settings.measure == "auto":
        shown = "the page has no errors" if settings.to == "html" else "errors are those of the run's last validation"
        show(f"{shown}, because none were measured: {measurer.reason}")
    files = export_run(settings, measurer)
    for file in files:
        if file.suffix == ".safetensors":
            _show(file, verify(file))
            try:
                check_file(file)
            except ValueError as error:  # as of the first checkpoints of a trajectory
                show(f"warning: it will be refused when it is loaded: {on_one_line(str(error), 300)}")
    show(f"written: {', '.join(str(file) for file in files)}")


if __name__ == "__main__":
    main()
