"""The normalised, temperature-scaled cross-entropy (NT-Xent): a vector must find its partner among all others.

What comes in: two sets of vectors (batch, d), row by row partners. What goes out: over all 2 * batch vectors, the mean
cross-entropy of the cosine similarities to all others, divided by the temperature, for the partner. Source: Chen,
Kornblith, Norouzi, Hinton 2020 (https://arxiv.org/abs/2002.05709, algorithm 1).

The loss is that of lightly's `NTXentLoss` without a memory bank. There boolean indexing takes the own similarities out,
for which a GPU is waited for in both directions; here they are -inf.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.objectives.processes import gather_with_gradient, process_rank


class NTXent(nn.Module):
    """Compares this process's vectors with those of all processes.

    The mean of the processes' losses is the loss of the whole batch, and since the gradient flows into every process's
    vectors, so is the averaged gradient.

    Args:
        temperature: divides the cosine similarities.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of vectors (batch, d) and their partners (batch, d)."""
        own = F.normalize(torch.cat([first, second]), dim=1)
        everyone = gather_with_gradient(own)
        place = process_rank() * len(own) + torch.arange(len(own), device=own.device)
        partner = torch.cat(place.chunk(2)[::-1])
        logits = own @ everyone.T / self.temperature
        # No vector is compared with itself.
        return F.cross_entropy(logits.scatter_(1, place[:, None], -math.inf), partner)
