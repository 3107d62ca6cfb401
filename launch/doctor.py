"""Looks at this machine and tries everything on it once: one page to read, or to paste into a bug report.

python launch/doctor.py [machine.device=cpu] [output=doctor.md]
"""

from pathlib import Path

from twotower.command_line.command import command
from twotower.config import DoctorConfig
from twotower.doctor.images import examine_images
from twotower.doctor.machine import examine_builds, examine_gpus, examine_machine
from twotower.doctor.towers import check_settings, examine_towers
from twotower.ground.files import write_text
from twotower.ground.gpu_check import explain_unseen
from twotower.ground.scratch import scratch_folder


def check_output(output: str | None) -> None:
    """Raises: ValueError for a page that could not be written in the end."""
    if output is not None and Path(output).is_dir():
        raise ValueError(f"output={output} is a folder; name a file, as output={Path(output) / 'doctor.md'}.")
    if output is not None and not Path(output).parent.is_dir():
        raise ValueError(f"output={output}: there is no folder {Path(output).parent}; make it, or name another one.")


@command("doctor")
def main(settings: DoctorConfig) -> None:
    lines: list[str] = []
    num_problems, has_unseen_gpu = 0, explain_unseen() is not None

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    check_settings(settings)
    check_output(settings.output)
    say("# What twotower's doctor found")
    with scratch_folder() as scratch:
        sections = {
            "Machine": examine_machine(Path.cwd()),
            "Builds": examine_builds(),
            "GPUs": examine_gpus(),
            "Input": examine_images(settings, scratch),
            "Towers": examine_towers(settings, scratch),
        }
        for heading, findings in sections.items():
            say(f"\n## {heading}\n")
            if heading == "Towers" and has_unseen_gpu and settings.machine.device == "auto":
                say("- not tried, because of the GPUs above; machine.device=cpu tries them on the CPU")
                break
            for finding in findings:
                say(finding.render())
                num_problems += not finding.is_ok
    say("\nAll is well." if not num_problems else f"\n{num_problems} to look at: the lines in bold say what to do.")
    if settings.output is not None:
        write_text(Path(settings.output), "\n".join(lines) + "\n")
        print(f"written to {settings.output}")
    if num_problems:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
