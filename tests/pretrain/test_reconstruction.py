"""Autoencoding and depth prediction: the published values, both ways back to an image, and what is learned."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.models import create_model
from pretrain.models.hour_glass import hour_glass
from pretrain.objectives.reconstruction import Autoencoding, DepthPrediction, ImageDecoder, standardised

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


class TinyHourGlass(nn.Module):
    """A backbone with its own way back, in the form of the published ones."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(48, 10)
        self.back = nn.Linear(10, 48)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        code = self.code(images.flatten(1))
        return {"output": self.back(code).unflatten(1, (3, 4, 4)), "hidden_vec": code, "encoder_output": code}


def flat_backbone(features: int = 24, size: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, features), nn.ReLU())


def random_batch(size: int = 4, batch: int = 5, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    depth = torch.randint(256, (batch, size, size), generator=generator).float()
    return {"views": torch.randn(1, batch, 3, size, size, generator=generator), "depth": depth}


def test_published_autoencoder_loss_and_its_gradient(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "autoencoder.pt", weights_only=True)
    objective = Autoencoding(TinyHourGlass(), 4, sparsity=values["l1"])
    drawn, code = (values[name].clone().requires_grad_() for name in ("output", "hidden_vec"))
    found = objective.compare(values["x"], drawn, code)
    torch.testing.assert_close(found["loss"], values["loss"], **TOLERANCE)
    found["loss"].backward()
    torch.testing.assert_close(drawn.grad, (values["output"] - values["x"]) / drawn.numel(), **TOLERANCE)
    torch.testing.assert_close(code.grad, values["l1"] * values["hidden_vec"].sign() / code.numel(), **TOLERANCE)


def test_published_depth_loss_and_its_gradient(mouse_vision):
    values = torch.load(mouse_vision / "losses" / "depth.pt", weights_only=True)
    objective = DepthPrediction(TinyHourGlass(), 4)
    objective.load_state_dict(values["decoder"], strict=False)
    assert values["decoder"].keys() == {key for key in objective.state_dict() if not key.startswith("backbone.")}
    drawn = values["x"].clone().requires_grad_()
    loss = objective.compare(drawn, values["target"][:, 0])["loss"]
    torch.testing.assert_close(loss, values["loss"], **TOLERANCE)
    loss.backward()
    weight = values["decoder"]["decoder.weight"]
    error = nn.functional.conv2d(values["x"], weight, padding=1) - values["target"]
    expected = nn.functional.conv_transpose2d(error / error.numel(), weight, padding=1)
    torch.testing.assert_close(drawn.grad, expected, **TOLERANCE)


@pytest.mark.parametrize(("form", "compressed"), [("single_stream", 128), ("dual_stream", 0)])
def test_the_published_hour_glasses_are_used_as_they_are(form, compressed):
    torch.manual_seed(0)
    backbone = hour_glass(form, compressed=compressed)
    autoencoding, depth = Autoencoding(backbone), DepthPrediction(backbone)
    batch = random_batch(64, batch=2)
    made = backbone.eval()(batch["views"][0])
    found = autoencoding(batch)
    error, magnitude = (made["output"] - batch["views"][0]).square().mean(), made["hidden_vec"].abs().mean()
    torch.testing.assert_close(found["loss"], error / 2 + 1e-4 * magnitude)
    torch.testing.assert_close(found["squared_error"], error)
    torch.testing.assert_close(found["code_magnitude"], magnitude)
    predicted = depth.decoder(made["output"])[:, 0]
    torch.testing.assert_close(depth(batch)["loss"], (predicted - standardised(batch["depth"])).square().mean() / 2)
    assert [name for name, _ in autoencoding.named_children()] == ["backbone"]
    assert sum(weights.numel() for weights in depth.decoder.parameters()) == 27


@pytest.mark.parametrize("size", [64, 96, 100, 224])
def test_any_other_backbone_gets_a_way_back_to_its_input(size):
    with torch.device("meta"):
        objective = Autoencoding(create_model("alexnet_bn", num_classes=0), size)
        drawn, code = objective.reconstruct(torch.zeros(2, 3, size, size))
    assert drawn.shape == (2, 3, size, size)
    assert code.shape == (2, 128)


def test_every_pixel_and_every_weight_of_our_decoder_takes_part():
    torch.manual_seed(0)
    decoder = ImageDecoder(7, size=40, code_dim=5)
    drawn, code = decoder(torch.randn(3, 7))
    assert drawn.shape == (3, 3, 40, 40)
    assert drawn.std(0).min() > 0
    (drawn.square().sum() + code.sum()).backward()
    assert all(weights.grad.abs().sum() > 0 for weights in decoder.parameters())


def test_a_backbone_without_a_decoder_learns_to_draw_its_input():
    torch.manual_seed(0)
    objective = Autoencoding(flat_backbone(48, 16), 16, code_dim=16)
    images = torch.randn(6, 3, 1, 1).expand(6, 3, 16, 16)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.003)
    errors = []
    for _ in range(60):
        found = objective({"views": images[None]})
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        errors.append(found["squared_error"].item())
    assert errors[-1] < 0.2 * errors[0]
    assert objective.backbone[1].weight.grad.abs().sum() > 0


def test_depth_is_learned_from_images_that_show_it():
    torch.manual_seed(0)
    objective = DepthPrediction(flat_backbone(64, 16), 16)
    depth = random_batch(2, batch=8)["depth"].repeat_interleave(8, 1).repeat_interleave(8, 2)
    batch = {"views": (depth / 128 - 1)[None, :, None].expand(1, 8, 3, 16, 16), "depth": depth}
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.003)
    losses = []
    for _ in range(60):
        loss = objective(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Half is what predicting nothing but each image's mean costs.
    assert losses[0] > 0.4
    assert losses[-1] < 0.15


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 9), scale=st.floats(0.01, 1000), shift=st.floats(-1000, 1000), seed=st.integers(0, 2**31))
def test_depth_is_standardised_image_by_image(size, scale, shift, seed):
    depth = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) * scale
    depth[1] += shift
    found = standardised(depth)
    for image, result in zip(depth.tolist(), found, strict=True):
        values = [value for row in image for value in row]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        floor = 1 / math.sqrt(len(values))
        expected = torch.tensor([(value - mean) / max(spread, floor) for value in values]).view(size, size)
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-2)


def test_a_flat_depth_map_is_zero_everywhere():
    assert not standardised(torch.full((2, 8, 8), 77, dtype=torch.int32)).any()


def test_the_losses_leave_half_precision():
    batch = random_batch(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for kind in (Autoencoding, DepthPrediction):
            found = kind(flat_backbone(24, 16), 16)(batch)
            assert {value.dtype for value in found.values()} == {torch.float32}


def test_what_they_want():
    assert (Autoencoding.wants.views, Autoencoding.wants.depth) == (1, False)
    assert (DepthPrediction.wants.views, DepthPrediction.wants.depth) == (1, True)


def test_wrong_arguments_are_one_line():
    with pytest.raises(ValueError, match=r"objective_args.sparsity must be at least 0, found -1"):
        Autoencoding(flat_backbone(), 4, sparsity=-1)
    with pytest.raises(ValueError, match=r"objective_args.code_dim must be above 0, found 0"):
        DepthPrediction(flat_backbone(), 4, code_dim=0)
    with pytest.raises(ValueError, match=r"code_dim=64 is for backbones without a decoder.*model_args.compressed"):
        Autoencoding(TinyHourGlass(), 4, code_dim=64)
