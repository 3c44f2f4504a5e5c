"""Predictivity: the published scores, recordings whose truth is known, and runs that resume."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neural_data.arrays import read_arrays, write_arrays
from neural_data.recording import Recording
from neural_data.reliability import halves, pearson, split_half_reliability
from neural_data.simulate import SimulationConfig, Truth, simulate
from neural_data.splits import image_splits
from neural_data.tables import neuron_table, trial_table
from transfer import predictivity as module
from transfer.config import PredictivityConfig
from transfer.predictivity import animal_data, mean_of_defined, predictivity, score_halvings, score_splits


def plain_score(features, half1, half2, train, test, components) -> np.ndarray:
    """The score of one halving, neuron by neuron, with scikit-learn's regression."""
    from sklearn.cross_decomposition import PLSRegression

    def predict(half: np.ndarray) -> np.ndarray:
        model = PLSRegression(components, scale=False, tol=1e-24, max_iter=20_000)
        return model.fit(features[train], half[train]).predict(features[test])

    def corrected(r: float) -> float:
        return 2 * r / (1 + r)

    first, second, scores = predict(half1), predict(half2), []
    for n in range(half1.shape[1]):
        if not np.ptp(half1[:, n]):
            scores.append(np.nan)
            continue
        s1, s2 = half1[test, n], half2[test, n]
        of_model = corrected(np.corrcoef(first[:, n], second[:, n])[0, 1])
        under_root = of_model * corrected(np.corrcoef(s1, s2)[0, 1])
        scores.append(np.corrcoef(first[:, n], s2)[0, 1] / under_root**0.5 if under_root > 0 else np.nan)
    return np.array(scores)


def test_published_scores_of_each_halving(mouse_vision):
    """Halving i of the published values is ours; they were fitted at scikit-learn's loose default tolerance."""
    values = np.load(mouse_vision / "neural" / "noise_estimation.npz")
    half1, half2 = (np.stack(part) for part in zip(*(halves(values["target"], i) for i in range(5)), strict=True))
    splits = values["train_idx"], values["test_idx"]
    found = score_halvings(values["features"], half1, half2, *splits, components=5)
    expected = values["out_model_pls_denominator"]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    exact = [plain_score(values["features"], half1[i], half2[i], *splits, 5) for i in range(5)]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8)
    published = json.loads((mouse_vision / "neural" / "neural.json").read_text())["median_scores"]
    assert np.median(found) == pytest.approx(published["model_pls_denominator"], abs=1e-3)


def test_a_score_without_a_ceiling_is_not_a_number():
    """The mapping is reliable, but on the test stimuli the halves of neurons 0 to 9 contradict each other."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6))
    signal = features @ rng.normal(size=(6, 30))
    half1, half2 = (signal[None] + 0.5 * rng.normal(size=(3, 40, 30)) for _ in range(2))
    train, test = np.arange(20), np.arange(20, 40)
    half2[:, 20:, :10] *= -1
    half1[:, :, 10:20] = half2[:, :, 10:20] = 1.0
    found = score_halvings(features, half1, half2, train, test, 6)
    assert np.isnan(found[:, :20]).all()
    assert np.isfinite(found[:, 20:]).all()
    for h in range(3):
        expected = plain_score(features, half1[h], half2[h], train, test, 6)
        np.testing.assert_allclose(found[h, 20:], expected[20:], rtol=1e-6)


def test_mean_of_defined_leaves_out_what_is_not_a_number():
    scores = np.array([[1.0, np.nan, np.nan], [2.0, 3.0, np.nan]])
    np.testing.assert_array_equal(mean_of_defined(scores), [1.5, 3.0, np.nan])


@pytest.fixture(scope="module")
def known() -> tuple[Recording, Truth]:
    """One animal with 16 neurons of median reliability 0.9, 4 of them dead, and the truth behind it."""
    return simulate(
        SimulationConfig(
            animals=1, areas=["VISp"], neurons_per_area=16, stimuli=100, repeats=20, size=32, reliability=0.9,
            dead_neurons=0.25,
        )
    )  # fmt: skip


def scores_of(features: np.ndarray, recording: Recording, **keys: object) -> tuple[np.ndarray, module.AnimalData]:
    config = PredictivityConfig(**({"splits": 4, "halvings": 10} | keys))
    data = animal_data(recording, recording.animals[0], config)
    return mean_of_defined(np.stack(list(score_splits(features[data.stimuli], data, config)))), data


@pytest.mark.parametrize(("reliability", "at_least"), [(0.9, 0.9), (0.98, 0.97)])
def test_the_true_rates_score_nearly_one_and_random_features_nothing(reliability, at_least):
    """The correction takes out the neurons' noise; what the mapping lacks is due to 59 noisy train stimuli."""
    recording, truth = simulate(
        SimulationConfig(
            animals=1, areas=["VISp"], neurons_per_area=16, repeats=20, size=32, reliability=reliability,
            dead_neurons=0.25,
        )
    )  # fmt: skip
    perfect, data = scores_of(truth.rates[:, truth.kind != "dead"], recording)
    assert len(perfect) == 12
    assert at_least < np.median(perfect) < 1.03
    assert perfect.min() > at_least - 0.1
    noisy = pearson(truth.rates[:, data.neurons], data.half2[0])
    assert np.median(noisy) < np.median(perfect), "without a correction even the truth scores less"
    random, _ = scores_of(np.random.default_rng(0).normal(size=(118, 40)), recording)
    assert abs(np.nanmedian(random)) < 0.2


def test_a_neurons_score_does_not_depend_on_its_unit(known):
    recording, truth = known
    louder = dataclasses.replace(recording, responses=np.asarray(recording.responses) * 1000)
    features = truth.rates[:, truth.kind != "dead"]
    np.testing.assert_allclose(scores_of(features, louder)[0], scores_of(features, recording)[0], rtol=1e-6)


def test_blocks_of_halvings_do_not_change_the_scores(known, monkeypatch):
    recording, truth = known
    expected, _ = scores_of(truth.rates, recording, halvings=7)
    monkeypatch.setattr(module, "BLOCK_HALVINGS", 3)
    np.testing.assert_allclose(scores_of(truth.rates, recording, halvings=7)[0], expected, rtol=1e-10)


def test_neurons_are_excluded_by_what_is_wrong_with_them(known):
    recording, truth = known
    responses = np.array(recording.responses)
    rng = np.random.default_rng(0)
    alive = np.flatnonzero(truth.kind != "dead")
    noise, gap, gone = alive[:3]
    responses[:, noise] = rng.poisson(2, len(responses))
    responses[recording.trials["stimulus"] == 5, gap] = np.nan
    responses[:, gone] = np.nan
    changed = dataclasses.replace(recording, responses=responses)
    data = animal_data(changed, changed.animals[0], PredictivityConfig(halvings=6))
    reasons = data.excluded.set_index("neuron_id")["reason"].to_dict()
    names = recording.neurons["neuron_id"]
    assert {names[n] for n in np.flatnonzero(truth.kind == "dead")} == {n for n, r in reasons.items() if r == "silent"}
    assert reasons[names[noise]] == "unreliable"
    assert reasons[names[gap]] == "unscored"
    assert reasons[names[gone]] == "unscored"
    assert not set(data.neurons) & {noise, gap, gone}
    assert len(data.neurons) + len(data.excluded) == 16
    assert np.isfinite(data.half1).all()
    assert np.isfinite(data.half2).all()
    expected = split_half_reliability(recording.repeats(recording.animals[0]).responses, 6)[data.neurons]
    np.testing.assert_allclose(data.reliability, expected)
    assert (data.reliability >= 0.5).all()


def grey_recording(responses: np.ndarray, animal: list[str] | str = "m") -> Recording:
    """Responses (repeats, stimuli, neurons) to random stimuli."""
    repeats, stimuli, neurons = responses.shape
    return Recording(
        name="small",
        stimuli=np.random.default_rng(0).integers(0, 256, (stimuli, 32, 32), np.uint8),
        trials=trial_table(np.tile(np.arange(stimuli), repeats), np.repeat(np.arange(repeats), stimuli)),
        responses=responses.reshape(-1, neurons),
        neurons=neuron_table([f"n{i}" for i in range(neurons)], animal),
    )


def test_stimuli_seen_once_are_left_out_and_said(capsys):
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(1, 12, 5)) + 0.1 * rng.normal(size=(6, 12, 5))
    responses[1:, 3] = np.nan
    data = animal_data(grey_recording(responses), "m", PredictivityConfig(halvings=4))
    assert data.stimuli.tolist() == [0, 1, 2, *range(4, 12)]
    assert data.half1.shape == (4, 11, 5)
    assert "animal m: 1 stimuli that it saw only once are left out" in capsys.readouterr().err


def test_too_few_repeated_stimuli_are_one_line():
    responses = np.random.default_rng(0).normal(size=(2, 9, 5))
    responses[1, 3:] = np.nan
    with pytest.raises(ValueError, match=r"animal 'm' saw 3 stimuli at least twice; a split .* needs 4"):
        animal_data(grey_recording(responses), "m", PredictivityConfig())


@pytest.fixture
def config(tiny_run, tiny_recording, tmp_path) -> PredictivityConfig:
    return PredictivityConfig(
        str(tiny_run), str(tiny_recording), components=5, splits=2, halvings=4, bootstrap=200, accelerator="cpu",
        stimulus_view="whole", out=str(tmp_path / "scores"),
    )  # fmt: skip


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    found = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("neurons", "predictivity")}
    return found | {name: pd.read_csv(folder / f"{name}.csv") for name in ("predictivity", "excluded")}


def require_same_tables(one: dict[str, pd.DataFrame], two: dict[str, pd.DataFrame]) -> None:
    for name in one:
        pd.testing.assert_frame_equal(one[name], two[name], check_exact=True)


def test_a_run_scores_every_layer_the_random_net_and_pixels(config, tiny_recording, capsys):
    folder = predictivity(config)
    table, excluded = tables(folder)["predictivity"], tables(folder)["excluded"]
    recording = read_arrays(tiny_recording)
    layers = ["act1", "layer1", "layer2", "layer3", "layer4"]
    models = table[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None)
    expected = [(model, layer) for model in ("trained", "random") for layer in layers] + [("pixels", "pixels")]
    assert list(models) == expected
    everything = table[(table["area"] == "all") & (table["animal"] == "all")]
    counts = everything[["neurons", "excluded_silent", "excluded_unreliable", "excluded_unscored"]]
    assert (counts.sum(axis=1) == len(recording.neurons)).all()
    assert (everything["excluded_silent"] == 2).all()
    assert len(excluded) == len(recording.neurons) - len(tables(folder)["neurons"]) / len(expected)
    assert everything[everything["layer"] == "pixels"]["features"].item() == 3 * 32 * 32
    defined = table[table["median"].notna()]
    assert (defined["low"] <= defined["median"]).all()
    assert (defined["median"] <= defined["high"]).all()
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["kind"]) == ("finished", "predictivity")
    assert (status["checkpoint_epoch"], status["checkpoint_step"]) == (2, 12)
    assert np.isfinite(status["best_layer_score"])
    assert "neurons are scored; excluded: 2 silent" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_score_in_the_table_is_the_mean_over_splits_and_halvings(config, tiny_recording):
    neurons = tables(predictivity(config))["neurons"]
    recording = read_arrays(tiny_recording)
    stimuli = module.prepare_stimuli(
        np.asarray(recording.stimuli), module.load_trained_backbone(config.checkpoint).spec, "whole"
    )
    pixels = stimuli.flatten(1).numpy()
    data = animal_data(recording, recording.animals[1], config)
    one = [
        [plain_score(pixels, data.half1[h], data.half2[h], train, test, 5) for h in range(4)]
        for train, test in image_splits(30, 2, 0.5)
    ]
    expected = np.nanmean(np.nanmean(one, axis=1), axis=0)
    chosen = neurons[(neurons["model"] == "pixels") & (neurons["animal"] == recording.animals[1])]
    np.testing.assert_allclose(chosen["score"], expected, rtol=1e-6)


def test_a_run_goes_on_with_the_pieces_that_are_missing(config, monkeypatch):
    folder = predictivity(config)
    before = tables(folder)
    for name in ("predictivity.csv", "predictivity.parquet", "pieces/trained-layer3.parquet"):
        (folder / name).unlink()
    scored, original = [], module.score_splits
    monkeypatch.setattr(module, "score_splits", lambda *given: scored.append(given) or original(*given))
    assert predictivity(config) == folder
    assert len(scored) == 2, "one layer of two animals"
    require_same_tables(tables(folder), before)


def test_a_run_stopped_in_the_middle_gives_the_same_tables(config, tmp_path, monkeypatch):
    other = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    expected = tables(predictivity(config))
    original, calls = module.score_splits, []

    def stopping(*given: object):
        calls.append(given)
        if len(calls) in (4, 9):
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(module, "score_splits", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            predictivity(other)
    require_same_tables(tables(predictivity(other)), expected)


def test_scores_of_two_checkpoints_are_not_mixed(config, tiny_run, tmp_path):
    newest = sorted((tiny_run / "checkpoints").glob("step-*.pt"))
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    for path in (tiny_run / "checkpoints").iterdir():
        if path.name.startswith(newest[0].name):
            (run / path.name).hardlink_to(path)
    config.checkpoint, config.layers, config.baselines = str(run.parent), ["layer4"], False
    predictivity(config)
    for path in (tiny_run / "checkpoints").iterdir():
        if path.name.startswith(newest[1].name):
            (run / path.name).hardlink_to(path)
    with pytest.raises(FileExistsError, match=rf"holds scores of .*{newest[0].name}, not of .*{newest[1].name}"):
        predictivity(config)


def test_scores_of_an_edited_recording_are_not_taken_for_the_old_ones(config, tiny_recording, tmp_path):
    copy = tmp_path / "recording"
    shutil.copytree(tiny_recording, copy)
    config.recording, config.layers, config.baselines = str(copy), ["layer4"], False
    predictivity(config)
    responses = np.load(copy / "responses.npy")
    responses[0, 0, 0] += 1
    np.save(copy / "responses.npy", responses)
    with pytest.raises(FileExistsError, match="holds scores of recording_sha256"):
        predictivity(config)


def test_an_animal_without_a_reliable_neuron_is_said_and_listed(config, tiny_recording, tmp_path, capsys):
    recording = read_arrays(tiny_recording)
    responses = np.array(recording.responses)
    of_first = (recording.neurons["animal"] == recording.animals[0]).to_numpy()
    responses[:, of_first] = np.random.default_rng(0).poisson(2, (len(responses), of_first.sum()))
    config.recording = str(write_arrays(dataclasses.replace(recording, responses=responses), tmp_path / "noisy"))
    config.layers, config.baselines, config.min_reliability = ["layer4"], False, 0.7
    found = tables(predictivity(config))
    assert f"animal {recording.animals[0]}: no neuron can be scored" in capsys.readouterr().err
    assert set(found["neurons"]["animal"]) == {recording.animals[1]}
    listed = found["excluded"][found["excluded"]["animal"] == recording.animals[0]]
    assert len(listed) == of_first.sum()
    assert set(listed["reason"]) == {"unreliable"}
    row = found["predictivity"].query(f"area == 'VISp' and animal == '{recording.animals[0]}'")
    assert row[["neurons", "excluded_unreliable"]].to_numpy().tolist() == [[0, 5]]
    assert row["median"].isna().all()


def test_animals_that_saw_other_stimuli_are_scored_on_theirs(config, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for animal, stimuli in (("m1", 20), ("m2", 26)):
        signal = rng.normal(size=(stimuli, 4))
        arrays[f"{animal}_images"] = rng.integers(0, 256, (stimuli, 32, 32), np.uint8)
        arrays[f"{animal}_responses"] = signal + 0.3 * rng.normal(size=(6, stimuli, 4))
    np.savez(tmp_path / "two.npz", **arrays)
    config.recording, config.layers = str(tmp_path / "two.npz"), ["layer4"]
    found = tables(predictivity(config))
    assert found["neurons"].groupby("animal")["neuron_id"].nunique().tolist() == [4, 4]


@pytest.mark.parametrize(
    ("keys", "error", "line"),
    [
        ({"checkpoint": None}, ValueError, "checkpoint is not set; see `murine predictivity --help`"),
        ({"recording": None}, ValueError, "recording is not set"),
        ({"checkpoint": "absent"}, FileNotFoundError, "checkpoint 'absent' does not exist"),
        ({"recording": "absent"}, FileNotFoundError, "absent: no such file or folder"),
        ({"layers": ["layer5"]}, ValueError, "the model has no layer 'layer5'; nearest: layer4"),
        ({"min_reliability": 1.0}, ValueError, "no neuron is reliable enough to be scored; lower min_reliability"),
    ],
)
def test_a_mistake_is_one_line(config, keys, error, line):
    with pytest.raises(error, match=line) as raised:
        predictivity(dataclasses.replace(config, **keys))
    assert "\n" not in str(raised.value)


def test_the_random_net_follows_the_seed(config, tmp_path):
    config.layers = ["layer1"]

    def random_scores(**keys: object) -> np.ndarray:
        neurons = tables(predictivity(dataclasses.replace(config, **keys)))["neurons"]
        return neurons[neurons["model"] == "random"]["score"].to_numpy()

    first = random_scores(out=str(tmp_path / "a"))
    np.testing.assert_array_equal(random_scores(out=str(tmp_path / "b")), first)
    assert not np.array_equal(random_scores(out=str(tmp_path / "c"), seed=1), first, equal_nan=True)
