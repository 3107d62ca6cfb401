"""Assignment 4: what the towers draw alike, and what each draws for itself.

    python course/grade.py assignment4.py

Two processes draw random numbers. Some must be the same in both, or the towers are not one network; others must
differ, or one tower is a copy of the other. None of this shows as an error: the loss falls either way.

Before each draw a generator is seeded with stream(what, seed, tower, step), where `what` is

    "images"    which images a step takes, and how they are cropped: both towers look at the same images
    "weights"   the initial weights of a tower's layers, drawn once, at step 0
    "dropout"   the mask of the units of THIS tower in a step. The mask is applied before the half crosses, so the
                other tower receives units that are already dropped, and draws nothing for them

seed is from 0 to 999, tower is 0 or 1, step is from 0 to 999,999.

A run with another `seed` must draw everything anew. Dropout must not take the numbers that drew the weights.
"""


def stream(what, seed, tower, step):
    """Returns an integer, 0 or greater, less than 2**63. Different integers are different streams of numbers."""
    raise NotImplementedError("write stream")
