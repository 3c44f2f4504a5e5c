"""Losses of fitting against the values of the public programs, scipy, and their own definitions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from transfer.losses import LOSSES, ResponseLoss, TrialCounts, correlations, create_loss

TEN_MICE = {"A": TrialCounts(740, 350), "F": TrialCounts(711, 348), "G": TrialCounts(682, 329)}


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as values:
        return {key: torch.from_numpy(values[key]) for key in values.files}


def close(found: Tensor, expected: float | Tensor, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), rtol=rtol, atol=1e-6)


@pytest.fixture
def video(shared: Path) -> Path:
    return shared / "reference" / "values" / "video"


@pytest.fixture
def static(shared: Path) -> Path:
    return shared / "reference" / "values" / "static"


def test_poisson_is_that_of_neuralpredictors_and_dynamic_vfm(video):
    values = arrays(video / "metrics" / "poisson.npz")
    known = json.loads((video / "metrics" / "reference.json").read_text())["poisson"]
    output, target = values["output"], values["target"]
    close(create_loss("poisson")(output, target), known["neuralpredictors PoissonLoss sum"])
    close(create_loss("poisson_full")(output, target), known["full_loss sum"])
    close(create_loss("dynamic_vfm")(output, target), known["Dynamic-VFM possion (eps 1e-8 on both)"])
    close(create_loss("poisson", reduction="mean")(output, target), known["mean"])
    last = create_loss("poisson")(output[:, -5:], target[:, -5:])
    close(last, known["PoissonLoss3d sum (output last 5 of 9 frames)"])


def test_viv1t_in_both_versions(video):
    values = arrays(video / "viv1t_competition" / "criterion_io.npz")
    predicted, responses = values["y_pred"], values["y_true"]
    first = json.loads((video / "viv1t_competition" / "reference.json").read_text())["criterions(dataset size A=350)"]
    later = json.loads((video / "viv1t_closed_loop" / "reference.json").read_text())
    later = later["criterions(sizes A350 F348 G329, mouse A)"]
    loss = create_loss("viv1t", TEN_MICE)
    close(loss(predicted, responses), first["poisson_correlation_dsscale0_batch3"])
    scaled = loss(predicted, responses) * loss.factor("A", 3)
    close(scaled, first["poisson_correlation_dsscale1_batch3"])
    alone = create_loss("viv1t", TEN_MICE, correlation_weight=0)
    close(alone(predicted, responses) * alone.factor("A", 3), first["poisson_dsscale1_batch3"])
    close(create_loss("log_mse")(predicted, responses), first["logMSE_dsscale0_batch3"])
    close(create_loss("mse")(predicted, responses), first["mse_dsscale0_batch3"])
    # Theirs is minus the sum of 1 + corr; ours, as V1T's, the sum of 1 - corr.
    close(create_loss("correlation")(predicted, responses) - 2 * 5, first["correlation_dsscale0_batch3"])
    balanced = create_loss("viv1t_closed_loop", TEN_MICE)
    # The program divides by the batch of all animals after the criterion.
    close(balanced(predicted, responses) * balanced.factor("A", 3, 3) * 9, later["poisson_dsscale1"])
    gamma = create_loss("exponential", reduction="sum")
    close(gamma(predicted, responses), later["gamma_dsscale0"], rtol=1e-5)


def test_v1t(static):
    values = arrays(static / "metrics" / "v1t.npz")
    predicted, responses = values["in/y_pred"], values["in/y_true"]
    trials = {"S0": TrialCounts(6000, 4490)}
    for name, key in (("v1t", "poisson"), ("squared_error", "msse"), ("correlation", "correlation")):
        loss = create_loss(name, trials, scale="train_trials")
        close(loss(predicted, responses) * loss.factor("S0", 8), values[f"out/criterion_{key}_scaled"])
    loss = create_loss("v1t", trials)
    close(loss(predicted, responses) * loss.factor("S0", 16), values["out/criterion_poisson_scaled_batch16"])


def test_neuralpredictors(static):
    values = arrays(static / "misc" / "losses.npz")
    output, target, variance = (values[f"in/{name}"] for name in ("output", "target", "variance"))
    for full, name in enumerate(("poisson", "poisson_full")):
        close(create_loss(name)(output, target), values[f"out/poisson_full{full}_avg0_perneuron0"])
        close(create_loss(name, reduction="mean")(output, target), values[f"out/poisson_full{full}_avg1_perneuron0"])
    close(create_loss("exponential")(output, target), values["out/exponential"])
    close(create_loss("anscombe")(output, target), values["out/anscombe_mse"])
    close(create_loss("gaussian")(torch.stack((output, variance)), target), values["out/gaussian_sum"])
    close(create_loss("gamma")(torch.stack((output + 0.5, variance)), target), values["out/gamma_sum"])
    close(correlations(output, target), values["out/corr_module"][0])
    close(-correlations(output, target).mean(), values["out/avg_corr_module"])


def test_the_sensorium_trainers_scale():
    loss = create_loss("sensorium", {"29515-10-12": TrialCounts(711, 348)})
    assert loss.factor("29515-10-12", 8) == pytest.approx(math.sqrt(711 / 8))
    assert loss.regularized


def test_distributions_are_scipys():
    random = np.random.default_rng(0)
    first, second, responses = random.uniform(0.2, 3, (3, 4, 5, 6))
    parameters = torch.from_numpy(np.stack((first, second))).float()
    expected = -stats.gamma.logpdf(responses, first, scale=1 / second).sum()
    close(create_loss("gamma")(parameters, torch.from_numpy(responses)), expected, rtol=1e-5)
    expected = -stats.norm.logpdf(responses, first, np.sqrt(second)).sum()
    close(create_loss("gaussian")(parameters, torch.from_numpy(responses)), expected, rtol=1e-5)
    expected = -stats.expon.logpdf(responses, scale=first).mean()
    close(create_loss("exponential")(parameters[0], torch.from_numpy(responses)), expected, rtol=1e-5)
    counts = random.integers(30, 90, (4, 5, 6))
    rate = 40 + 20 * first
    full = create_loss("poisson_full")(torch.from_numpy(rate), torch.from_numpy(counts))
    # Stirling's approximation is off by 1 / (12 y) per value.
    close(full, -stats.poisson.logpmf(counts, rate).sum(), rtol=2e-3)


def made(name: str, **changes) -> ResponseLoss:
    return create_loss(name, TEN_MICE, **changes)


def predictions(name: str, shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parameters = (2, *shape) if name in ("gaussian", "gamma") else shape
    return tuple(0.1 + 2 * torch.rand(each, generator=generator) for each in (parameters, shape))


@pytest.mark.parametrize("name", LOSSES)
def test_padding_does_not_count_and_may_be_missing(name):
    """A trial of 6 frames and one of 4, padded to 6, are what they are one by one where nothing is correlated."""
    loss = made(name)
    predicted, responses = predictions(name, (2, 3, 6))
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 4:] = False
    missing = responses.clone()
    missing[1, :, 4:] = float("nan")
    predicted.requires_grad_(True)
    found = loss(predicted, missing, valid)
    (gradient,) = torch.autograd.grad(found, predicted)
    assert gradient.isfinite().all()
    assert gradient[..., 1, :, 4:].abs().max() == 0
    if loss.correlation_weight:
        flat = [torch.cat((x[0], x[1, :, :4]), 1) for x in (predicted.detach(), responses)]
        close(loss(*(x[None] for x in flat)), found)
    else:
        alone = [loss(predicted[..., i : i + 1, :, :n], responses[i : i + 1, :, :n]) for i, n in ((0, 6), (1, 4))]
        weights = (0.6, 0.4) if loss.reduction == "mean" else (1, 1)
        close(weights[0] * alone[0] + weights[1] * alone[1], found.detach())


@settings(deadline=None, max_examples=30)
@given(name=st.sampled_from(sorted(LOSSES)), trials=st.integers(1, 5), cut=st.integers(0, 5), frames=st.integers(0, 4))
def test_micro_batches_add_up(name, trials, cut, frames):
    """Where nothing is correlated over trials, the losses of parts of a batch are those of the batch."""
    loss = made(name)
    if loss.correlation_weight and name == "correlation":
        return
    loss = made(name, correlation_weight=0.0)
    shape = (trials, 3, frames) if frames else (trials, 3)
    predicted, responses = predictions(name, shape, trials)
    whole = loss(predicted, responses)
    axis = predicted.ndim - len(shape)
    parts = [rows for rows in (slice(0, min(cut, trials)), slice(min(cut, trials), trials)) if rows.stop > rows.start]
    values = [
        loss(predicted[(slice(None),) * axis + (rows,)], responses[rows], share=(rows.stop - rows.start) / trials)
        for rows in parts
    ]
    close(torch.stack(values).sum(), whole, rtol=1e-5)


def test_weights_of_samples_multiply_their_losses():
    """DwiseNeuro: sum over samples of the weight's share in the batch times the sample's summed loss."""
    loss = create_loss("dwiseneuro")
    predicted, responses = predictions("poisson", (4, 3, 5))
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0])
    each = torch.nn.PoissonNLLLoss(log_input=False, full=False, reduction="none")(predicted, responses).sum((1, 2))
    close(loss(predicted, responses, weights=weights), (weights * each).sum())


def test_correlations_are_numpys_and_constants_have_none():
    predicted, responses = predictions("poisson", (7, 3, 5))
    predicted[:, 2] = 1.5
    predicted.requires_grad_(True)
    found = correlations(predicted, responses)
    for neuron in (0, 1):
        pair = (x[:, neuron].detach().flatten().numpy() for x in (predicted, responses))
        assert found[neuron].item() == pytest.approx(np.corrcoef(*pair)[0, 1], abs=1e-6)
    assert found[2] == 0
    (gradient,) = torch.autograd.grad(found.sum(), predicted)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "poison"}, "there is no loss 'poison'; nearest: poisson"),
        ({"name": "viv1t"}, "scaled by train_trials, so it needs the number of trials"),
        ({"name": "mse", "eps": 1}, "loss=mse has no argument 'eps'; those that it has: scale"),
        ({"name": "mse", "scale": "all"}, "scale 'all'"),
        ({"name": "dwiseneuro", "correlation_weight": 1.0}, "loss=dwiseneuro weighs samples"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        create_loss(**arguments)
    assert "\n" not in str(caught.value)
