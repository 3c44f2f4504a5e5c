"""Batches in parts: loss, gradient and what is left behind are those of the whole batch where an objective says so."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.accumulate import accumulation_warning, has_batch_statistics, mean_over_parts, split_batch
from pretrain.models import create_model
from pretrain.objectives import OBJECTIVES, create_objective, list_objectives
from pretrain.objectives.objective import Objective

BATCH, SIZE, LOCAL_SIZE, IMAGES, CLASSES = 12, 16, 8, 60, 3
# Small heads, without dropout, which draws anew for each part.
ARGUMENTS: dict[str, dict] = {
    "instance_recognition": {"dim": 8, "negatives": 16},
    "simclr": {"hidden_dim": 16, "dim": 8},
    "simsiam": {"hidden_dim": 16, "dim": 8, "predictor_dim": 4},
    "moco_v2": {"hidden_dim": 16, "dim": 8, "queue_size": 24},
    "barlow_twins": {"hidden_dim": 16, "dim": 8},
    "vicreg": {"hidden_dim": 16, "dim": 8},
    "rotnet": {},
    "relative_location": {"hidden_dim": 16, "dropout": 0.0},
    "autoencoding": {"code_dim": 8},
    "depth_prediction": {"code_dim": 8},
    "supervised": {},
    "linear_readout": {},
    "instance_recognition_queue": {"dim": 8, "queue_size": 24},
    "byol": {"hidden_dim": 16, "dim": 8},
    "dino": {"hidden_dim": 16, "bottleneck_dim": 8, "dim": 12, "local_views": 2, "frozen_epochs": 0},
    "nnclr": {"hidden_dim": 16, "dim": 8, "queue_size": 24},
    "swav": {"hidden_dim": 16, "dim": 8, "prototypes": 6, "local_views": 2, "frozen_epochs": 0, "queue_size": 24},
    "tico": {"hidden_dim": 16, "dim": 8},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
}
# Largest measured: 2.3e-5 with relative location, whose head's small weights leave float32 few digits; others 2.6e-6.
ROUNDING = 5e-5
PER_IMAGE = {
    "instance_recognition", "instance_recognition_queue", "moco_v2", "simsiam", "byol", "dino", "rotnet",
    "relative_location", "autoencoding", "depth_prediction", "supervised", "linear_readout", "mae",
}  # fmt: skip


def build(name: str) -> Objective:
    """The objective, the same at every call, whose batch norms use running statistics."""
    torch.manual_seed(0)
    if name == "mae":
        backbone = timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=SIZE, patch_size=4, depth=1, embed_dim=24, num_heads=2
        )
    else:
        backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 10)
        )
    objective = create_objective(
        name, backbone, num_samples=IMAGES, input_size=SIZE, classes=CLASSES, **ARGUMENTS[name]
    )
    for module in objective.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return objective


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Everything that any objective wants of a batch."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "views": torch.randn(2, BATCH, 3, SIZE, SIZE, generator=generator),
        "local_views": torch.randn(2, BATCH, 3, LOCAL_SIZE, LOCAL_SIZE, generator=generator),
        "patches": torch.randn(9, BATCH, 3, SIZE, SIZE, generator=generator),
        "depth": torch.rand(BATCH, SIZE, SIZE, generator=generator),
        "label": torch.randint(CLASSES, (BATCH,), generator=generator),
        "index": torch.randperm(IMAGES, generator=generator)[:BATCH],
        "epoch": torch.tensor(20.0 + seed),
        "progress": torch.tensor(0.2),
    }


def step(objective: Objective, parts: int, seed: int = 0, **other: float) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Values and gradients of a step with a batch in parts; weights stay, and what else changes after it does."""
    torch.manual_seed(seed)
    objective.zero_grad()
    values = []
    for part in split_batch(objective.with_draws(batch(seed) | other), parts):
        values.append(objective(part))
        (values[-1]["loss"] / parts).backward()
    objective.after_step()
    gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    return mean_over_parts(values), gradients


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, as a share of the largest gradient of all."""
    assert len(found) == len(expected) > 0
    scale = max(float(gradient.abs().max()) for gradient in expected)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) / scale


def test_every_objective_is_known_here_and_says_what_it_is():
    assert set(ARGUMENTS) == set(list_objectives())
    assert {name for name, kind in OBJECTIVES.items() if kind.per_image} == PER_IMAGE
    reasons = {OBJECTIVES[name].interplay for name in set(ARGUMENTS) - PER_IMAGE}
    assert Objective.interplay not in reasons


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", sorted(PER_IMAGE))
def test_the_parts_of_a_per_image_objective_are_the_large_batch(name, parts):
    """Over two steps, so that what the first leaves behind has its part in the second."""
    whole, cut = build(name), build(name)
    for seed in range(2):
        expected, found = step(whole, 1, seed), step(cut, parts, seed)
        torch.testing.assert_close(found[0]["loss"], expected[0]["loss"], rtol=2e-6, atol=1e-7)
        assert largest_difference(found[1], expected[1]) < ROUNDING
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(cut.state_dict()[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - PER_IMAGE))
def test_the_parts_of_any_other_objective_are_not(name):
    expected, found = step(build(name), 1), step(build(name), 2)
    assert largest_difference(found[1], expected[1]) > 1e-2


@pytest.mark.parametrize("name", ["byol", "dino", "swav", "tico"])
def test_schedules_follow_plain_scalars_too(name):
    """Processes that train together move tensors to their GPU, which would be waited for; NumPy's scalars stay."""
    found, expected = build(name), build(name)
    losses = [step(found, 2, epoch=np.float64(20.0), progress=np.float64(0.2)), step(expected, 2)]
    assert losses[0][0]["loss"] == losses[1][0]["loss"]
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value)


@pytest.mark.parametrize("name", ["nnclr", "swav", "tico"])
def test_queues_and_moments_take_in_every_part_all_the_same(name):
    whole, cut = build(name), build(name)
    step(whole, 1)
    step(cut, 3)
    kept = [key for key in whole.state_dict() if "queue" in key or key == "covariance"]
    assert kept
    for key in kept:
        assert not torch.equal(whole.state_dict()[key], build(name).state_dict()[key])
        torch.testing.assert_close(cut.state_dict()[key], whole.state_dict()[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["instance_recognition", "mae"])
def test_draws_are_those_of_the_forward_pass(name):
    """The same generator, drawn before the forward pass or in it, gives the same loss; parts differ in their draws."""
    torch.manual_seed(7)
    inside = build(name)
    torch.manual_seed(7)
    expected = inside(batch())["loss"]
    torch.manual_seed(7)
    drawn = inside.with_draws(batch())
    assert inside(drawn)["loss"] == expected
    more = [key for key in drawn if key not in batch()]
    assert more
    first, second = split_batch(drawn, 2)
    assert all(not torch.equal(first[key], second[key]) for key in more)


def test_the_key_encoder_of_moco_moves_once_in_a_step():
    objective = build("moco_v2")
    with torch.no_grad():
        objective.head.layers[0].weight.add_(1.0)
    before, new = objective.key_head.layers[0].weight.clone(), objective.head.layers[0].weight.clone()
    step(objective, 4)
    torch.testing.assert_close(objective.key_head.layers[0].weight, 0.999 * before + 0.001 * new)


def test_a_queue_must_hold_whole_batches_and_not_parts_alone():
    objective = build("moco_v2")
    objective.queue = objective.queue[:18]
    with pytest.raises(ValueError, match="queue_size=18 must be a multiple of the batch of 12 images"):
        step(objective, 2)


@settings(deadline=None)
@given(images=st.integers(1, 12), parts=st.integers(1, 12))
def test_parts_are_equal_and_together_the_batch(images, parts):
    whole = {
        "views": torch.rand(2, images, 3, 2, 2),
        "patches": torch.rand(9, images, 3, 2, 2),
        "index": torch.arange(images),
        "noise": torch.rand(images, 5),
        "epoch": torch.tensor(1.5),
    }
    if images % parts:
        with pytest.raises(ValueError, match=f"accumulate={parts} cannot cut the {images} images"):
            split_batch(whole, parts)
        return
    cut = split_batch(whole, parts)
    assert len(cut) == parts
    assert {len(part["index"]) for part in cut} == {images // parts}
    for key, value in whole.items():
        if key == "epoch":
            assert all(part[key] == value for part in cut)
        else:
            joined = torch.cat([part[key] for part in cut], 1 if key in ("views", "patches") else 0)
            assert torch.equal(joined, value)


def test_logged_values_are_means_without_graph():
    weights = torch.ones(2, requires_grad=True)
    found = mean_over_parts(
        [{"loss": weights.sum(), "acc1": torch.tensor(1.0)}, {"loss": 3 * weights.sum(), "acc1": torch.tensor(0.0)}]
    )
    assert found == {"loss": 4.0, "acc1": 0.5}
    assert not found["loss"].requires_grad


WARNINGS: dict[str, tuple[Callable[[], Objective], str | None]] = {
    "rotnet": (lambda: build("rotnet"), None),
    "simclr": (
        lambda: create_objective("simclr", create_model("alexnet_bn", num_classes=0), hidden_dim=8, dim=4),
        "WARNING: accumulate=4 is not the large batch: simclr compares the views of all images in a batch, and finds "
        "those of a part; batch norm's statistics are those of a part",
    ),
    "swav": (
        lambda: build("swav"),
        "WARNING: accumulate=4 is not the large batch: swav spreads a batch evenly over its clusters, and finds "
        "those of a part",
    ),
    "supervised": (
        lambda: create_objective("supervised", create_model("alexnet_bn", num_classes=0), classes=3),
        "WARNING: accumulate=4 is not the large batch: batch norm's statistics are those of a part",
    ),
    "linear_readout": (
        lambda: create_objective("linear_readout", create_model("alexnet_bn", num_classes=0), classes=3),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNINGS)
def test_one_line_where_parts_are_not_the_large_batch(name):
    make, line = WARNINGS[name]
    objective = make()
    assert accumulation_warning(objective, name, 4) == line
    assert accumulation_warning(objective, name, 1) is None


def test_norms_without_running_statistics_always_use_the_batchs():
    assert has_batch_statistics(nn.Sequential(nn.BatchNorm1d(2)))
    assert not has_batch_statistics(nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2)).eval())
    assert has_batch_statistics(nn.BatchNorm1d(2, track_running_stats=False).eval())
