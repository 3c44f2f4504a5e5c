"""AutoClip: gradients are shortened to a percentile of the lengths that gradients have had so far.

What comes in: the length of each step's gradient over all parameters. What goes out: the longest that it may be, the
percentile of all lengths from the first step to this one. Source: Seetharaman, Wichern, Pardo, Le Roux 2020
(https://arxiv.org/abs/2007.14469, https://github.com/pseeth/autoclip), who have the 10th percentile; so has ViV1T's
closed-loop version.
"""

import math
from bisect import insort
from typing import Any

import torch


class AutoClip:
    """The lengths so far, in ascending order, and the percentile of them that gradients are shortened to.

    Args:
        percentile: from 0 to 100, between lengths as `numpy.percentile` has it.
    """

    def __init__(self, percentile: float = 10.0) -> None:
        if not 0 <= percentile <= 100:
            raise ValueError(f"the percentile of AutoClip is {percentile}; it must be from 0 to 100")
        self.percentile = percentile
        self.lengths: list[float] = []

    def limit(self, length: float) -> float:
        """The longest that a gradient of this length may be; a length that is not finite is not remembered."""
        if math.isfinite(length):
            insort(self.lengths, length)
        if not self.lengths:
            return math.inf
        place = self.percentile / 100 * (len(self.lengths) - 1)
        below = self.lengths[math.floor(place)]
        return below + (self.lengths[math.ceil(place)] - below) * (place - math.floor(place))

    def state(self) -> dict[str, Any]:
        """The lengths, for the checkpoint."""
        return {"lengths": torch.tensor(self.lengths, dtype=torch.float64)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from saved lengths."""
        self.lengths = state["lengths"].tolist()
