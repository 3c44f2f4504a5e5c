"""AlexNet's arguments: shortened, without classifier, for small and large images, and RotNet's own."""

import pytest
import torch
from torch import nn

from pretrain.models import create_model
from pretrain.models.alexnet import AlexNet, AlexNetEdges, MaxPool, RotNetAlexNet


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
