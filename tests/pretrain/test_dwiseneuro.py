"""DwiseNeuro: the published numbers and keys, at any memory; a small one where the published values are absent."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pretrain.models import create_model
from pretrain.models.dwiseneuro import DwiseNeuro, position_table, tiled
from pretrain.published_dwiseneuro import ANIMALS, from_published
from transfer.grouped_linear_readout import GroupedLinearReadout

NEURONS = (7863, 7908, 8202, 7939, 8122, 7440, 7928, 8285, 7671, 7495)


def small(recompute: bool = True) -> DwiseNeuro:
    """The sizes of the published values."""
    return DwiseNeuro(5, (12, 12, 20, 28), (2, 1, 2, 1), (48, 100), 3, 5, 3, 4, 2, 0.1, (18, 22), recompute)


@pytest.fixture(scope="module")
def published(shared):
    return shared / "reference" / "values" / "video" / "dwiseneuro"


def read(path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("state", ["perturbed", "init_repo", "init_default"])
def test_published_features(published, state, recompute):
    weights = from_published(read(published / f"state_{state}.safetensors"), animals=("a", "b", "c"))
    core = small(recompute).eval()
    core.load_state_dict({k.removeprefix("core."): v for k, v in weights.items() if k.startswith("core.")})
    inputs, outputs = (np.load(published / name) for name in ("inputs.npz", f"outputs_{state}.npz"))
    found = core.encode(torch.tensor(inputs["x"]))[..., 0, 0].detach().numpy()
    np.testing.assert_allclose(found, outputs["cortex"], rtol=0, atol=1e-5 * np.abs(outputs["cortex"]).max())


@pytest.mark.parametrize("name", ["c64_16x8x8", "c20_6x9x11"])
def test_published_positions(published, name):
    values = np.load(published / f"posenc_{name}.npz")
    expected = torch.tensor(values[values.files[-1]]).squeeze(0)
    channels, frames, height, width = expected.shape
    found = position_table(channels, frames, height, width)
    torch.testing.assert_close(found.reshape(expected.shape) if found.shape != expected.shape else found, expected)


def test_published_keys_have_places(published):
    """Every key of the published file has a place, and the core's are all of ours, at the published shapes."""
    listed = json.loads((published / "default_state_dict_keys.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in listed.items()}
    found = {k.removeprefix("core."): v for k, v in from_published(state).items() if k.startswith("core.")}
    with torch.device("meta"):
        core = create_model("dwiseneuro")
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in core.state_dict().items()}


def test_published_readouts_fit_ours(published):
    """The names of the whole file are those of the core and of one grouped linear readout per animal."""
    listed = json.loads((published / "default_state_dict_keys.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in listed.items()}
    with torch.device("meta"):
        readouts = {
            name: GroupedLinearReadout((4096, 1, 1), count) for name, count in zip(ANIMALS, NEURONS, strict=True)
        }
        model = nn.ModuleDict({"core": create_model("dwiseneuro"), "readouts": nn.ModuleDict(readouts)})
    assert list(from_published(state, model.state_dict())) == list(model.state_dict())


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("variant", ["perturbed", "init_repo", "init_default"])
def test_published_loss_and_gradients(published, variant, recompute):
    readouts = {name: GroupedLinearReadout((100, 1, 1), count) for name, count in zip("abc", (11, 14, 9), strict=True)}
    model = nn.ModuleDict({"core": small(recompute), "readouts": nn.ModuleDict(readouts)}).eval()
    state = read(published / f"state_{variant}.safetensors")
    model.load_state_dict(from_published({"nn_state_dict": state}, model.state_dict(), "abc"))
    inputs = {name: torch.tensor(value) for name, value in np.load(published / "inputs.npz").items()}
    described = json.loads((published / "reference.json").read_text())["variants"][variant]
    features, share = model["core"].encode(inputs["x"]), inputs["mice_weights"] / inputs["mice_weights"].sum()
    loss = 0
    for number, name in enumerate("abc"):
        rates = F.softplus(model["readouts"][name](features), beta=0.07, threshold=20)
        each = F.poisson_nll_loss(rates, inputs[f"target{number}"], log_input=False, reduction="none")
        loss = loss + (each * share[:, number, None, None]).sum()
    assert loss.item() == pytest.approx(described["loss"], rel=1e-6)
    loss.backward()
    norms = {name: torch.tensor(norm or 0.0) for name, norm in described["grad_norms"].items()}
    found = dict(model.named_parameters())
    for name, norm in from_published(norms, animals="abc").items():
        assert found[name].grad.norm().item() == pytest.approx(norm.item(), rel=1e-4), name


@pytest.mark.parametrize(("name", "parameters"), [("dwiseneuro", 9_076_028), ("dwiseneuro_distillation", 8_478_360)])
def test_published_sizes(name, parameters):
    with torch.device("meta"):
        core = create_model(name)
    assert sum(p.numel() for p in core.parameters()) == parameters
    assert core.output_shape(16, 36, 64) == (4096, 16, 1, 1)


def test_computing_again_changes_neither_features_nor_gradients():
    torch.manual_seed(0)
    keeping = small(False).train()
    again = small(True).train()
    again.load_state_dict(keeping.state_dict())
    signals = torch.randn(2, 1, 6, 10, 14), torch.randn(2, 2, 6), torch.randn(2, 2, 6)
    gradients, features = [], []
    for core in (keeping, again):
        torch.manual_seed(1)
        features.append(core(*signals))
        features[-1].square().mean().backward()
        gradients.append([p.grad for p in core.parameters()])
    torch.testing.assert_close(*features)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for key, value in keeping.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[key], msg=f"statistics of {key} moved twice")


def test_behaviour_fills_the_padding_and_video_does_not():
    core = small().eval()
    video, behavior, pupil = torch.randn(1, 1, 6, 10, 14), torch.randn(1, 2, 6), torch.randn(1, 2, 6)
    before = core(video, behavior, pupil)
    assert before.shape == (1, *core.output_shape(6, 10, 14))
    assert not torch.allclose(core(video, behavior + 1, pupil), before)
    assert not torch.allclose(core(video, behavior, pupil + 1), before)


def test_shortcuts_repeat_channels_in_turn():
    found = tiled(torch.arange(3.0).view(1, 3, 1, 1), 8)
    assert found.flatten().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
