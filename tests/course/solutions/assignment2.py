"""A right solution of assignment 2."""

import torch


def collect(own, link, num_classes):
    peer = link.swap(own, (len(own), num_classes - own.shape[1]))
    return torch.cat([own, peer] if link.tower == 0 else [peer, own], dim=1)
