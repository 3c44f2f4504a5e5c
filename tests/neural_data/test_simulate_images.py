"""Simulation: what is written down as the truth is what generated the responses."""

import numpy as np
import pandas as pd
import pytest

from neural_data.simulate import FIELD_SIZE, SimulationConfig, drive, gabor_filters, simulate

SMALL = {"size": 32, "stimuli": 40, "neurons_per_area": 20, "repeats": 10}


@pytest.fixture(scope="module")
def default():
    return simulate(SimulationConfig(size=32, missing_repeats=5))


def columnwise_correlation(a, b):
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


def test_shapes_and_tables(default):
    recording, truth = default
    assert recording.stimuli.shape == (118, 32, 32)
    assert recording.stimuli.dtype == np.uint8
    assert recording.responses.shape == (118 * 20, 240)
    assert truth.rates.shape == (118, 240)
    assert truth.receptive_fields.shape == (240, 32, 32)
    assert truth.receptive_fields.dtype == np.float32
    assert recording.animals == ["animal1", "animal2", "animal3"]
    assert recording.neurons["area"].value_counts().to_dict() == {"VISp": 120, "VISl": 120}
    assert len(truth.gabors) == 240


def test_kinds_are_shared_out_as_asked(default):
    kinds = pd.Series(default[1].kind).value_counts().to_dict()
    assert kinds == {"dead": 12, "simple": 114, "complex": 114}


def test_dead_neurons_never_fire_and_the_others_do(default):
    recording, truth = default
    dead = truth.kind == "dead"
    total = np.nansum(recording.responses, axis=0)
    assert (total[dead] == 0).all()
    assert (truth.rates[:, dead] == 0).all()
    assert (truth.receptive_fields[dead] == 0).all()
    assert np.isnan(truth.reliability[dead]).all()
    assert (total[~dead] > 0).all()
    assert (truth.rates[:, ~dead].max(axis=0) > 0).all()


def test_counts_are_poisson_with_the_true_rates(default):
    recording, truth = default
    counts = recording.repeats("animal1")
    rates = truth.rates[:, counts.neurons]
    assert (counts.responses == np.round(counts.responses)).all()
    deviation = (counts.responses.mean(axis=0) - rates) / np.sqrt(np.maximum(rates, 1e-12) / 20)
    # Over many stimuli and neurons the squared standardised deviation of a Poisson mean averages 1.
    assert abs((deviation[rates > 0.05] ** 2).mean() - 1) < 0.1


def test_first_animal_has_all_repeats_and_others_fewer_on_half_of_the_stimuli(default):
    recording, _ = default
    counted = {
        animal: (~np.isnan(recording.repeats(animal).responses)).any(axis=2).sum(axis=0) for animal in recording.animals
    }
    assert (counted["animal1"] == 20).all()
    for animal in ("animal2", "animal3"):
        assert sorted(counted[animal]) == [15] * 59 + [20] * 59
    assert (counted["animal2"] != counted["animal3"]).any()


@pytest.mark.parametrize("wanted", [0.5, 0.8])
def test_analytic_reliability_has_the_wanted_median_and_a_spread(wanted):
    config = SimulationConfig(**SMALL, reliability=wanted)
    _, truth = simulate(config)
    alive = truth.kind != "dead"
    assert np.nanmedian(truth.reliability) == pytest.approx(wanted, abs=0.01)
    assert np.nanstd(truth.reliability) > 0.05
    signal, noise = truth.rates[:, alive].var(axis=0, ddof=1), truth.rates[:, alive].mean(axis=0) / config.repeats
    np.testing.assert_allclose(truth.reliability[alive], signal / (signal + noise))


def test_reverse_correlation_recovers_simple_cells(default):
    _, truth = default
    noise = np.random.default_rng(0).integers(0, 256, size=(20000, 32, 32), dtype=np.uint8)
    simple = np.flatnonzero(truth.kind == "simple")[:15]
    responses = drive(noise, truth.gabors.iloc[simple], truth.kind[simple], 1.0)
    average = (responses - responses.mean(axis=0)).T @ (noise.reshape(len(noise), -1) / 127.5 - 1)
    similarity = columnwise_correlation(average.T, truth.receptive_fields[simple].reshape(len(simple), -1).T)
    assert similarity.min() > 0.9


def test_reverse_correlation_finds_nothing_in_complex_cells(default):
    _, truth = default
    noise = np.random.default_rng(0).integers(0, 256, size=(8000, 32, 32), dtype=np.uint8)
    cells = np.flatnonzero(truth.kind == "complex")[:15]
    responses = drive(noise, truth.gabors.iloc[cells], truth.kind[cells], 2.0)
    average = (responses - responses.mean(axis=0)).T @ (noise.reshape(len(noise), -1) / 127.5 - 1)
    similarity = columnwise_correlation(average.T, truth.receptive_fields[cells].reshape(len(cells), -1).T)
    assert np.abs(similarity).max() < 0.5


def test_phase_of_a_grating_matters_to_simple_cells_only(default):
    _, truth = default
    y, x = np.mgrid[:32, :32]
    for kind, low, high in (("simple", 0.95, 1.0), ("complex", 0.0, 0.3)):
        cell = np.flatnonzero(truth.kind == kind)[[0]]
        gabor = truth.gabors.iloc[cell]
        wave = gabor.frequency.item() * (x * np.cos(gabor.orientation.item()) + y * np.sin(gabor.orientation.item()))
        phases = np.linspace(0, 2 * np.pi, 16, endpoint=False)[:, None, None]
        gratings = np.round(127.5 + 127.5 * np.cos(2 * np.pi * wave + phases)).astype(np.uint8)
        responses = drive(gratings, gabor, truth.kind[cell], 1.0)
        modulation = np.ptp(responses) / responses.max()
        assert low <= modulation <= high


def test_contrast_saturates():
    _, truth = simulate(SimulationConfig(**SMALL))
    pattern = truth.receptive_fields[truth.kind == "simple"][0]
    contrasts = np.array([0.1, 0.4, 1.0])[:, None, None]
    images = np.round(127.5 + 127.5 * contrasts * pattern / np.abs(pattern).max()).astype(np.uint8)
    first = np.flatnonzero(truth.kind == "simple")[:1]
    low, middle, high = drive(images, truth.gabors.iloc[first], truth.kind[first], 2.0)[:, 0]
    assert 0 < low < middle < high
    assert high / middle < 0.5 * (1.0 / 0.4) ** 2


def test_exponent_squares_the_response():
    _, truth = simulate(SimulationConfig(**SMALL))
    images = np.random.default_rng(0).integers(0, 256, size=(5, 32, 32), dtype=np.uint8)
    np.testing.assert_allclose(
        drive(images, truth.gabors, truth.kind, 1.0) ** 2, drive(images, truth.gabors, truth.kind, 2.0)
    )


def test_filters_ignore_luminance_and_lie_in_the_centre(default):
    recording, truth = default
    for filters in gabor_filters(truth.gabors, 32):
        np.testing.assert_allclose(filters.sum(axis=(1, 2)), 0, atol=1e-9)
        np.testing.assert_allclose((filters**2).sum(axis=(1, 2)), 1)
    assert truth.gabors[["x", "y"]].min().min() >= 0.3 * 31
    assert truth.gabors[["x", "y"]].max().max() <= 0.7 * 31
    visp = (recording.neurons["area"] == "VISp").to_numpy()
    ratio = truth.gabors["sigma"][~visp].mean() / truth.gabors["sigma"][visp].mean()
    assert ratio == pytest.approx(FIELD_SIZE["VISl"], rel=0.1)


def test_centres_follow_the_position_in_the_area(default):
    recording, truth = default
    for area, sign in (("VISp", 1), ("VISl", -1)):
        inside = (recording.neurons["area"] == area).to_numpy()
        along_x = np.corrcoef(recording.neurons["x_um"][inside], truth.gabors["x"][inside])[0, 1]
        assert sign * along_x > 0.9
        assert np.corrcoef(recording.neurons["y_um"][inside], truth.gabors["y"][inside])[0, 1] > 0.9


def test_the_same_config_gives_the_same_numbers():
    one, again, other = (simulate(SimulationConfig(**SMALL, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one[0].responses, again[0].responses)
    assert np.array_equal(one[1].rates, again[1].rates)
    assert not np.array_equal(one[0].stimuli, other[0].stimuli)


def test_all_dead_and_few_stimuli_are_possible():
    recording, truth = simulate(SimulationConfig(**{**SMALL, "stimuli": 10}, dead_neurons=1.0))
    assert not recording.responses.any()
    assert np.isnan(truth.reliability).all()
    _, truth = simulate(SimulationConfig(**{**SMALL, "stimuli": 10}, complex_cells=0.0, dead_neurons=0.0))
    assert (truth.rates.max(axis=0) > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reliability": 1.0}, "reliability: found 1.0, expected 0.01 to 0.99"),
        ({"repeats": 1}, "repeats: found 1, expected at least 2"),
        ({"areas": ["V1"]}, "areas: found 'V1', expected one of VISp, VISl"),
        ({"areas": []}, "areas: found .*, expected at least one area"),
        ({"areas": ["VISp", "VISp"]}, "expected at least one area and none twice"),
        ({"exponent": 3.0}, "exponent: found 3.0, expected one of 1.0, 2.0"),
        ({"dynamic": True}, "stimuli: is a key of images, found with dynamic=true"),
        ({"missing_repeats": 9}, "missing_repeats: found 9 of 10 repeats, expected 2 to be left"),
    ],
)
def test_mistakes_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        simulate(SimulationConfig(**{**SMALL, **change}))
