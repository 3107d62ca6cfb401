"""From files to batches: shapes or folder -> prepare -> order -> pipeline -> feed."""

from twotower.data.batch import Batch, Feed, Partner, Share, label_checksum, pixel_checksum
from twotower.data.dataset import DataSet, FileSplit, Split
from twotower.data.feed import open_train, open_validation
from twotower.data.order import check_crops, steps_per_epoch
from twotower.data.prepare import load, prepare

__all__ = [
    "Batch",
    "DataSet",
    "Feed",
    "FileSplit",
    "Partner",
    "Share",
    "Split",
    "check_crops",
    "label_checksum",
    "load",
    "open_train",
    "open_validation",
    "pixel_checksum",
    "prepare",
    "steps_per_epoch",
]
