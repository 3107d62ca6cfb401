"""Assignment 3: nothing waits that could compute.

    python course/grade.py assignment3.py

In assignment 1 the backward pass sent a gradient and waited for another one at once. Meanwhile nothing was computed.
Split it in two, so that the gradients travel while own(x) goes backward:

    token, flight = start(x, link, peer_shape)    # YOURS: sends x, does not wait
    y = own(x)                                    # given: computed while the halves cross
    peer = finish(token, flight)                  # YOURS: waits for the half
    y = y + other(peer)                           # given

             forward                          backward, which runs in the opposite order
    start    sends x                          waits for the gradient that the other tower asks of x
    finish   waits for peer                   sends the gradient of peer, and does not wait

Three hints. (1) start's Function has x as its argument, finish's has not: so x gets its gradient from start's
backward. (2) Why does autograd run start's backward, and after that of finish? Because finish has a tensor that start
returned: the token, e.g. x.new_empty(0). It carries no numbers, and its gradient is empty, too; but a backward waits
for the gradients of all that its forward returned. Without the token start's backward would not be called at all.
That finish's backward comes before that of own(x) has another reason: of all nodes that are ready autograd runs the
youngest first, and finish was called after own(x). (3) `flight` is any object of yours, e.g. a dict, in which the one
leaves for the other what it has to wait for.

x is [B, C], peer is [B, P]; C and P may differ. `link` is as in assignment 1.
"""

import torch  # noqa: F401


def start(x, link, peer_shape):
    """Returns (token, flight): a tensor that needs a gradient, and whatever `finish` needs besides."""
    raise NotImplementedError("write start")


def finish(token, flight):
    """Returns peer [B, P]."""
    raise NotImplementedError("write finish")
