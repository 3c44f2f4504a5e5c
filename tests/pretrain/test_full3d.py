"""The full 3-D core: published values, counts, causality."""

import json

import numpy as np
import pytest
import torch

from pretrain.models.full3d import Full3d
from pretrain.published_neuralpredictors import from_published

SMALL = {"channels": (4, 6), "spatial_kernels": (7, 5), "temporal_kernels": (3, 3)}


def test_published_values(shared):
    with np.load(shared / "reference" / "values" / "static" / "core" / "basic3d.npz") as file:
        values = {name: torch.from_numpy(file[name]) for name in file.files}
    core = Full3d(2, 0, momentum=0.01, gamma_spatial=10.0, gamma_temporal=0.01, **SMALL)
    state = {f"core.{name.removeprefix('sd/')}": value for name, value in values.items() if name.startswith("sd/")}
    core.load_state_dict({name.removeprefix("core."): value for name, value in from_published(state).items()})
    torch.testing.assert_close(core.eval()(values["in/x"]), values["out/eval"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(core.train()(values["in/x"]), values["out/train"], rtol=1e-5, atol=1e-5)
    terms = torch.stack(list(core.regularizer_terms().values()))
    torch.testing.assert_close(terms, values["out/regularizer"], rtol=1e-5, atol=0)


def test_size_of_the_published_core(shared):
    path = shared / "reference" / "values" / "video" / "eckerlab_baseline" / "param_counts.json"
    counts = json.loads(path.read_text())["basic3d_models_demo_5new"]
    with torch.device("meta"):
        core = Full3d()
    assert sum(parameter.numel() for parameter in core.parameters()) == counts["children"]["core"] == 1_946_688
    assert core.output_shape(40, 36, 64) == tuple(counts["core_out"][1:]) == (64, 24, 36, 64)


@pytest.mark.parametrize(("pad", "stride"), [(True, 1), (False, 2)])
def test_output_shape_is_that_of_the_output(pad, stride):
    core = Full3d(pad=pad, stride=stride, **SMALL)
    found = core(torch.randn(2, 1, 9, 31, 28), torch.randn(2, 2, 9))
    assert tuple(found.shape[1:]) == core.output_shape(9, 31, 28)


def test_no_output_depends_on_a_later_frame():
    core = Full3d(**SMALL).eval()
    video, behavior = torch.randn(1, 1, 10, 12, 14), torch.randn(1, 2, 10)
    before = core(video, behavior)
    video[:, :, 8:], behavior[:, :, 8:] = 5.0, -5.0
    after = core(video, behavior)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4:], after[:, :, 4:])


def test_the_last_nonlinearity_can_be_left_out():
    torch.manual_seed(0)
    core = Full3d(final_nonlinearity=False, **SMALL)
    assert core(torch.randn(2, 1, 8, 16, 16), torch.randn(2, 2, 8)).min() < -1


def test_bfloat16():
    core = Full3d(**SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        found = core(torch.randn(1, 1, 8, 16, 16), torch.randn(1, 2, 8))
    found.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in core.parameters())
