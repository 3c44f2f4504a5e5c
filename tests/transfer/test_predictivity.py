"""Predictivity: the published scores, recordings whose truth is known, and runs that resume."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neural_data.arrays import read_arrays, write_arrays
from neural_data.halvings import halves_batch, seeded_orders
from neural_data.recording import Recording
from neural_data.reliability import pearson
from neural_data.simulate import SimulationConfig, Truth, simulate
from neural_data.splits import image_splits
from pretrain.checkpoint import load_trained_backbone
from transfer import predictivity as module
from transfer import protocol
from transfer.config import PredictivityConfig
from transfer.corrected_score import mapping_score, scoring
from transfer.features import prepare_stimuli
from transfer.mapping import PLSMapping
from transfer.neuron_groups import NeuronGroup, neuron_groups
from transfer.predictivity import predictivity
from transfer.protocol import HalvedRepeats, Halves, Source, mean_of_defined, score_halves


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


def scores_of(features: np.ndarray, recording: Recording, **keys: object) -> tuple[np.ndarray, NeuronGroup]:
    config = PredictivityConfig(**({"splits": 4, "halvings": 10} | keys))
    group = neuron_groups(recording, config)[0][0]
    how = scoring(config)
    source = Source(how.prepare(features[group.stimuli]).values)
    repeats = HalvedRepeats(group.responses, seeded_orders(config.halvings, len(group.responses))[0])
    table = score_halves(source, repeats, group.neurons, how.score, config, choose=False)
    return table.pivot(index="neuron_id", columns="split", values="score").mean(axis=1).to_numpy(), group


@pytest.mark.parametrize(("reliability", "at_least"), [(0.9, 0.9), (0.98, 0.97)])
def test_the_true_rates_score_nearly_one_and_random_features_nothing(reliability, at_least):
    """The correction takes out the neurons' noise; what the mapping lacks is due to 59 noisy train stimuli."""
    recording, truth = simulate(
        SimulationConfig(
            animals=1, areas=["VISp"], neurons_per_area=16, repeats=20, size=32, reliability=reliability,
            dead_neurons=0.25,
        )
    )  # fmt: skip
    perfect, group = scores_of(truth.rates[:, truth.kind != "dead"], recording)
    assert len(perfect) == 12
    assert at_least < np.median(perfect) < 1.03
    assert perfect.min() > at_least - 0.1
    rates = truth.rates[:, recording.neurons["neuron_id"].isin(group.neurons["neuron_id"])]
    noisy = pearson(rates, halves_batch(group.responses, 1)[1][0])
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
    monkeypatch.setattr(protocol, "BLOCK_BYTES", 2 * 8 * 100 * 12 * 3)
    np.testing.assert_allclose(scores_of(truth.rates, recording, halvings=7)[0], expected, rtol=1e-10)


@pytest.fixture
def config(tiny_run, tiny_recording, tmp_path) -> PredictivityConfig:
    return PredictivityConfig(
        str(tiny_run), str(tiny_recording), components=5, splits=2, halvings=4, bootstrap=200, accelerator="cpu",
        stimulus_view="whole", out=str(tmp_path / "scores"),
    )  # fmt: skip


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    found = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("neurons", "predictivity")}
    names = "predictivity", "excluded", "chosen", "differences"
    return found | {f"{name}.csv": pd.read_csv(folder / f"{name}.csv") for name in names}


def require_same_tables(one: dict[str, pd.DataFrame], two: dict[str, pd.DataFrame]) -> None:
    for name in one:
        pd.testing.assert_frame_equal(one[name], two[name], check_exact=True)


def test_a_run_scores_every_layer_the_random_net_and_pixels(config, tiny_recording, capsys):
    folder = predictivity(config)
    table, excluded = tables(folder)["predictivity"], tables(folder)["excluded.csv"]
    recording = read_arrays(tiny_recording)
    layers = ["act1", "layer1", "layer2", "layer3", "layer4"]
    baselines = [("gabor", "gabor"), ("pixels", "pixels"), ("animals", "holdout")]
    models = table[["model", "layer"]].drop_duplicates().itertuples(index=False, name=None)
    expected = [(model, layer) for model in ("trained", "random") for layer in layers] + baselines
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
    spec = load_trained_backbone(config.checkpoint).spec
    pixels = prepare_stimuli(np.asarray(recording.stimuli), spec, "whole").flatten(1).numpy()
    group = next(group for group in neuron_groups(recording, config)[0] if group.animal == recording.animals[1])
    halves = Halves(*halves_batch(group.responses, config.halvings))
    score = mapping_score(PLSMapping(5), config)
    one = [score(Source(pixels), halves, train, test) for train, test in image_splits(30, 2, 0.5)]
    expected = np.nanmean(np.concatenate(one), axis=0)
    of_group = (neurons["animal"] == group.animal) & (neurons["area"] == group.area)
    chosen = neurons[(neurons["model"] == "pixels") & of_group]
    np.testing.assert_allclose(chosen["score"], expected, rtol=1e-6)


def test_a_run_goes_on_with_the_pieces_that_are_missing(config, monkeypatch):
    folder = predictivity(config)
    before, animal = tables(folder), read_arrays(config.recording).animals[0]
    for name in ("predictivity.csv", "predictivity.parquet", f"pieces/trained-layer3/{animal}.parquet"):
        (folder / name).unlink()
    scored, original = [], module.score_halves
    monkeypatch.setattr(module, "score_halves", lambda *given: scored.append(given) or original(*given))
    assert predictivity(config) == folder
    assert len(scored) == 2, "one layer of the two areas of one animal"
    require_same_tables(tables(folder), before)


def test_a_run_stopped_in_the_middle_gives_the_same_tables(config, tmp_path, monkeypatch):
    other = dataclasses.replace(config, out=str(tmp_path / "stopped"))
    expected = tables(predictivity(config))
    original, calls = module.score_halves, []

    def stopping(*given: object):
        calls.append(given)
        if len(calls) in (4, 9):
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(module, "score_halves", stopping)
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
    listed = found["excluded.csv"][found["excluded.csv"]["animal"] == recording.animals[0]]
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
        ({"checkpoint": None}, ValueError, "found neither of checkpoint and checkpoints; set checkpoint=<one> or"),
        ({"checkpoints": ["b"]}, ValueError, "found both of checkpoint and checkpoints"),
        ({"tier": "test"}, ValueError, "no tier 'test'; there are ''"),
        ({"mapping": "rsa", "component_choices": [3]}, ValueError, "component_choices are for mapping=pls"),
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


def test_checkpoints_are_compared_on_the_same_neurons(config, tiny_run, tmp_path):
    """Two runs of one network share its random weights; each is a model by its folder's name."""
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    names = [tiny_run.name, "other"]
    config.checkpoint, config.checkpoints = None, [str(tiny_run), str(other)]
    config.layers = ["layer1", "layer4"]
    found = tables(predictivity(config))
    assert found["neurons"]["model"].unique().tolist() == [*names, "random", "gabor", "pixels", "animals"]
    pairs = found["differences.csv"]
    same = pairs[(pairs["model_a"] == names[0]) & (pairs["model_b"] == names[1])]
    assert (same[["difference", "low", "high"]] == 0).all(axis=None)
    assert len(pairs[pairs["area"] == "all"]) == 10  # of five models, without animals
    assert found["chosen.csv"]["model"].unique().tolist() == [*names, "random", "gabor", "pixels"]


@pytest.mark.parametrize("mapping", ["ridge", "one_to_one", "rsa", "cka"])
def test_other_mappings_go_the_same_way(config, mapping):
    config.mapping, config.layers, config.halvings = mapping, ["layer4"], 2
    found = tables(predictivity(config))
    assert set(found["neurons"]["model"]) == {"trained", "random", "gabor", "pixels", "animals"}
    assert (found["neurons"]["neuron_id"] == "population").all() == (mapping in ("rsa", "cka"))
    assert found["neurons"]["score"].notna().any()


def test_similarity_of_all_stimuli_needs_no_train_stimuli(config, tiny_recording, tmp_path):
    recording = read_arrays(tiny_recording)
    # Without noise some stimuli have no spike of any neuron, and dissimilarities of those are undefined.
    noise = np.random.default_rng(0).normal(size=recording.responses.shape)
    config.recording = str(
        write_arrays(dataclasses.replace(recording, responses=recording.responses + noise), tmp_path / "n")
    )
    config.mapping, config.layers, config.train_fraction = "rsa", ["layer1", "layer4"], 0.0
    found = tables(predictivity(config))
    assert found["neurons"]["score"].notna().any()


def test_drawn_units_and_train_scores_stand_in_the_tables(config):
    config.layers, config.num_source_units, config.source_draws, config.report_train = ["layer4"], 3, 2, True
    found = tables(predictivity(config))
    animals = found["predictivity"][found["predictivity"]["model"] == "animals"]
    assert (animals["features"] == 3).all()
    for row in found["predictivity"].itertuples():
        chosen = found["neurons"].query("model == @row.model and layer == @row.layer")
        chosen = chosen[(chosen["area"] == row.area) | (row.area == "all")]
        chosen = chosen[(chosen["animal"] == row.animal) | (row.animal == "all")]
        assert row.fitted == pytest.approx(chosen["fitted_score"].median(), nan_ok=True)
    pixels = found["neurons"].query("model == 'pixels'")
    assert pixels["fitted_score"].median() > pixels["score"].median(), "five components are fitted to 15 stimuli"


def test_features_on_disk_give_the_same_scores(config, tmp_path):
    config.layers = ["layer1", "layer4"]
    expected = tables(predictivity(config))["neurons"]
    streamed = dataclasses.replace(config, memory_gb=0.0, out=str(tmp_path / "streamed"))
    pd.testing.assert_frame_equal(tables(predictivity(streamed))["neurons"], expected, check_exact=True)
    assert not (tmp_path / "streamed" / "features").exists()


def test_the_error_of_a_random_projection_stands_beside_the_scores(config):
    config.random_projection, config.layers, config.halvings = 200, ["layer1", "layer4"], 2
    table = tables(predictivity(config))["predictivity"]
    assert "projection_error" in table
    errors = table.groupby("layer")["projection_error"].first()
    assert 0 < errors["layer1"] < 1, "2,048 features"
    assert np.isnan(errors["animals" if "animals" in errors else "holdout"])


def test_components_are_chosen_on_train_stimuli(config):
    config.component_choices, config.layers, config.halvings = [2, 4], ["layer4"], 2
    assert tables(predictivity(config))["neurons"]["score"].notna().any()
