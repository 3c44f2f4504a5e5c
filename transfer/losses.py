"""Losses of fitting by name: how far predictions are from the responses of one animal, in each project's scaling.

What comes in: predictions and responses (batch, neurons) of images or (batch, neurons, frames) of video, with
`valid` (batch, frames), which is False at padding; for losses of a distribution, predictions (2, batch, neurons[,
frames]). What goes out: a number in full precision, summed over neurons and frames, or their mean.

Learning rates are only meaningful together with the loss's scale, of which there are five:

| scale | factor, for an animal with a batch of b trials | of |
|---|---|---|
| `none` | 1 | Dynamic-VFM |
| `all_trials` | sqrt(all trials of the recording / b) | Sensorium 2022 and 2023 |
| `train_trials` | sqrt(training trials / b) | V1T, ViV1T |
| `balanced` | T / (t n) / (batch of all n animals); t, T: training trials of the animal, of all | ViV1T closed loop |
| `samples` | each sample has its weight as a share of the whole batch's | DwiseNeuro |

Sources: neuralpredictors' `measures/modules.py`, and the programs of Sensorium's entries (lRomul/sensorium,
bryanlimy/V1T, ViV1T and ViV1T-closed-loop, zhuyu-cs/Dynamic-VFM).
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

NONE, ALL_TRIALS, TRAIN_TRIALS, BALANCED, SAMPLES = SCALES = (
    "none", "all_trials", "train_trials", "balanced", "samples",
)  # fmt: skip
FLOAT32_EPS = torch.finfo(torch.float32).eps
# Variances below have no gradient, as those of constant predictions, whose root would have an infinite one.
SMALLEST_VARIANCE = 1e-30


def poisson(predicted: Tensor, responses: Tensor, eps: float = 1e-8) -> Tensor:
    """Negative log-likelihood of Poisson counts without their constant: p - y log(p + eps)."""
    return predicted - responses * torch.log(predicted + eps)


def poisson_shifted(predicted: Tensor, responses: Tensor, eps: float = FLOAT32_EPS) -> Tensor:
    """`poisson` of predictions and responses that are both shifted by eps: p' - y' log p'."""
    predicted, responses = predicted + eps, responses + eps
    return predicted - responses * predicted.log()


def poisson_full(predicted: Tensor, responses: Tensor, eps: float = 1e-8) -> Tensor:
    """`poisson`, with Stirling's approximation of log y!, y log y - y + log(2 pi y) / 2, where y > 1."""
    above = responses.clamp(min=1)
    constant = above * above.log() - above + 0.5 * torch.log(2 * math.pi * above)
    return poisson(predicted, responses, eps) + torch.where(responses > 1, constant, 0)


def squared_error(predicted: Tensor, responses: Tensor) -> Tensor:
    """(p - y)^2."""
    return (predicted - responses).square()


def log_squared_error(predicted: Tensor, responses: Tensor, eps: float = FLOAT32_EPS) -> Tensor:
    """(log(p + eps) - log(y + eps))^2, of ViV1T."""
    return (torch.log(predicted + eps) - torch.log(responses + eps)).square()


def anscombe_error(predicted: Tensor, responses: Tensor) -> Tensor:
    """(A(p) - 1 / (4 sqrt p) - A(y))^2, with Anscombe's A(x) = 2 sqrt(x + 3/8), which makes Poisson counts normal."""
    transformed = 2 * torch.sqrt(predicted + 3 / 8) - 1 / (4 * torch.sqrt(predicted))
    return (transformed - 2 * torch.sqrt(responses + 3 / 8)).square()


def exponential(predicted: Tensor, responses: Tensor, eps: float = 1e-12, response_eps: float = 1e-6) -> Tensor:
    """Negative log-likelihood of exponential responses with the mean p: y' / p' + log p'. ViV1T's "gamma" is this."""
    predicted = predicted + eps
    return (responses + response_eps) / predicted + predicted.log()


def gaussian(parameters: Tensor, responses: Tensor, eps: float = 1e-10) -> Tensor:
    """Negative log-likelihood of normal responses; parameters are (mean, variance)."""
    mean, variance = parameters
    return 0.5 * ((responses + eps - mean).square() / variance + torch.log(2 * math.pi * variance))


def gamma(parameters: Tensor, responses: Tensor, eps: float = 1e-10) -> Tensor:
    """Negative log-likelihood of gamma responses; parameters are (concentration, rate)."""
    concentration, rate = parameters
    responses = responses + eps
    return (
        torch.lgamma(concentration)
        - concentration * rate.log()
        - torch.xlogy(concentration - 1, responses)
        + (rate * responses)
    )


def no_difference(predicted: Tensor, responses: Tensor) -> Tensor:
    """0, where the correlation is all that counts."""
    return torch.zeros_like(predicted)


def correlations(predicted: Tensor, responses: Tensor, valid: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """Correlation (neurons,) over the valid frames of all trials, as Sensorium has it.

    corr(a, b) = mean((a - mean a) / (std a + eps) (b - mean b) / (std b + eps)), with the population's standard
    deviation, so that a constant trace has 0.
    """
    dims = (0, *range(2, predicted.ndim))
    counts = torch.ones_like(predicted) if valid is None else valid[:, None].expand_as(predicted).to(predicted)
    share = counts / counts.sum(dims, keepdim=True).clamp(min=1)
    predicted, responses = (x - (x * share).sum(dims, keepdim=True) for x in (predicted, responses))
    spreads = [(x.square() * share).sum(dims).clamp(min=SMALLEST_VARIANCE).sqrt() + eps for x in (predicted, responses)]
    return (predicted * responses * share).sum(dims) / (spreads[0] * spreads[1])


@dataclass(frozen=True)
class TrialCounts:
    """How many trials an animal has: in its whole recording, all tiers together, and for training."""

    all: int
    train: int


@dataclass(frozen=True)
class ResponseLoss:
    """A loss of predicted responses.

    Attributes:
        element: loss of each value; predictions of a distribution have its parameters first.
        scale: one of `SCALES`.
        reduction: "sum" or "mean" over trials, neurons and frames; with the scale `samples` each trial's is weighted.
        correlation_weight: times the sum over neurons of 1 - correlation is added; over the trials that are given
            together, so that micro-batches have less to correlate over.
        regularized: whether the encoder's penalties belong to it; some projects have them and do not add them.
        trials: of each animal, for the scales that are made of them.
    """

    element: Callable[[Tensor, Tensor], Tensor]
    scale: str = NONE
    reduction: str = "sum"
    correlation_weight: float = 0.0
    regularized: bool = True
    trials: Mapping[str, TrialCounts] | None = None

    def factor(self, animal: str, batch: int, animals: int = 1) -> float:
        """What the sum over a batch of `batch` trials of one animal, of `animals` in the step, is multiplied by."""
        if self.scale in (NONE, SAMPLES):
            return 1.0
        trials = self.trials[animal]
        if self.scale == BALANCED:
            total = sum(each.train for each in self.trials.values())
            return total / (trials.train * len(self.trials)) / (animals * batch)
        return math.sqrt((trials.all if self.scale == ALL_TRIALS else trials.train) / batch)

    def __call__(
        self,
        predicted: Tensor,
        responses: Tensor,
        valid: Tensor | None = None,
        weights: Tensor | None = None,
        share: float = 1.0,
    ) -> Tensor:
        """The unscaled loss of trials of one animal.

        Args:
            predicted, responses, valid: see this file.
            weights: (batch,), of each trial.
            share: of the animal's trials of the step that these are, by which means and correlations count.
        """
        predicted, responses = predicted.float(), responses.float()
        if valid is not None:
            # What lies in padding may be missing, and 0 times a missing value is missing too.
            responses = responses.masked_fill(~valid[:, None], 0)
        elements = self.element(predicted, responses)
        if valid is not None:
            elements = elements * valid[:, None]
        if weights is not None:
            elements = elements * weights.reshape(-1, *[1] * (elements.ndim - 1))
        loss = elements.sum()
        if self.reduction == "mean":
            counted = elements.numel() if valid is None else valid.sum().clamp(min=1) * elements.shape[1]
            loss = share * loss / counted
        if self.correlation_weight:
            loss = loss + self.correlation_weight * share * (1 - correlations(predicted, responses, valid)).sum()
        return loss


LOSSES: dict[str, ResponseLoss] = {
    "sensorium": ResponseLoss(poisson, ALL_TRIALS),
    "dwiseneuro": ResponseLoss(poisson, SAMPLES, regularized=False),
    "viv1t": ResponseLoss(poisson_shifted, TRAIN_TRIALS, correlation_weight=1000.0, regularized=False),
    "viv1t_closed_loop": ResponseLoss(poisson_shifted, BALANCED, regularized=False),
    "dynamic_vfm": ResponseLoss(partial(poisson_shifted, eps=1e-8)),
    "v1t": ResponseLoss(poisson_shifted, TRAIN_TRIALS),
    "poisson": ResponseLoss(poisson),
    "poisson_full": ResponseLoss(poisson_full),
    "mse": ResponseLoss(squared_error, reduction="mean"),
    "squared_error": ResponseLoss(squared_error),
    "log_mse": ResponseLoss(log_squared_error, reduction="mean"),
    "anscombe": ResponseLoss(anscombe_error, reduction="mean"),
    "exponential": ResponseLoss(exponential, reduction="mean"),
    "correlation": ResponseLoss(no_difference, correlation_weight=1.0),
    "gaussian": ResponseLoss(gaussian),
    "gamma": ResponseLoss(gamma),
}


def create_loss(name: str, trials: Mapping[str, TrialCounts] | None = None, **changes: Any) -> ResponseLoss:
    """A loss by name.

    Args:
        name: of `LOSSES`.
        trials: of each animal; needed by the scales that are made of them.
        changes: `scale`, `reduction`, `correlation_weight` or `regularized` other than the name's.

    Raises:
        ValueError: an unknown name, with the nearest one; an impossible change; trials missing.
    """
    if name not in LOSSES:
        near = difflib.get_close_matches(name, LOSSES, n=1) or list(LOSSES)
        raise ValueError(f"there is no loss {name!r}; nearest: {', '.join(near)}")
    changeable = ("scale", "reduction", "correlation_weight", "regularized")
    if unknown := [key for key in changes if key not in changeable]:
        raise ValueError(f"loss={name} has no argument {unknown[0]!r}; those that it has: {', '.join(changeable)}")
    loss = replace(LOSSES[name], **changes, trials=trials)
    if loss.scale not in SCALES or loss.reduction not in ("sum", "mean"):
        raise ValueError(
            f"loss={name} has scale {loss.scale!r} and reduction {loss.reduction!r}; scales are {', '.join(SCALES)}, "
            "reductions sum and mean"
        )
    if loss.scale == SAMPLES and (loss.reduction == "mean" or loss.correlation_weight):
        raise ValueError(f"loss={name} weighs samples, so it is a sum, without a correlation over samples")
    if loss.scale not in (NONE, SAMPLES) and not trials:
        raise ValueError(f"loss={name} is scaled by {loss.scale}, so it needs the number of trials of each animal")
    return loss
