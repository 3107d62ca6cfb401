"""The crops of whole batches: this process's loader decodes its rows, and the other tower sends the rest."""

import torch
from torch import Tensor

from twotower.data.batch import Share
from twotower.data.loader import Indices, Loader
from twotower.ground.host_copies import send


class SharedDecoding:
    """Completes the crops of a loader with those of the other tower, where the two share the decoding.

    Args:
        share: says which rows of a batch this process decodes, and how it reaches the other tower.
    """

    def __init__(self, loader: Loader, share: Share) -> None:
        self._loader, self._share = loader, share

    def run(self, indices: Indices) -> Tensor:
        """The crops of the next batch, uint8, as `Loader.run` gives them; overwritten by the next call.

        Args:
            indices: those of all rows of the batch.
        """
        share = self._share
        crops = self._loader.run(indices[share.own_rows(len(indices))])
        num_missing = len(indices) - len(crops)
        if share.partner is None or num_missing == 0:
            return crops
        mine = send(crops, share.device)
        theirs = share.partner.swap_images(mine, num_missing)
        return torch.cat((theirs, mine) if share.partner.tower else (mine, theirs))

    def close(self) -> None:
        self._loader.close()
