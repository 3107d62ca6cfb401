"""A right solution of assignment 3."""

import torch


class Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, link, peer_shape, flight):
        ctx.flight = flight
        flight["link"], flight["shape"] = link, x.shape
        flight["forward"] = link.post(x, peer_shape)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx, grad_token):
        return ctx.flight["backward"](), None, None, None


class Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, token, flight):
        ctx.flight = flight
        return flight["forward"]()

    @staticmethod
    def backward(ctx, grad_peer):
        flight = ctx.flight
        flight["backward"] = flight["link"].post(grad_peer, flight["shape"])
        return grad_peer.new_empty(0), None


def start(x, link, peer_shape):
    flight = {}
    return Start.apply(x, link, peer_shape, flight), flight


def finish(token, flight):
    return Finish.apply(token, flight)
