"""Assignment 2: the logits, the one place where nothing is added.

    python course/grade.py assignment2.py

The last layer gives each tower the logits of its own classes. For the loss, each process needs all of them:

    logits = collect(own, link, num_classes)          # YOURS
    loss = cross_entropy(logits, labels)              # given; each process computes it, with the same labels
    loss.backward()                                   # given

own is [B, K]: this tower's logits. Tower 0 has the first classes, tower 1 the others. With an odd number of classes
tower 0 has one more: of 11 classes tower 0 has 6, tower 1 has 5.

In assignment 1 each tower computed something else from a half, and the gradients of both uses were summed. Here both
processes compute THE SAME loss. The gradient of `own` is wanted: that of this one loss, once.

`link` is as in assignment 1: link.tower, link.post(mine, shape), link.swap(mine, shape). Like torch.distributed,
it sends numbers and knows nothing of autograd.
"""

import torch  # noqa: F401


def collect(own, link, num_classes):
    """Returns the whole logits [B, num_classes], tower 0's first, the same in both processes."""
    raise NotImplementedError("write collect")
