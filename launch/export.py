"""A run's network in one file that others can load, or the check of such a file.

python launch/export.py RUN to=merged|onnx|html [checkpoint=120] [output=DIR] [force=true]
python launch/export.py verify=FILE.safetensors
"""

from pathlib import Path

from twotower.command_line.arguments import name_paths, quote_paths
from twotower.command_line.command import command
from twotower.config import ExportConfig
from twotower.ground.screen import show
from twotower.ground.wording import counted
from twotower.weights.export import export_run
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
    return quote_paths(name_paths(arguments, ExportConfig, single="run"), ("run", "verify", "checkpoint", "output"))


@command("export", to_overrides=to_overrides)
def main(settings: ExportConfig) -> None:
    if (settings.run is None) == (settings.verify is None):
        raise ValueError("give either a run or verify=FILE: python launch/export.py RUN to=merged")
    if settings.verify is not None:
        _show(Path(settings.verify), verify(Path(settings.verify)))
        return
    files = export_run(settings)
    if settings.to == "merged":
        _show(files[0], verify(files[0]))
    show(f"written: {', '.join(str(file) for file in files)}")


if __name__ == "__main__":
    main()
