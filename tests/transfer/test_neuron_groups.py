"""Groups of neurons: one per area and animal; what is left out has a reason."""

import dataclasses

import numpy as np
import pytest

from neural_data.recording import Recording
from neural_data.reliability import split_half_reliability
from neural_data.simulate import SimulationConfig, simulate
from neural_data.tables import neuron_table, trial_table
from transfer.config import PredictivityConfig
from transfer.neuron_groups import neuron_groups


def test_neurons_are_excluded_by_what_is_wrong_with_them():
    recording, truth = simulate(
        SimulationConfig(
            animals=1, areas=["VISp"], neurons_per_area=16, stimuli=100, repeats=20, size=32, reliability=0.9,
            dead_neurons=0.25,
        )
    )  # fmt: skip
    responses = np.array(recording.responses)
    rng = np.random.default_rng(0)
    alive = np.flatnonzero(truth.kind != "dead")
    noise, gap, gone = alive[:3]
    responses[:, noise] = rng.poisson(2, len(responses))
    responses[recording.trials["stimulus"] == 5, gap] = np.nan
    responses[:, gone] = np.nan
    changed = dataclasses.replace(recording, responses=responses)
    (group,), excluded = neuron_groups(changed, PredictivityConfig(halvings=6))
    reasons = excluded.set_index("neuron_id")["reason"].to_dict()
    names = recording.neurons["neuron_id"]
    assert {names[n] for n in np.flatnonzero(truth.kind == "dead")} == {n for n, r in reasons.items() if r == "silent"}
    assert reasons[names[noise]] == "unreliable"
    assert reasons[names[gap]] == "unscored"
    assert reasons[names[gone]] == "unscored"
    assert not set(group.neurons["neuron_id"]) & {names[n] for n in (noise, gap, gone)}
    assert len(group.neurons) + len(excluded) == 16
    assert np.isfinite(group.responses).all()
    kept = names.isin(group.neurons["neuron_id"]).to_numpy()
    expected = split_half_reliability(recording.repeats(recording.animals[0]).responses, 6)[kept]
    np.testing.assert_allclose(group.neurons["reliability"], expected)
    assert (group.neurons["reliability"] >= 0.5).all()


def grey_recording(responses: np.ndarray, animal: list[str] | str = "m", area: list[str] | str = "") -> Recording:
    """Responses (repeats, stimuli, neurons) to random stimuli."""
    repeats, stimuli, neurons = responses.shape
    tier = np.where(np.arange(stimuli) < 6, "train", "test")
    return Recording(
        name="small",
        stimuli=np.random.default_rng(0).integers(0, 256, (stimuli, 32, 32), np.uint8),
        trials=trial_table(
            np.tile(np.arange(stimuli), repeats), np.repeat(np.arange(repeats), stimuli), np.tile(tier, repeats)
        ),
        responses=responses.reshape(-1, neurons),
        neurons=neuron_table([f"n{i}" for i in range(neurons)], animal, area),
    )


@pytest.fixture
def responses() -> np.ndarray:
    """(6, 12, 5), reliable."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(1, 12, 5)) + 0.1 * rng.normal(size=(6, 12, 5))


def test_each_area_of_each_animal_is_a_group(responses):
    recording = grey_recording(responses, ["a", "a", "b", "a", "b"], ["V1", "LM", "V1", "V1", "V1"])
    groups, excluded = neuron_groups(recording, PredictivityConfig(halvings=4))
    assert [(group.animal, group.area, list(group.neurons["neuron_id"])) for group in groups] == [
        ("a", "V1", ["n0", "n3"]), ("a", "LM", ["n1"]), ("b", "V1", ["n2", "n4"]),
    ]  # fmt: skip
    assert not len(excluded)
    np.testing.assert_array_equal(groups[0].responses, responses[:, :, [0, 3]])


def test_stimuli_seen_once_are_left_out_and_said(responses, capsys):
    responses[1:, 3] = np.nan
    (group,), _ = neuron_groups(grey_recording(responses), PredictivityConfig(halvings=4))
    assert group.stimuli.tolist() == [0, 1, 2, *range(4, 12)]
    assert group.responses.shape == (6, 11, 5)
    assert "animal m: 1 stimuli that it saw only once are left out" in capsys.readouterr().err


def test_only_the_tier_that_is_asked_for(responses):
    (group,), _ = neuron_groups(grey_recording(responses), PredictivityConfig(halvings=4, tier="train"))
    assert group.stimuli.tolist() == list(range(6))


def test_too_few_repeated_stimuli_are_one_line(responses):
    responses[1:, 3:] = np.nan
    with pytest.raises(ValueError, match=r"animal 'm' saw 3 stimuli at least twice; a split .* needs 4"):
        neuron_groups(grey_recording(responses), PredictivityConfig())
