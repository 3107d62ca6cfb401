"""Which decoder examines the files of a folder."""

from twotower.config import InputConfig
from twotower.data.choose_loader import choose_loader
from twotower.data.preparing.dali_decoder import Decoder
from twotower.data.preparing.torch_decoder import TorchDecoder


def decoder_class(loader: str) -> type[Decoder] | type[TorchDecoder]:
    """What examines files before the loader meets them. Raises: ValueError for a loader that is not there."""
    return TorchDecoder if choose_loader(InputConfig(loader=loader)) == "torch" else Decoder
