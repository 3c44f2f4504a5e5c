"""ELU in place: torch's values, its gradients, and no second copy."""

import pytest
import torch
from torch.nn import functional as F

from pretrain.models.elu import ShiftedElu, elu_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_torchs(dtype):
    values = (10 * torch.randn(10_000)).to(dtype)
    tolerance = 1e-7 if dtype is torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(elu_(values.clone()), F.elu(values), rtol=0, atol=tolerance)


def test_edges():
    values = torch.tensor([-torch.inf, -200.0, -1e-30, 0.0, 1e-30, 200.0, torch.inf])
    torch.testing.assert_close(elu_(values.clone()), F.elu(values), rtol=0, atol=1e-30)
    assert elu_(torch.tensor([torch.nan])).isnan()


def test_gradients():
    values = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: elu_(given * 1.0), values)


def test_memory_is_the_input_s():
    values = torch.randn(4, 3)
    result = elu_(values)
    assert result.data_ptr() == values.data_ptr()


def test_shifts():
    values = torch.randn(100)
    torch.testing.assert_close(ShiftedElu(0.5, 2.0)(values), F.elu(values - 0.5) + 2, rtol=0, atol=1e-6)
