"""Corrected scores: the published numbers of every mode, for a model and for another animal as the source."""

import numpy as np
import pandas as pd
import pytest
from sklearn.cross_decomposition import PLSRegression

from neural_data.halvings import halves_in_order, seeded_orders
from transfer.config import PredictivityConfig
from transfer.corrected_score import POPULATION, mapping_score, scoring, similarity_score
from transfer.mapping import Mapping, PLSMapping
from transfer.one_to_one import OneToOneMapping
from transfer.protocol import Halves, Source
from transfer.ridge import RidgeMapping

HALVINGS = 5


@pytest.fixture(scope="module")
def published(mouse_vision):
    return np.load(mouse_vision / "neural" / "noise_estimation.npz")


def halved(values) -> tuple[Halves, np.ndarray]:
    """The target's halves, and the source animal's (2, halvings, stimuli, units), in the published order of draws."""
    orders = seeded_orders(HALVINGS, len(values["target"]), len(values["source"]))
    source = np.stack(halves_in_order(values["source"], orders[1]))
    return Halves(*halves_in_order(values["target"], orders[0])), source


def score(values, mapping: Mapping | None, features: np.ndarray, keys: dict[str, str] | None = None) -> np.ndarray:
    config = PredictivityConfig(**(keys or {}))
    how = mapping_score(mapping, config) if mapping else similarity_score(config)
    target, _ = halved(values)
    return how(Source(features), target, values["train_idx"], values["test_idx"])


@pytest.mark.parametrize(
    ("name", "mapping", "keys", "tolerance"),
    [
        # scikit-learn's PLS ends its search early: it is off by as much with its own tolerance.
        ("pls_denominator", PLSMapping(5), {}, 1e-3),
        ("pls_sb", PLSMapping(5), {"correction": "spearman_brown_split_half"}, 1e-3),
        ("corr_denominator", OneToOneMapping(), {}, 1e-8),
        ("ridge_denominator", RidgeMapping(1.0), {}, 1e-8),
        ("identity_rsa_denominator", None, {"mapping": "rsa"}, 1e-8),
    ],
)
def test_published_scores_of_a_model(published, name, mapping, keys, tolerance):
    found = score(published, mapping, published["features"], keys)
    expected = published[f"out_model_{name}"].reshape(HALVINGS, -1)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "mapping", "keys", "tolerance"),
    [
        ("pls_denominator", PLSMapping(5), {}, 1e-3),
        ("corr_denominator", OneToOneMapping(), {}, 1e-8),
        ("identity_rsa_denominator", None, {"mapping": "rsa"}, 1e-8),
    ],
)
def test_published_scores_from_another_animal(published, name, mapping, keys, tolerance):
    found = score(published, mapping, halved(published)[1], keys)
    np.testing.assert_allclose(found, published[f"out_animal_{name}"].reshape(HALVINGS, -1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("animal", [False, True])
def test_pls_scores_are_those_of_a_scikit_learn_that_has_converged(published, animal):
    target, source = halved(published)
    features = source if animal else np.broadcast_to(published["features"], (2, HALVINGS, *published["features"].shape))
    train, test = published["train_idx"], published["test_idx"]
    found = score(published, PLSMapping(5), source if animal else published["features"])
    for h in range(HALVINGS):
        predicted = [
            PLSRegression(5, scale=False, tol=1e-24, max_iter=20_000)
            .fit(features[half, h][train], responses[h][train])
            .predict(features[half, h][test])
            for half, responses in enumerate((target.first, target.second))
        ]
        s1, s2 = target.first[h][test], target.second[h][test]
        for n in range(found.shape[1]):
            r = [np.corrcoef(a[:, n], b[:, n])[0, 1] for a, b in ((predicted[0], s2), predicted, (s1, s2))]
            corrected = r[0] / np.sqrt(2 * r[1] / (1 + r[1]) * 2 * r[2] / (1 + r[2]))
            assert found[h, n] == pytest.approx(corrected, abs=1e-8)


def test_cka_of_a_model_with_itself_is_one():
    rng = np.random.default_rng(0)
    responses = rng.normal(size=(3, 20, 6))
    config = PredictivityConfig(mapping="cka", train_fraction=0)
    same = Halves(responses[:1], responses[:1])
    found = similarity_score(config)(Source(responses[0]), same, np.array([], int), np.arange(20))
    np.testing.assert_allclose(found, [[1.0]])


def test_a_population_is_scored_as_one():
    neurons = pd.DataFrame({"neuron_id": ["a", "b"], "animal": "m", "area": "V1", "reliability": [0.5, 0.7]})
    one = scoring(PredictivityConfig(mapping="rsa")).scored(neurons)
    assert one.to_numpy().tolist() == [[POPULATION, "m", "V1", 0.6]]
    assert scoring(PredictivityConfig()).scored(neurons) is neurons


def test_features_are_projected_only_where_they_are_more():
    features = np.random.default_rng(0).normal(size=(12, 300))
    prepared = scoring(PredictivityConfig(random_projection=100)).prepare(features)
    assert prepared.size == 300
    assert 0 < prepared.projection_error < 1
    assert np.isnan(scoring(PredictivityConfig(random_projection=300)).prepare(features).projection_error)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"train_fraction": 0}, "train_fraction=0 leaves nothing to fit mapping=pls on; it is for rsa and cka"),
        ({"train_fraction": 0, "mapping": "rsa", "report_train": True}, "report_train=true with train_fraction=0"),
        ({"source_draws": 5}, "source_draws=5 are draws of num_source_units, which are not set"),
        ({"num_source_units": 5, "interanimal": "none"}, "num_source_units=5 are of other animals, found interanimal"),
        ({"mapping": "ridge", "component_choices": [5]}, "component_choices are for mapping=pls, found mapping=ridge"),
    ],
)
def test_keys_that_do_not_go_together(keys, line):
    with pytest.raises(ValueError, match=line):
        scoring(PredictivityConfig(**keys))
