"""Modulators: neuralpredictors' and ViV1T's numbers, their plain operations, gradients, causality."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from transfer.modulators import (
    MODULATORS,
    VIV1T_MODES,
    GainModulator,
    HistoryModulator,
    RecurrentModulator,
    SharedHistoryModulator,
    StateModulator,
)
from transfer.published_parts import from_published
from transfer.shifters import MLPShifter
from transfer.state_gaussian_readout import StateGaussianReadout


def read(file):
    """Arrays of a reference case as tensors."""
    if not file.exists():
        pytest.skip(f"{file.name} is not among the reference values here")
    with np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def part(values, prefix):
    """Entries below a prefix."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def test_gain(shared):
    values = read(shared / "reference/values/static/shifter/mlp_modulator.npz")
    modulator = GainModulator(5, hidden=4, gamma=0.1)
    modulator.load_state_dict(part(values, "sd/a."))
    torch.testing.assert_close(modulator(values["in/x"], values["in/behavior"]), values["out/a"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(modulator.regularizer(), values["out/reg"])


def test_gain_of_video_and_of_several_parameters():
    modulator = GainModulator(4, behavior_inputs=2)
    responses, behavior = torch.randn(3, 4, 5), torch.randn(3, 2, 8)
    found = modulator(responses, behavior)
    torch.testing.assert_close(found[..., 1], modulator(responses[..., 1], behavior[..., 4]))
    assert (found.abs() >= responses.abs()).all()
    two = GainModulator(4, behavior_inputs=2, parameters=2)
    assert two(responses[None].expand(2, -1, -1, -1), behavior).shape == (2, 3, 4, 5)
    with pytest.raises(ValueError, match="takes behavior"):
        modulator(responses)


OPTIONS = {"mod1_mlp": {}, "mod2_gru": {"hidden": 6}, "mod3_mlpv2": {}, "mod4_mlpv3": {}}


@pytest.mark.parametrize("animal", ["A", "F"])
@pytest.mark.parametrize("variant", OPTIONS)
def test_viv1t(shared, variant, animal):
    """From the core's features to the rates; A's gradients too, of the published loss."""
    folder = shared / "reference/values/video/viv1t_competition"
    outputs, inputs = read(folder / f"outputs_{variant}_perturbed.npz"), read(folder / "inputs.npz")
    weights = load_file(folder / f"state_{variant}_perturbed.safetensors")
    core, coordinates = outputs[f"core_{animal}"], inputs[f"coords_{animal}"][:, :2]
    kind = MODULATORS[VIV1T_MODES[int(variant[3])]]
    parts = torch.nn.ModuleDict(
        {
            "readouts": StateGaussianReadout((core.shape[1], *core.shape[3:]), len(coordinates), coordinates),
            "shifters": MLPShifter(),
            "modulators": kind(len(coordinates), **OPTIONS[variant]),
        }
    ).eval()
    for name, module in parts.items():
        module.load_state_dict(from_published(part(weights, f"{name}.{animal}.")))
    behavior, pupil = inputs["behavior"], inputs["pupil"]
    responses = parts["readouts"](core, parts["shifters"](pupil), behavior, pupil)
    logits = parts["modulators"](responses, behavior, pupil)
    torch.testing.assert_close(logits.exp(), outputs[f"y_{animal}"], rtol=1e-5, atol=1e-5)
    if animal == "A":
        torch.testing.assert_close(logits, outputs["y_A_noact"], rtol=1e-5, atol=1e-5)
        reference = json.loads((folder / "reference.json").read_text())["variants"][variant]
        (logits.exp() - inputs["target_A"][..., -logits.shape[-1] :]).square().mean().backward()
        norms = part(reference["grad_norms_A_perturbed"], "modulators.A.")
        assert norms
        for name, parameter in parts["modulators"].named_parameters():
            assert float(parameter.grad.norm()) == pytest.approx(norms[name], rel=1e-4), name


def states(frames=12, batch=2):
    """Behaviour and pupil centre."""
    return torch.randn(batch, 2, frames), torch.randn(batch, 2, frames)


def test_recurrent_is_a_cell_frame_by_frame():
    """The published operations: a GRU cell from zeros, seeing responses plus encoded state."""
    torch.manual_seed(0)
    modulator = RecurrentModulator(7, hidden=6)
    responses, (behavior, pupil) = torch.randn(2, 7, 9), states()
    cell = torch.nn.GRUCell(7, 6)
    state = modulator.state_dict()
    cell.load_state_dict({name.removesuffix("_l0")[4:]: state[name] for name in state if name.startswith("gru.")})
    hidden, expected = torch.zeros(2, 6), []
    for frame in range(9):
        seen = torch.cat((behavior, pupil), 1)[..., frame + 3]
        hidden = cell(responses[..., frame] + modulator.state_encoder(seen), hidden)
        expected.append(responses[..., frame] + modulator.decoder(hidden))
    torch.testing.assert_close(modulator(responses, behavior, pupil), torch.stack(expected, -1))


def test_recurrent_reads_published_names():
    cell = torch.nn.GRUCell(7, 6)
    published = {f"gru_cell.{name}": value for name, value in cell.state_dict().items()}
    modulator = RecurrentModulator(7, 6)
    own = {name: value for name, value in modulator.state_dict().items() if not name.startswith("gru.")}
    modulator.load_state_dict(from_published(published | own))
    assert torch.equal(modulator.gru.weight_ih_l0, cell.weight_ih)


def unfolded(signal, size):
    """Windows of `size` frames that end with each frame, zeros before the first."""
    return F.pad(signal, (size - 1, 0)).unfold(-1, size, 1)


def test_histories_in_the_published_operations():
    torch.manual_seed(0)
    responses, (behavior, pupil) = torch.randn(2, 7, 9), states()
    state = torch.cat((behavior, pupil), 1)[..., 3:]
    modulator = HistoryModulator(7)
    before = F.pad(responses, (5, 0)).unfold(-1, 5, 1)[:, :, :-1]
    expected = responses * modulator.history_encoder(before).squeeze(-1).sigmoid()
    torch.testing.assert_close(
        modulator(responses, behavior, pupil), expected + modulator.behavior_encoder(state.mT).tanh().mT
    )
    modulator = SharedHistoryModulator(7)
    of_states = unfolded(state, 6).transpose(1, 2).flatten(2)[:, None].expand(-1, 7, -1, -1)
    both = torch.cat((unfolded(responses, 6), of_states), -1)
    expected = responses + modulator.encoder(both).squeeze(-1).tanh()
    torch.testing.assert_close(modulator(responses, behavior, pupil), expected)


@pytest.mark.parametrize("name", MODULATORS)
def test_the_future_has_no_say(name):
    torch.manual_seed(0)
    modulator = MODULATORS[name](5, **({"behavior_inputs": 2} if name == "gain" else {}))
    responses, (behavior, pupil) = torch.randn(2, 5, 12), states()
    before = modulator(responses, behavior, pupil)
    for signal in (responses, behavior, pupil):
        signal[..., 8:] += 1
    after = modulator(responses, behavior, pupil)
    torch.testing.assert_close(after[..., :8], before[..., :8])
    assert not torch.allclose(after[..., 8], before[..., 8])


def test_parts_can_be_left_out():
    responses, (behavior, pupil) = torch.randn(2, 5, 12), states()
    nothing = HistoryModulator(5, history=0, behavior="none")
    assert torch.equal(nothing(responses), responses)
    two = HistoryModulator(5, behavior="behavior")
    assert torch.equal(two(responses, behavior), two(responses, behavior, pupil))
    assert torch.equal(StateModulator(5, "identity").modulator[1](responses), responses)


def test_mistakes():
    with pytest.raises(ValueError, match="behavior is 'all'"):
        HistoryModulator(5, behavior="all")
    with pytest.raises(ValueError, match="activation is 'relu', expected one of tanh, sigmoid, identity"):
        StateModulator(5, "relu")
    with pytest.raises(ValueError, match="behavior and pupil_center must be given"):
        RecurrentModulator(5)(torch.randn(1, 5, 3))
