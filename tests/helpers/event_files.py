"""Reads TensorBoard's event files back, with TensorBoard's own reader."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events_of(run_dir: Path) -> EventAccumulator:
    """Reads all event files of a run together, without sampling."""
    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def scalars_of(events: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    """Step and value (float32) of each event by tag, in the order of the file; without tags that were emptied."""
    found = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {tag: rows for tag, rows in found.items() if rows}


def text_of(events: EventAccumulator, tag: str) -> str:
    """The last text of a tag."""
    return str(events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode())


def plugin_data_of(events: EventAccumulator, tag: str) -> Any:
    """The content of a tag for the tab HParams."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData()
    data.ParseFromString(events.SummaryMetadata(tag).plugin_data.content)
    return data
