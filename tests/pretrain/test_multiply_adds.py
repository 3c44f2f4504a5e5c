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
