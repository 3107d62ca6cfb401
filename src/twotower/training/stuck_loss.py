"""A loss that does not move: noticed, named, and explained with what helps."""

import math

from twotower.ground.wording import counted


class StuckLoss:
    """Notices a loss that has never left ln(classes), where a network says the same for every image.

    Known from many reproductions: at 1000 classes the loss stays at 6.9 for tens of thousands of steps, without any
    error message, and most often for want of spread in the initial weights or because the rate is too high.
    """

    MARGIN = 0.01  # nats around ln(classes): below, a network has learned something; above, it moves in its own way

    def __init__(self, num_classes: int, after_steps: int) -> None:
        self.num_classes, self.after_steps = num_classes, after_steps
        self.is_watching = True

    def look(self, step: int, loss: float) -> str | None:
        """Takes note of the mean loss of the last steps; once, an explanation if it is stuck."""
        if not self.is_watching:
            return None
        guessing = math.log(self.num_classes)
        if loss < (1 - self.MARGIN) * guessing:
            self.is_watching = False
        elif step >= self.after_steps and loss < (1 + self.MARGIN) * guessing:
            self.is_watching = False
            return (
                f"notice: after {counted(step, 'step')} the loss is still {loss:.3f}, and ln({self.num_classes}) = "
                f"{guessing:.3f} is what a network has that says the same for every image. What "
                "helps: a tenth of optim.learning_rate; network=alexnet_2012, whose conv3-5 start with a wider "
                "spread; another seed. Or patience: some runs leave it after a few hundred steps."
            )
        return None
