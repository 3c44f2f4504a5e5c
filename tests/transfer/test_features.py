"""Features: the published activations, hooks that copy, and the published view of a stimulus."""

import zlib

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as F

from pretrain.checkpoint import BackboneSpec
from pretrain.models import create_model, model_info
from transfer.features import extract_features, prepare_stimuli, stimulus_features

PUBLISHED = {
    "alexnet_bn_ir_64x64_input_pool_6": ("alexnet_bn", {"num_classes": 0}),
    "alexnet_64x64_input_pool_6": ("alexnet", {}),
}


def keyed_fill(model: nn.Module) -> nn.Module:
    """Weights that follow from the names of the state dict, as the reference values were made."""
    state = model.state_dict()
    for key, value in state.items():
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1)
        elif key.endswith(("running_mean", ".bias")):
            state[key] = 0.1 * torch.randn(value.shape, generator=generator)
        elif key.endswith("running_var") or value.ndim == 1:
            state[key] = 0.5 + torch.rand(value.shape, generator=generator)
        else:
            state[key] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_activations_of_every_fit_layer(published, mouse_vision):
    values = torch.load(mouse_vision / "models" / f"{published}.keyed.pt", weights_only=True)
    name, arguments = PUBLISHED[published]
    model = keyed_fill(create_model(name, **arguments))
    layers = list(model_info(name).fit_layers)
    found = extract_features(model, values["input"], layers)
    assert list(values["layers"]) == layers == list(found)
    found["output"] = model.eval()(values["input"]).detach()
    for layer, expected in (values["layers"] | {"output": values["output"]}).items():
        assert found[layer].shape == expected.shape
        relative = (found[layer] - expected).abs().max() / expected.abs().max()
        assert relative < 1e-5, layer


class Small(nn.Module):
    """A net with an in-place ReLU, and a module that its forward pass skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(4)
        self.skipped = nn.Linear(1, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.relu(self.first(images)))).flatten(1)


def test_a_layer_is_read_before_a_relu_that_follows_in_place():
    model, images = Small(), torch.randn(2, 3, 6, 6)
    found = extract_features(model, images, ["norm", "first", "relu"])
    assert list(found) == ["norm", "first", "relu"]
    torch.testing.assert_close(found["first"], model.first(images))
    assert (found["first"] < 0).any()
    torch.testing.assert_close(found["relu"], found["first"].relu())


def test_extraction_is_in_evaluation_mode_and_leaves_the_model_as_it_was():
    model, images = Small().train(), torch.randn(2, 3, 6, 6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, again = (extract_features(model, images, ["drop"])["drop"] for _ in range(2))
    assert torch.equal(first, again)
    assert not first.requires_grad
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ("frist", "the model has no layer 'frist'; nearest: first"),
        ("", "the model has no layer ''"),
        ("zzz", "the model has no layer 'zzz'; nearest: first, relu"),
        ("skipped", "layer 'skipped' takes no part in the model's forward pass"),
    ],
)
def test_an_unknown_or_skipped_layer_is_one_line_and_leaves_no_hook(layer, line):
    model = Small()
    with pytest.raises(ValueError, match=line):
        extract_features(model, torch.randn(2, 3, 6, 6), ["first", layer])
    assert not any(module._forward_hooks for module in model.modules())


def test_timm_fit_layers_are_extracted_in_one_pass():
    model, info = create_model("timm/test_resnet", num_classes=0), model_info("timm/test_resnet")
    images = torch.randn(3, 3, 32, 32)
    found = extract_features(model, images, info.fit_layers)
    assert list(found) == list(info.fit_layers)
    pooled = model.eval()(images)
    torch.testing.assert_close(model.forward_head(found["layer4"]), pooled)


def spec(name: str = "alexnet_bn", size: int = 64) -> BackboneSpec:
    info = model_info(name)
    return BackboneSpec(name, {}, size, list(info.mean), list(info.std))


def test_the_published_view_of_a_grey_stimulus(mouse_vision):
    values = np.load(mouse_vision / "training" / "eval_transform.npz")
    found = prepare_stimuli(values["stimulus"][None], spec())[0]
    assert found.shape == (3, 64, 64)
    difference = np.abs(found.numpy() - values["output"]) * np.array(spec().std)[:, None, None]
    # Pillow rounds some pixels to the next of 255 grey levels.
    assert difference.max() < 1.01 / 255
    assert difference.mean() < 1e-4


def test_grey_and_colour_floats_and_bytes_are_the_same_stimuli():
    grey = np.random.default_rng(0).integers(0, 256, (4, 50, 70), np.uint8)
    colour = np.repeat(grey[..., None], 3, 3)
    expected = prepare_stimuli(grey, spec())
    for same in (colour, grey.astype(np.float64), colour.astype(np.float32)):
        assert torch.equal(prepare_stimuli(same, spec()), expected)


def test_the_evaluation_view_crops_and_the_whole_view_does_not():
    stimuli = np.zeros((1, 100, 160), np.uint8)
    stimuli[:, :, 140:] = 255
    assert prepare_stimuli(stimuli, spec()).unique().numel() == 3
    whole = prepare_stimuli(stimuli, spec(), "whole")
    assert whole.shape == (1, 3, 64, 64)
    plain = F.resize(torch.from_numpy(stimuli)[:, None], [64, 64], antialias=True).expand(-1, 3, -1, -1) / 255
    torch.testing.assert_close(whole, F.normalize(plain, spec().mean, spec().std))
    assert whole[0, 0, :, -5:].min() > whole[0, 0, :, :40].max()


def test_features_of_many_stimuli_are_those_of_each():
    model = create_model("timm/test_resnet", num_classes=0)
    inputs = torch.randn(260, 3, 32, 32)
    found = stimulus_features(model, inputs, ["layer1", "layer4"])
    assert found["layer1"].dtype == np.float32
    assert len(found["layer4"]) == 260
    alone = extract_features(model, inputs[255:258], ["layer4"])["layer4"].flatten(1)
    np.testing.assert_allclose(found["layer4"][255:258], alone.numpy(), rtol=1e-4, atol=1e-5)
