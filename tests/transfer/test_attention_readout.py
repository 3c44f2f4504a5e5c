"""Attention readouts: neuralpredictors' and ViV1T's numbers and gradients, by which position is attended."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from transfer.activations import published_activation
from transfer.attention_readout import AttentionReadout, QueryAttentionReadout
from transfer.published_parts import from_published

IN_SHAPE, NEURONS = (6, 9, 13), 7


def read(file):
    """Arrays of a reference case as tensors."""
    with np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def part(values, prefix):
    """Entries below a prefix."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("name", "layers", "kernel"), [("attention_1layer", 1, 1), ("attention_2layer_k3", 2, 3)])
def test_neuralpredictors(shared, name, layers, kernel):
    values = read(shared / f"reference/values/static/readout/{name}.npz")
    readout = AttentionReadout(IN_SHAPE, NEURONS, attention_layers=layers, attention_kernel=kernel).eval()
    readout.load_state_dict(part(values, "sd/"))
    torch.testing.assert_close(readout(values["in/x"]), values["out/eval"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(readout.regularizer(), values["out/reg_sum"])


def test_gradients_of_the_published_operations():
    torch.manual_seed(0)
    readout = AttentionReadout(IN_SHAPE, NEURONS, attention_layers=2, attention_kernel=3, init_noise=1.0)
    x = torch.randn(3, *IN_SHAPE, requires_grad=True)
    scores = readout.attention(x)
    attention = F.softmax(scores.flatten(2), -1).view_as(scores)
    expected = torch.einsum("bcn,nc->bn", torch.einsum("bnwh,bcwh->bcn", attention, x), readout.features)
    inputs = [x, readout.features, readout.attention.conv0.weight, readout.attention.conv2.weight]
    for ours, theirs in zip(
        *(torch.autograd.grad(each.square().sum(), inputs) for each in (readout(x), expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def viv1t(shared, animal):
    """ViV1T's reference model from its core's features on: responses, the reference's, the readout, the loss."""
    folder = shared / "reference/values/video/viv1t_closed_loop"
    outputs, inputs = (read(folder / f) for f in ("outputs_readout_attention_perturbed.npz", "inputs.npz"))
    weights = load_file(folder / "state_readout_attention_perturbed.safetensors")
    core, expected = outputs[f"core_{animal}"], outputs[f"y_{animal}"]
    readout = QueryAttentionReadout((core.shape[1], *core.shape[3:]), expected.shape[1], embedding=16).eval()
    torch.testing.assert_close(
        readout.keys_values.position_embedding.twod_pe, weights["readouts.position_embedding.twod_pe"]
    )
    mine = from_published(part(weights, f"readouts.{animal}."), part(weights, "readouts."))
    readout.load_state_dict(mine)
    found = published_activation("viv1t_closed_loop", 1)(readout(core))
    return found, expected, readout, (found - inputs[f"target_{animal}"]).square().mean()


@pytest.mark.parametrize("animal", ["A", "F"])
def test_viv1t(shared, animal):
    found, expected, *_ = viv1t(shared, animal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_viv1t_gradient_norms(shared):
    *_, readout, loss = viv1t(shared, "A")
    file = shared / "reference/values/video/viv1t_closed_loop/reference.json"
    norms = json.loads(file.read_text())["variants"]["readout_attention"]["grad_norms_A_perturbed"]
    loss.backward()
    for name in ("features", "neuron_query", "bias"):
        found = float(readout.get_parameter(name).grad.norm())
        assert found == pytest.approx(norms[f"readouts.A.{name}"], rel=1e-4), name
    found = float(readout.keys_values.to_kv.weight.grad.norm())
    assert found == pytest.approx(norms["readouts.to_kv.weight"], rel=1e-4)


def test_a_sharp_query_reads_one_position():
    torch.manual_seed(0)
    readout = AttentionReadout((2, 4, 5), 2)
    with torch.no_grad():
        readout.attention[-1].weight[:] = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])[:, :, None, None]
        readout.features[:] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    x = torch.randn(3, 2, 4, 5)
    flat = x.flatten(2)
    expected = torch.stack([flat[range(3), 1 - n, flat[:, n].argmax(1)] for n in range(2)], 1)
    torch.testing.assert_close(readout(x), expected)


def test_animals_share_keys_and_values():
    first = QueryAttentionReadout((8, 4, 5), 3, embedding=6, heads=2, temperature_per_neuron=True)
    second = QueryAttentionReadout((8, 4, 5), 2, embedding=6, heads=2, keys_values=first.keys_values)
    assert second(torch.randn(2, 8, 3, 4, 5)).shape == (2, 2, 3)
    assert sum(each.numel() for each in torch.nn.ModuleList([first, second]).parameters()) == 3 * 14 + 2 * 13 + 96


def test_dropped_neurons_and_video():
    torch.manual_seed(0)
    for readout in (AttentionReadout((8, 4, 5), 5), QueryAttentionReadout((8, 4, 5), 5, temperature_per_neuron=True)):
        for parameter in readout.parameters():
            torch.nn.init.normal_(parameter)
        readout.eval()
        video = torch.randn(2, 8, 3, 4, 5)
        before = readout(video)
        torch.testing.assert_close(before[..., 1], readout(video[:, :, 1]))
        readout.keep_neurons([4, 0])
        torch.testing.assert_close(readout(video), before[:, [4, 0]])


def test_mistakes():
    with pytest.raises(ValueError, match="attention_kernel is 2, expected an odd number"):
        AttentionReadout(IN_SHAPE, NEURONS, attention_kernel=2)
    with pytest.raises(ValueError, match="a multiple of 4 channels, found 6"):
        QueryAttentionReadout(IN_SHAPE, NEURONS)
