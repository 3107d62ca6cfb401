"""A right solution of assignment 1."""

import torch


class Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, wait, link):
        ctx.link, ctx.shape = link, x.shape
        return wait()

    @staticmethod
    def backward(ctx, grad_peer):
        return ctx.link.swap(grad_peer, ctx.shape), None, None


def finish(x, wait, link):
    return Finish.apply(x, wait, link)
