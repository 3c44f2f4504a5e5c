"""AlexNet's arguments: shortened, without classifier, for small and large images, and RotNet's own."""

import hashlib
import json

import pytest
import torch
from torch import nn

from pretrain.models import create_model, model_info
from pretrain.models.alexnet import AlexNet, AlexNetEdges, MaxPool, RotNetAlexNet
from transfer.features import extract_features


def test_seed_0_gives_the_published_weights(mouse_vision):
    expected = json.loads((mouse_vision / "models.json").read_text())["alexnet_bn_ir_64x64_input_pool_6"]
    torch.manual_seed(0)
    state = create_model("alexnet_bn", num_classes=0).state_dict()
    found = {key: hashlib.sha256(value.numpy()).hexdigest()[:16] for key, value in state.items()}
    assert found == expected["seed0_sha256_16"]


@pytest.mark.parametrize(
    "published", ["alexnet_64x64_input_pool_6", "alexnet_bn_64x64_input_pool_6_with_ir_transforms"]
)
def test_published_means_and_deviations(published, mouse_vision, keyed_fill):
    expected = json.loads((mouse_vision / "models.json").read_text())[published]
    with torch.device("meta"):
        model = create_model(published)
    model = keyed_fill(model.to_empty(device="cpu")).eval()
    images = torch.load(mouse_vision / "input_seed1.pt", weights_only=True)
    found = extract_features(model, images, model_info(published).fit_layers)
    assert {name: list(values.shape) for name, values in found.items()} == expected["layer_shapes"]
    found["output"] = model(images).detach()
    for name, (mean, std) in (expected["keyed_layer_mean_std"] | {"output": expected["keyed_output_mean_std"]}).items():
        spread = [found[name].double().mean().item(), found[name].double().std().item()]
        assert spread == pytest.approx([mean, std], rel=1e-5, abs=1e-5 * std), name


@pytest.mark.parametrize("name", ["alexnet", "alexnet_bn"])
def test_every_size_from_32_to_224_pixels_is_taken(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=0).eval()
    for side in range(32, 225):
        assert model(torch.zeros(2, 3, side, side, device="meta")).shape == (2, 4096), side


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("side", [32, 44, 63, 64, 84, 124])
def test_images_of_any_size_from_32_pixels(side, batch_norm):
    model = AlexNet(batch_norm, pool_size=1, num_classes=0).train()
    images = torch.randn(2, 3, side, side)
    output = model(images)
    assert output.shape == (2, 4096)
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_pool_differs_from_torchs_only_where_torchs_fails():
    ours, plain = MaxPool(3, stride=2), nn.MaxPool2d(3, stride=2)
    for height, width in ((3, 3), (7, 4), (8, 15)):
        images = torch.randn(2, 5, height, width)
        assert torch.equal(ours(images), plain(images))
    small = torch.randn(2, 5, 1, 2)
    torch.testing.assert_close(ours(small)[..., 0, 0], small.amax((2, 3)))
    with pytest.raises(RuntimeError):
        plain(small)


def kinds(layers: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in layers]


@pytest.mark.parametrize(
    ("arguments", "features", "classifier"),
    [
        ({"stages": 2, "hidden_layers": 0}, 6, ["Dropout", "Linear"]),
        ({"stages": 5, "hidden_layers": 1}, 13, ["Dropout", "Linear", "ReLU", "Linear"]),
        ({"hidden_layers": 1, "num_classes": 0}, 13, ["Dropout", "Linear", "ReLU", "Dropout"]),
        ({}, 13, ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"]),
        ({"num_classes": 0}, 13, ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU"]),
        ({"stages": 3, "hidden_layers": 0, "num_classes": 0}, 8, []),
    ],
)
def test_layers_by_arguments(arguments, features, classifier):
    with torch.device("meta"):
        model = AlexNet(**arguments)
    assert len(model.features) == features
    assert kinds(model.classifier) == classifier


def test_without_pool_the_last_map_is_the_output():
    model = create_model("alexnet_64x64_rl_scratch_truncated")
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 256, 3, 3)
    assert {key.split(".")[0] for key in model.state_dict()} == {"features"}


@pytest.mark.parametrize("arguments", [{"stages": 6}, {"stages": 0}, {"hidden_layers": 3}])
def test_lengths_out_of_range_are_one_line(arguments):
    with pytest.raises(ValueError, match="of AlexNet must be from"):
        AlexNet(**arguments)


def test_shapes_at_64_pixels_are_the_published_ones():
    with torch.device("meta"):
        features = create_model("alexnet_bn").features
    activations, shapes = torch.zeros(1, 3, 64, 64, device="meta"), {}
    for number, layer in enumerate(features):
        activations = layer(activations)
        shapes[number] = tuple(activations.shape[1:])
    assert {n: shapes[n] for n in (0, 3, 7, 10, 13, 17)} == {
        0: (64, 15, 15), 3: (64, 7, 7), 7: (192, 3, 3), 10: (384, 3, 3), 13: (256, 3, 3), 17: (256, 1, 1),
    }  # fmt: skip


def test_state_dict_keys_with_batch_norm_as_described():
    with torch.device("meta"):
        with_classes, without = (create_model("alexnet_bn", **a).state_dict() for a in ({}, {"num_classes": 0}))
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    convolutions = {f"features.{i}.{part}" for i in (0, 4, 8, 11, 14) for part in ("weight", "bias")}
    norms = {f"features.{i}.{part}" for i in (1, 5, 9, 12, 15) for part in norm}
    linear = {f"classifier.{i}.{part}" for i in (1, 5) for part in ("weight", "bias")}
    linear_norms = {f"classifier.{i}.{part}" for i in (2, 6) for part in norm}
    assert set(without) == convolutions | norms | linear | linear_norms
    assert set(with_classes) - set(without) == {"classifier.8.weight", "classifier.8.bias"}


def test_dropout_is_an_argument():
    model = AlexNet(batch_norm=True, pool_size=1, num_classes=5, dropout=0.25).eval()
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.25, 0.25]
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_rotnets_weights_are_twice_in_the_state_dict_and_once_in_memory():
    model = RotNetAlexNet()
    state = model.state_dict()
    assert len(state) == 82
    assert state["features.0.weight"].data_ptr() == state["readout_features.0.weight"].data_ptr()
    assert not any(isinstance(layer, nn.Dropout) for layer in model.modules())
    assert all(layer.bias is None for layer in model.modules() if isinstance(layer, nn.Linear))
    with pytest.raises(ValueError, match="takes 224 x 224 images, found 64 x 64"):
        model(torch.zeros(1, 3, 64, 64))


def test_rotnets_transfer_form_gives_a_map():
    with torch.device("meta"):
        model = RotNetAlexNet(transfer=True)
    assert model(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 256, 13, 13)
    assert len(model.unused_parameters) == 6


def test_the_network_of_named_edges_is_alexnet():
    named, plain = AlexNetEdges().eval(), AlexNet().eval()
    plain.load_state_dict(dict(zip(plain.state_dict(), named.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(named(images), plain(images))
