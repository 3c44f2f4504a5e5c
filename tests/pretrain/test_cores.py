"""Cores by name: each can be built at its published size, and says what it is."""

import pytest
import torch

from pretrain.models import create_model
from pretrain.models.cores import CORES, list_cores

BUILT_WITHOUT_ARGUMENTS = [name for name in CORES if name != "backbone"]


@pytest.mark.parametrize("name", BUILT_WITHOUT_ARGUMENTS)
def test_each_core_is_built_at_its_published_size(name):
    with torch.device("meta"):
        core = create_model(name)
    channels, *size = core.output_shape(*CORES[name].input[1:])
    assert channels == core.out_channels
    assert len(size) == len(CORES[name].input) - 1
    assert all(length > 0 for length in size)


def test_names_are_listed_and_the_nearest_is_told():
    assert list_cores() == sorted(CORES)
    with pytest.raises(ValueError, match="unknown model 'dwisneuro'; nearest: dwiseneuro"):
        create_model("dwisneuro")


def test_a_wrong_argument_is_one_line():
    with pytest.raises(ValueError, match="model 'viv1t' does not take these arguments"):
        create_model("viv1t", colour=3)
