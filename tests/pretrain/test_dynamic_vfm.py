"""Dynamic-VFM: the published numbers of attention and core, its frames and its sizes."""

import numpy as np
import pytest
import torch

from pretrain.models import create_model
from pretrain.models.dynamic_vfm import DynamicVFM, ShiftedWindowAttention, relative_positions
from pretrain.published_dynamic_vfm import from_published


@pytest.fixture(scope="module")
def published(shared):
    return shared / "reference" / "values" / "video" / "dynamic_vfm"


def read(path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_published_attention(published):
    state, values = read(published / "state_attn.safetensors"), np.load(published / "attn_io.npz")
    index = state.pop("relative_position_index")
    assert torch.equal(relative_positions((8, 7, 7), (8, 7, 7)), index)
    attention = ShiftedWindowAttention(12, 3, (8, 7, 7), True)
    attention.load_state_dict(state)
    close(attention(torch.tensor(values["x"])), values["y"])


def test_published_core(published):
    state = from_published(read(published / "state_mean_perturbed.safetensors"))
    inputs, outputs = np.load(published / "inputs.npz"), np.load(published / "outputs_mean_perturbed.npz")
    core = DynamicVFM(1, 24, 2, 3, 20, (4, 3, 5))
    core.load_state_dict({k.removeprefix("core."): v for k, v in state.items() if k.startswith("core.")})
    video, behavior, pupil = (torch.tensor(inputs[name]) for name in ("x", "behavior", "pupil"))
    found = core(video, behavior, pupil)
    assert found.shape[1:] == core.output_shape(*video.shape[2:])
    close(found, outputs["core"])


def test_published_size():
    with torch.device("meta"):
        core = create_model("dynamic_vfm")
    assert sum(p.numel() for p in core.parameters()) == 2_273_488
    assert core.output_shape(30, 36, 64) == (224, 15, 18, 32)


def test_gradients_reach_every_weight_and_bf16_runs():
    torch.manual_seed(0)
    core = DynamicVFM(1, 24, 2, 3, 20, (4, 3, 5))
    signals = torch.randn(1, 1, 10, 18, 22), torch.randn(1, 2, 10), torch.randn(1, 2, 10)
    core(*signals).square().mean().backward()
    assert not [name for name, p in core.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(core(*signals)).all()
