"""Assignment 1: the other tower's half arrives, and its gradient goes back.

    python course/grade.py assignment1.py

A layer that reads both towers computes y = own(x) + other(peer), in each of the two processes at the same time:

    wait = link.post(x, peer_shape)    # given: this tower's half x is on its way
    y = own(x)                         # given: computed meanwhile
    peer = finish(x, wait, link)       # YOURS
    y = y + other(peer)                # given

B images. x is [B, C], the half that this tower has computed. peer is [B, P], the half that the other tower has
computed. C and P may differ: then what you send is not of the shape that you receive.

What a link can do:

    link.tower                  0 or 1, the tower that lives here
    link.post(mine, shape)      sends the tensor `mine`; returns a function that waits for the other tower's tensor
                                and returns it. Call that function, once. `shape` is that of the tensor that comes,
                                not of the one that is sent; left out, it is that of `mine`
    link.swap(mine, shape)      the same, and waits at once: returns the other tower's tensor

Both towers make the same calls in the same order: what one sends in its n-th call, the other one receives in its
n-th. In each pass one tensor is sent, and one is awaited.

Two questions decide about the backward pass. This tower has used peer. Who has to know the gradient of that use?
The other tower has used x. What has to happen to the gradient that it sends you?
"""

import torch


class Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, wait, link):
        """Returns peer [B, P].

        x is not needed to compute peer. It is an argument so that `backward` can return a gradient for it: autograd
        adds that gradient to the one that y = own(x) gives x. Keep in ctx what `backward` will need, as in
        ctx.link = link.
        """
        raise NotImplementedError("write Finish.forward")

    @staticmethod
    def backward(ctx, grad_peer):
        """Returns a gradient for each argument of `forward`: one of x's shape [B, C] for x, None for wait and link.

        grad_peer [B, P]: how the loss of THIS tower changes with peer.
        """
        raise NotImplementedError("write Finish.backward")


def finish(x, wait, link):
    return Finish.apply(x, wait, link)
