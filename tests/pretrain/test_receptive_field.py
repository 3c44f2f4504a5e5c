"""Receptive fields: of convolutions by hand, in space and in time, and who sees the future."""

import pytest
import torch
from torch import Tensor, nn

from pretrain.models.receptive_field import ReceptiveField, is_causal, receptive_field


def test_convolutions_by_hand():
    """Kernels 5 and 3, the second after a stride of 2, see 5 + 2 (3 - 1) = 9 rows; columns lie 1 apart."""
    model = nn.Sequential(nn.Conv2d(1, 4, 5, (2, 1)), nn.ReLU(), nn.Conv2d(4, 4, 3))
    found = receptive_field(model, [(1, 1, 33, 21)], tries=4)
    places = 33 // 2 - 3  # rows of the output
    assert found == ReceptiveField((places // 2 * 2, places // 2 * 2 + 8), (7, 13))


@pytest.mark.parametrize(("before", "after", "causal"), [(4, 0, True), (2, 2, False), (3, 1, False)])
def test_frames_and_causality(before, after, causal):
    model = nn.Sequential(nn.ZeroPad3d((0, 0, 0, 0, before, after)), nn.Conv3d(1, 3, (5, 1, 1)))
    shape = 1, 1, 16, 3, 3
    found = receptive_field(model, [shape])
    assert found == ReceptiveField((1, 1), (1, 1), (8 - before, 8 + after))
    assert is_causal(model, [shape]) == causal


class Halved(nn.Module):
    """Every second frame, plus a share of a signal's frame after it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, video: Tensor, signal: Tensor) -> Tensor:
        return video[:, :, 1::2] + self.share * signal.roll(-1, 2)[:, :, 1::2, None, None]


@pytest.mark.parametrize("share", [0.0, 1e-3])
def test_a_signal_of_the_future_is_noticed_behind_a_stride(share):
    assert is_causal(Halved(share), [(1, 1, 16, 3, 3), (1, 1, 16)], stride=2) == (share == 0)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    receptive_field(model, [(1, 1, 8, 8)], dtype=torch.float64)
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())
