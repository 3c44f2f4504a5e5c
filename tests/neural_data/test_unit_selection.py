"""Selection of units and animals: against mouse-vision's steps done one by one; excluded units have their reasons."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from neural_data.recording import Recording
from neural_data.reliability import split_half_reliability
from neural_data.tables import neuron_table, trial_table
from neural_data.unit_selection import (
    NEUROPIXELS,
    TWO_PHOTON,
    SelectionRule,
    enough_units,
    select_units,
    unit_reasons,
)

REPEATS, STIMULI, BINS = 4, 5, 8


def recorded(seed=0, animals=6, dynamic=True, per_area=(3, 9)):
    """Responses of animals with different numbers of units in three areas, of which one is none of cortex."""
    rng = np.random.default_rng(seed)
    tables = []
    for animal in range(animals):
        for area in ("VISp", "VISl", "LP"):
            n = int(rng.integers(*per_area))
            tables.append(neuron_table([f"{animal}{area}{i}" for i in range(n)], str(animal), area))
    neurons = pd.concat(tables, ignore_index=True)
    n = len(neurons)
    neurons["run_pval_ns"] = np.where(rng.random(n) < 0.2, np.nan, rng.random(n) ** 2)
    responses = rng.poisson(3.0, (REPEATS * STIMULI, n, BINS)).astype(np.float32)
    responses[-STIMULI:, (neurons["animal"] == "1").to_numpy()] = np.nan
    # The reliability of a population rises and falls, at another time in each animal.
    peak = rng.integers(1, BINS - 1, animals)[neurons["animal"].astype(int)]
    reliability = 0.75 - 0.15 * np.abs(np.arange(BINS)[:, None] - peak) + rng.normal(0, 0.12, (BINS, n))
    reliability[:, rng.random(n) < 0.1] = np.nan
    return Recording(
        name="many",
        stimuli=np.zeros((STIMULI, 4, 4), np.uint8),
        trials=trial_table(np.tile(np.arange(STIMULI), REPEATS), np.repeat(np.arange(REPEATS), STIMULI)),
        responses=responses if dynamic else responses[..., 0],
        neurons=neurons if dynamic else neurons.assign(reliability_mean=reliability[0]),
        sampling_rate_hz=100.0 if dynamic else None,
        response_start_ms=20.0 if dynamic else 0.0,
        statistics={"splithalf_r_mean": reliability} if dynamic else {},
    )


def step_by_step(recording, rule, window=None):
    """The three steps with loops, as the sheet of facts words them: {(area, animal): (neuron_ids, averaged)}."""
    reliability = recording.statistics["splithalf_r_mean"]
    selected = {}
    for area in ("VISp", "VISl"):
        of_area = {}
        for animal in recording.animals:
            rows = np.flatnonzero((recording.neurons["area"] == area) & (recording.neurons["animal"] == animal))
            run_p = recording.neurons["run_pval_ns"].to_numpy()
            rows = np.array([r for r in rows if np.any(reliability[:, r] >= rule.min_reliability)
                             and (run_p[r] > rule.min_run_p or np.isnan(run_p[r]))], int)  # fmt: skip
            if not len(rows):
                continue
            median = np.nanmedian(reliability[:, rows], axis=1)
            if not median.max() >= rule.min_median:
                continue
            bins, best = np.flatnonzero(median >= rule.min_median), []
            run = []
            for b in bins:
                run = [*run, b] if run and b == run[-1] + 1 else [b]
                best = run if len(run) > len(best) else best
            averaged = np.asarray(recording.responses, float)[:, rows][..., window or best].mean(axis=2)
            of_area[animal] = (rows, averaged)
        if of_area:
            enough = int(np.ceil(np.percentile([len(rows) for rows, _ in of_area.values()], 75)))
            selected |= {(area, a): kept for a, kept in of_area.items() if len(kept[0]) >= enough}
    return selected


@pytest.mark.parametrize("seed", range(5))
def test_the_steps_of_mouse_vision(seed):
    recording = recorded(seed)
    expected = step_by_step(recording, NEUROPIXELS)
    found, excluded = select_units(recording)
    assert not found.dynamic
    groups = found.neurons.groupby(["area", "animal"]).indices
    assert set(groups) == set(expected)
    for group, places in groups.items():
        rows, averaged = expected[group]
        assert found.neurons["neuron_id"].iloc[places].tolist() == recording.neurons["neuron_id"].iloc[rows].tolist()
        np.testing.assert_allclose(found.responses[:, places], averaged, rtol=1e-6)
    assert len(excluded) + len(found.neurons) == len(recording.neurons)
    assert (excluded["reason"] != "").all()
    assert set(excluded["neuron_id"]).isdisjoint(found.neurons["neuron_id"])
    assert f"{len(excluded)} of {len(recording.neurons)} units left out" in found.notes[-1]


def test_a_window_that_is_named():
    recording = recorded(3)
    expected = step_by_step(recording, NEUROPIXELS, window=[2, 3, 4])
    found, _ = select_units(recording, window_ms=(40, 70))
    for group, places in found.neurons.groupby(["area", "animal"]).indices.items():
        np.testing.assert_allclose(found.responses[:, places], expected[group][1], rtol=1e-6)
    assert set(found.neurons["window_start_ms"]) == {40.0}
    assert set(found.neurons["window_stop_ms"]) == {70.0}
    assert found.response_start_ms == 40.0


def test_missing_repeats_stay_missing():
    found, _ = select_units(recorded(), SelectionRule(min_reliability=0, min_units=0))
    of_animal = (found.neurons["animal"] == "1").to_numpy()
    assert np.isnan(found.responses[-STIMULI:, of_animal]).all()
    assert not np.isnan(found.responses[:, ~of_animal]).any()
    assert found.repeats("1").responses.shape[0] == REPEATS - 1


def test_two_photon_without_a_median():
    recording = recorded(dynamic=False)
    named = recording.neurons.rename(columns={"run_pval_ns": "p_run_mod_ns"})
    recording = dataclasses.replace(recording, neurons=named)
    rule = dataclasses.replace(TWO_PHOTON, min_reliability=0.4)
    found, excluded = select_units(recording, rule)
    for area in ("VISp", "VISl"):
        table = recording.neurons[recording.neurons["area"] == area]
        good = (table["reliability_mean"] >= 0.4) & ~(table["p_run_mod_ns"] <= 0.05)
        counts = good.groupby(table["animal"]).sum()  # animals without any count, too
        enough = int(np.ceil(np.percentile(counts, 75)))
        kept = table[good & table["animal"].isin(counts[counts >= enough].index)]
        assert found.neurons.loc[found.neurons["area"] == area, "neuron_id"].tolist() == kept["neuron_id"].tolist()
    assert found.responses.dtype == np.float32
    rows = recording.neurons.index[recording.neurons["neuron_id"].isin(found.neurons["neuron_id"])]
    np.testing.assert_array_equal(found.responses, recording.responses[:, rows])
    assert len(excluded) + len(found.neurons) == len(recording.neurons)


def test_every_reason():
    reliability = np.array([[0.6, 0.4, np.nan, 0.9, 0.9, 0.2], [0.1, 0.49, np.nan, 0.2, 0.2, 0.5]])
    run_p = np.array([np.nan, 0.9, 0.9, 0.05, 0.051, np.nan])
    assert unit_reasons(reliability, run_p, NEUROPIXELS).tolist() == [
        "",
        "reliability is below 0.5 in all bins",
        "reliability is below 0.5 in all bins",
        "running: p is at most 0.05",
        "",
        "",
    ]
    _, excluded = select_units(recorded())
    starts = {reason.split()[0] for reason in excluded["reason"]}
    assert starts == {"reliability", "running:", "area", "the"}
    areas = excluded["reason"].str.startswith("area is none of VISp")
    assert set(excluded["area"][areas]) == {"LP"}


def test_how_many_units_an_animal_needs():
    counts = np.array([3, 10, 4, 8])
    assert enough_units(counts, "75th percentile") == 9
    assert enough_units(counts, "median") == 6
    assert enough_units(counts, 5) == 5
    with pytest.raises(ValueError, match=r"min_units: found 'most', expected '75th percentile', 'median' or a number"):
        enough_units(counts, "most")


def test_reliability_is_estimated_where_it_is_unknown():
    rng = np.random.default_rng(2)
    rates = rng.gamma(1.0, 4.0, (30, 6, 3))
    trials = trial_table(np.tile(np.arange(30), 12), np.repeat(np.arange(12), 30))
    recording = Recording(
        name="unknown",
        stimuli=np.zeros((30, 4, 4), np.uint8),
        trials=trials,
        responses=rng.poisson(np.tile(rates, (12, 1, 1))).astype(np.float32),
        neurons=neuron_table(range(6), ["a"] * 3 + ["b"] * 3, "VISp"),
        sampling_rate_hz=20.0,
    )
    seen = recording.repeats("b").responses
    estimated = np.stack([split_half_reliability(seen[..., time]) for time in range(3)])
    threshold = float(np.sort(estimated.max(axis=0))[1])
    rule = SelectionRule(min_reliability=threshold, min_units=1)
    found, _ = select_units(recording, rule, window_ms=(0, 150))
    kept = found.neurons.loc[found.neurons["animal"] == "b", "neuron_id"]
    assert kept.tolist() == [str(3 + unit) for unit in range(3) if estimated[:, unit].max() >= threshold]


def test_behaviour_is_averaged_too():
    recording = recorded(animals=1)
    n = len(recording.trials)
    behavior = np.random.default_rng(0).normal(size=(n, 2, BINS))
    whole = dataclasses.replace(recording, behavior=behavior, pupil_center=behavior)
    found, _ = select_units(whole, SelectionRule(min_units=1))
    np.testing.assert_allclose(found.behavior, behavior.mean(axis=2))
    np.testing.assert_allclose(found.pupil_center, behavior.mean(axis=2))


def test_mistakes():
    recording = recorded()
    with pytest.raises(ValueError, match=r"many: no unit is left of \d+; most often: "):
        select_units(recording, SelectionRule(min_reliability=5))
    with pytest.raises(ValueError, match="reliability has shape"):
        select_units(recording, reliability=np.zeros(3))
    with pytest.raises(ValueError, match="name window_ms, or give"):
        select_units(recording, dataclasses.replace(TWO_PHOTON, min_reliability=0))
    with pytest.raises(ValueError, match="have no time axis"):
        select_units(recorded(dynamic=False), window_ms=(0, 10))
    video = dataclasses.replace(recording, stimuli=np.zeros((STIMULI, BINS, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="stimuli are videos"):
        select_units(video)
