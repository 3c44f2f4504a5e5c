"""The recurrent baselines: the cell step by step, counts, fresh weights as published, causality."""

import json

import pytest
import torch
from torch.nn import functional as F

from benchmarks.published.gru_baseline import published_gru_rotation_equivariant
from pretrain.models.conv_gru import FRAMES_AT_ONCE, ConvGru
from pretrain.models.gru_baseline import gru_rotation_equivariant, gru_stacked2d
from pretrain.published_neuralpredictors import from_published

SMALL = {"state_channels": 5, "input_kernel": 3, "state_kernel": 3, "layers": 2}
BUILDERS = {
    "gru_equivariant": lambda **options: gru_rotation_equivariant(
        **{**SMALL, "features": 2, "rotations": 4, **options}
    ),
    "gru_stacked2d": lambda **options: gru_stacked2d(**{**SMALL, "channels": 4, **options}),
}


def test_the_cell_step_by_step():
    """Six convolutions a frame, each gate for itself, as the published cell has them."""
    torch.manual_seed(0)
    gru = ConvGru(3, 4, 5, 3)
    maps = torch.randn(2, 6, 3, 7, 8, requires_grad=True)
    reset_in, update_in, out_in = zip(gru.from_input.weight.split(4), gru.from_input.bias.split(4), strict=True)
    reset_state, update_state = zip(gru.from_state.weight.split(4), gru.from_state.bias.split(4), strict=True)
    out_state = gru.from_reset_state.weight, gru.from_reset_state.bias
    state, states = torch.zeros(2, 4, 7, 8), []
    for frame in maps.unbind(1):
        update = torch.sigmoid(F.conv2d(frame, *update_in, padding=2) + F.conv2d(state, *update_state, padding=1))
        reset = torch.sigmoid(F.conv2d(frame, *reset_in, padding=2) + F.conv2d(state, *reset_state, padding=1))
        out = torch.tanh(F.conv2d(frame, *out_in, padding=2) + F.conv2d(state * reset, *out_state, padding=1))
        state = state * (1 - update) + out * update
        states.append(state)
    expected, found = torch.stack(states, 2), gru(maps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    everything = [maps, *gru.parameters()]
    of_expected = torch.autograd.grad(expected.square().sum(), everything)
    of_found = torch.autograd.grad(found.square().sum(), everything)
    for gradient, reference in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize(
    ("name", "build", "core", "gru"),
    [
        ("gru_equivariant_benchmark_5new", gru_rotation_equivariant, 110_212 - 66_060, 1_991_040),
        ("gru_stacked2d_models_demo_5new", gru_stacked2d, 618_368, 1_204_608),
    ],
)
def test_sizes_of_the_published_models(shared, name, build, core, gru):
    path = shared / "reference" / "values" / "video" / "eckerlab_baseline" / "param_counts.json"
    counts = json.loads(path.read_text())[name]
    model = build()
    assert sum(parameter.numel() for parameter in model.core.parameters()) == core
    assert sum(parameter.numel() for parameter in model.gru.parameters()) == gru == counts["children"]["gru_module"]
    constants = counts["total"] - counts["trainable"]
    assert core == counts["children"]["core"] - constants
    assert model.output_shape(80, 36, 64) == (64, 80, 28, 56)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("gru_equivariant", lambda: gru_rotation_equivariant(6, 5, 3, features=2, layers=2, rotations=4)),
        ("gru_stacked2d", lambda: gru_stacked2d(5, 3, 3, channels=6, layers=3)),
    ],
)
def test_weights_are_drawn_as_published(shared, name, build):
    """The regulariser of fresh weights under a seed."""
    path = shared / "reference" / "values" / "video" / "eckerlab_baseline" / "reference.json"
    reference = json.loads(path.read_text())["variants"][name]["core_regularizer_init"]
    torch.manual_seed(0)
    assert [float(build().regularizer().detach())] == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_no_output_depends_on_a_later_frame_and_all_on_the_first(name):
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    video, behavior = torch.randn(1, 1, 6, 20, 22), torch.randn(1, 2, 6)
    before = model(video, behavior)
    assert tuple(before.shape[1:]) == model.output_shape(6, 20, 22)
    changed = video.clone()
    changed[:, :, 4:] = 5.0
    after = model(changed, behavior)
    torch.testing.assert_close(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4:], after[:, :, 4:])
    changed = video.clone()
    changed[:, :, 0] = 5.0
    assert (model(changed, behavior) - before).abs().amax((0, 1, 3, 4)).min() > 1e-4


@pytest.mark.parametrize("name", BUILDERS)
def test_bfloat16(name):
    model = BUILDERS[name]()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(torch.randn(1, 1, 4, 20, 22), torch.randn(1, 2, 4))
    found.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_states_are_summed_up_in_full_precision():
    gru = ConvGru(3, 4, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert gru(torch.randn(1, 3, 3, 7, 8)).dtype == torch.float32


def test_the_gradient_keeps_states_and_gates_alone():
    """Of each frame one state and three gates, and the maps that came in, not twice."""
    gru, frames = ConvGru(3, 4, 5, 3), 2 * FRAMES_AT_ONCE
    maps, kept = torch.randn(1, frames, 3, 9, 9, requires_grad=True), {}
    hooks = lambda tensor: kept.setdefault(tensor.data_ptr(), tensor), lambda tensor: tensor
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        gru(maps)
    weights = sum(parameter.numel() for parameter in gru.parameters())
    of_frame = 9 * 9 * (4 + 3 * 4 + 3)
    assert sum(tensor.numel() for tensor in kept.values()) <= frames * of_frame + 2 * 9 * 9 * 4 + weights


def test_a_frozen_gru_gives_the_gradient_of_its_input():
    gru = ConvGru(3, 4, 5, 3).requires_grad_(False)
    maps = torch.randn(1, 3, 3, 7, 8, requires_grad=True)
    gru(maps).sum().backward()
    assert maps.grad.abs().sum() > 0
    assert gru.from_state.weight.grad is None


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match=r"state_kernel must be odd.* found 4"):
        ConvGru(3, 4, 5, 4)


def test_plain_transcription_gives_the_same():
    """Outputs and all gradients at sizes that take the way through the Fourier transform, over two groups of frames."""
    torch.manual_seed(0)
    sizes = {"features": 4, "layers": 2, "rotations": 4, "state_channels": 16}
    theirs = published_gru_rotation_equivariant(gru_kernels=(9, 5), **sizes)
    ours = gru_rotation_equivariant(input_kernel=9, state_kernel=5, **sizes)

    def mapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.removeprefix("core."): value for name, value in from_published(state).items()}

    ours.load_state_dict(mapped(theirs.state_dict()))
    video, behavior = torch.randn(1, 1, FRAMES_AT_ONCE + 8, 18, 19), torch.randn(1, 2, FRAMES_AT_ONCE + 8)
    expected, found = theirs(video, behavior), ours(video, behavior)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
    expected.square().mean().backward()
    found.square().mean().backward()
    reference = mapped({name: value.grad for name, value in theirs.named_parameters() if value.grad is not None})
    for name, parameter in ours.named_parameters():
        assert float((parameter.grad - reference[name]).norm()) <= 1e-4 * float(reference[name].norm()), name
