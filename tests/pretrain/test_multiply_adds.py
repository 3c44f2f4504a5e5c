"""Multiply-adds against the formula written out by hand."""

import torch
from torch import nn

from pretrain.models import create_model
from pretrain.models.multiply_adds import multiply_adds

# (outputs, inputs, kernel, side of the output at 64 pixels) of each convolution of AlexNet.
CONVOLUTIONS = ((64, 3, 11, 15), (192, 64, 5, 7), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3))


def test_alexnet_by_hand():
    convolutions = sum(out * inputs * kernel**2 * side**2 for out, inputs, kernel, side in CONVOLUTIONS)
    linear = 9216 * 4096 + 4096 * 4096
    with torch.device("meta"):
        model = create_model("alexnet_bn", num_classes=0)
    assert multiply_adds(model, 64) == convolutions + linear


def test_the_model_itself_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert multiply_adds(model, 8) == 4 * 3 * 9 * 36 + 4 * 36 * 5
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class QueriedPool(nn.Module):
    """A linear layer whose input is a parameter, stretched over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.ones(1, 4))
        self.project = nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project(self.query.expand(len(images), -1))


def test_a_parameter_can_be_a_layers_input():
    model = QueriedPool()
    assert multiply_adds(model, 8) == 4 * 5
    assert model.query.requires_grad


def test_a_vision_transformer_by_hand():
    with torch.device("meta"):
        model = create_model("timm/vit_tiny_patch16_224", num_classes=0, input_size=64)
    width, patches = 192, (64 // 16) ** 2
    tokens = patches + 1
    block = 3 * tokens * width**2 + 2 * tokens**2 * width + tokens * width**2 + 8 * tokens * width**2
    assert multiply_adds(model, 64) == patches * 3 * 16**2 * width + 12 * block


def test_an_hour_glass_is_counted_with_its_mirror():
    with torch.device("meta"):
        encoder, whole = create_model("single_stream", num_classes=0), create_model("single_stream_depth")
    # A convolution and its mirror join the same places by the same weights.
    assert multiply_adds(whole, 64) == 2 * multiply_adds(encoder, 64) > 0
