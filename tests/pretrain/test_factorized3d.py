"""The factorised 3-D core: published values, the plain transcription, counts, causality, and signals as channels."""

import json

import numpy as np
import pytest
import torch

from benchmarks.published.factorized3d import published_factorized3d
from pretrain.models.factorized3d import Factorized3d
from pretrain.published_neuralpredictors import from_published

SMALL = {"channels": (4, 6), "spatial_kernels": (7, 5), "temporal_kernels": (3, 3), "momentum": 0.01}


def core_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published core's state by our names."""
    mapped = from_published({f"core.{name}": value for name, value in state.items()})
    return {name.removeprefix("core."): value for name, value in mapped.items()}


@pytest.fixture(scope="module")
def values(shared) -> dict[str, torch.Tensor]:
    with np.load(shared / "reference" / "values" / "static" / "core" / "factorized3d.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_published_values(values):
    core = Factorized3d(video_channels=2, behavior_channels=0, **SMALL)
    core.load_state_dict(core_state({k.removeprefix("sd/"): v for k, v in values.items() if k.startswith("sd/")}))
    torch.testing.assert_close(core.eval()(values["in/x"]), values["out/eval"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(core.train()(values["in/x"]), values["out/train"], rtol=1e-5, atol=1e-5)
    terms = torch.stack(list(core.regularizer_terms().values()))
    torch.testing.assert_close(terms, values["out/regularizer"], rtol=1e-5, atol=0)
    torch.testing.assert_close(core.regularizer(), terms.sum())


@pytest.mark.parametrize("pad", [False, True])
def test_plain_transcription_gives_the_same(pad):
    """Outputs, all gradients and the running statistics, of a batch of two in training."""
    torch.manual_seed(1)
    sizes = {"channels": (4, 6, 5), "spatial_kernels": (7, 5, 3), "temporal_kernels": (5, 3, 3), "pad": pad}
    theirs, ours = published_factorized3d(**sizes), Factorized3d(**sizes)
    ours.load_state_dict(core_state(theirs.state_dict()))
    video, behavior = torch.randn(2, 1, 14, 20, 24), torch.randn(2, 2, 14)
    expected, found = theirs(video, behavior), ours(video, behavior)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    towards = torch.randn_like(expected)
    (expected * towards).sum().backward()
    (found * towards).sum().backward()
    reference = core_state({name: value.grad for name, value in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        difference = (parameter.grad - reference[name]).norm()
        # The bias of a convolution before a batch norm has no gradient but rounding.
        assert difference <= 1e-4 * reference[name].norm() or ("conv" in name and name.endswith("bias")), name
    for name, value in core_state(theirs.state_dict()).items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def test_size_of_the_published_core(shared):
    counts = json.loads(
        (shared / "reference" / "values" / "video" / "eckerlab_baseline" / "param_counts.json").read_text()
    )
    for name, arguments in (
        ("factorised_benchmark_5new", {}),
        (
            "factorised_models_demo_5new",
            {"channels": (64,) * 3, "spatial_kernels": (11, 7, 7), "temporal_kernels": (11, 7, 7), "pad": True},
        ),
    ):
        with torch.device("meta"):
            core = Factorized3d(**arguments)
        assert sum(parameter.numel() for parameter in core.parameters()) == counts[name]["children"]["core"]
        assert core.output_shape(80, 36, 64) == tuple(counts[name]["core_out"][1:])


def test_size():
    with torch.device("meta"):
        core = Factorized3d()
    assert sum(parameter.numel() for parameter in core.parameters()) == 382_176
    assert core.output_shape(80, 36, 64) == (128, 62, 18, 46)
    assert core.out_channels == 128


def test_weights_are_drawn_as_published(shared):
    """The regulariser of fresh weights under a seed, which depends on what was drawn before them."""
    reference = json.loads(
        (shared / "reference" / "values" / "video" / "eckerlab_baseline" / "reference.json").read_text()
    )
    torch.manual_seed(0)
    core = Factorized3d(channels=(6, 8, 10))
    found = [float(term.detach()) for term in core.regularizer_terms().values()]
    assert found == pytest.approx(reference["variants"]["factorised"]["core_regularizer_init"], rel=1e-6)


def test_no_output_depends_on_a_later_frame():
    core = Factorized3d(**SMALL).eval()
    video, behavior = torch.randn(1, 1, 12, 16, 18), torch.randn(1, 2, 12)
    before = core(video, behavior)
    video[:, :, 9:], behavior[:, :, 9:] = 5.0, -5.0
    after = core(video, behavior)
    # The last of 8 outputs belongs to the last of 12 frames, so frame 9 is output 5.
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.allclose(before[:, :, 5:], after[:, :, 5:])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pad", [False, True])
def test_output_shape_is_that_of_the_output(stride, pad):
    core = Factorized3d(stride=stride, pad=pad, **SMALL)
    found = core(torch.randn(2, 1, 9, 31, 28), torch.randn(2, 2, 9))
    assert tuple(found.shape[1:]) == core.output_shape(9, 31, 28)


def test_the_last_nonlinearity_can_be_left_out():
    torch.manual_seed(0)
    core = Factorized3d(final_nonlinearity=False, **SMALL)
    assert core(torch.randn(2, 1, 8, 16, 16), torch.randn(2, 2, 8)).min() < -1


def test_bfloat16():
    core = Factorized3d(**SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        found = core(torch.randn(1, 1, 8, 16, 16), torch.randn(1, 2, 8))
    found.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in core.parameters())


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="temporal_kernels must have one entry for each of 3 layers, found 2"):
        Factorized3d(temporal_kernels=(5, 5))
    with pytest.raises(ValueError, match=r"10 x 36 x 64 .* too small"):
        Factorized3d()(torch.zeros(1, 1, 10, 36, 64), torch.zeros(1, 2, 10))
