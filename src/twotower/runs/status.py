"""The words for what became of a run or of a sweep's job: in tables on the screen, in reports and in their files."""

from enum import StrEnum


class Status(StrEnum):
    """What became of a run; the value is the word that people read, and that summary.json and runs.csv hold."""

    FINISHED = "finished"
    SKIPPED = "skipped"  # job of a sweep that had finished before the sweep was started again
    UNFINISHED = "unfinished"  # stopped, still training, or not begun
    FAILED = "failed"
    DAMAGED = "damaged"  # its files cannot be read
    NOT_APPLICABLE = "not applicable"  # an ablation of something that the network does not have
