"""Other animals as the source: who predicts whom, what animals that share a signal reach, and the published scores."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.config import PredictivityConfig
from transfer.corrected_score import scoring
from transfer.interanimal import draw_orders, other_animals, score_from_animals
from transfer.neuron_groups import NeuronGroup
from transfer.protocol import stimulus_splits


def group(
    animal: str, seed: int, area: str = "V1", neurons: int = 12, repeats: int = 10, noise: float = 0.5
) -> NeuronGroup:
    """Neurons that are mixtures of the same six signals, the same for all animals of a test, with noise."""
    signals = np.random.default_rng(0).normal(size=(60, 6))
    rng = np.random.default_rng(seed)
    rates = signals @ rng.normal(size=(6, 12))
    responses = rates + 0.5 * rng.normal(size=(repeats, 60, 12))
    names = [f"{animal}{area}{n}" for n in range(12)]
    table = pd.DataFrame({"neuron_id": names, "animal": animal, "area": area, "reliability": 0.9})
    return NeuronGroup("rec", animal, area, responses, np.arange(60), table)


CONFIG = PredictivityConfig(splits=2, halvings=6, components=6)


def names(pairs: list[tuple[NeuronGroup, list[list[NeuronGroup]]]]) -> list[tuple[str, list[list[str]]]]:
    return [(target.animal, [[other.animal for other in source] for source in sources]) for target, sources in pairs]


def test_sources_are_other_animals_of_the_same_area():
    groups = [group("a", 1), group("b", 2), group("c", 3), group("a", 4, "LM"), group("d", 5, "AL")]
    assert names(other_animals(groups, "holdout")) == [("a", [["b", "c"]]), ("b", [["a", "c"]]), ("c", [["a", "b"]])]
    pairwise = [("a", [["b"], ["c"]]), ("b", [["a"], ["c"]]), ("c", [["a"], ["b"]])]
    assert names(other_animals(groups, "pairwise")) == pairwise
    assert other_animals(groups, "none") == []


def test_animals_that_saw_other_stimuli_predict_nobody():
    other = dataclasses.replace(group("b", 2), stimuli=np.arange(57, 117))
    assert other_animals([group("a", 1), other], "holdout") == []
    pairs = other_animals([group("a", 1), other, group("c", 3)], "holdout")
    assert names(pairs) == [("a", [["c"]]), ("c", [["a"]])], "the others go without it"


@pytest.mark.parametrize("kind", ["holdout", "pairwise"])
def test_a_shared_signal_is_predicted_up_to_one(kind):
    groups = [group("a", 1), group("b", 2), group("c", 3, repeats=8)]
    target, sources = other_animals(groups, kind)[0]
    table = score_from_animals(target, sources, scoring(CONFIG), CONFIG)
    assert list(table["neuron_id"].unique()) == list(target.neurons["neuron_id"])
    assert len(table) == 12 * 2
    assert 0.9 < table["score"].median() < 1.05
    assert (table["defined"] == 6 * len(sources)).all()
    assert table["features"].unique().tolist() == [24 if kind == "holdout" else 12]


def test_only_stimuli_that_all_saw_are_used():
    part = np.arange(40)
    seen = dataclasses.replace(group("b", 2), stimuli=part, responses=group("b", 2).responses[:, part])
    (target, sources), (_, back) = other_animals([group("a", 1), seen], "holdout")
    table = score_from_animals(target, sources, scoring(CONFIG), CONFIG)
    assert table["score"].median() > 0.8
    assert back[0][0].animal == "a"


def test_unrelated_animals_predict_nothing():
    stranger = group("b", 2)
    rng = np.random.default_rng(9)
    rates = rng.normal(size=(60, 12))
    stranger = dataclasses.replace(stranger, responses=rates + 0.5 * rng.normal(size=(10, 60, 12)))
    target, sources = other_animals([group("a", 1), stranger], "holdout")[0]
    table = score_from_animals(target, sources, scoring(CONFIG), CONFIG)
    assert abs(np.nanmedian(table["score"])) < 0.3


@pytest.fixture(scope="module")
def published(mouse_vision):
    return np.load(mouse_vision / "neural" / "noise_estimation.npz")


def published_scores(published, **keys: object) -> pd.DataFrame:
    """Scores of the published target from the published source, 5 halvings of the published split."""
    groups = []
    for name in ("target", "source"):
        responses = published[name]
        ids = [f"{name}{unit}" for unit in range(responses.shape[2])]
        table = pd.DataFrame({"neuron_id": ids, "animal": name, "area": "V1", "reliability": 0.9})
        groups.append(NeuronGroup("rec", name, "V1", responses, np.arange(responses.shape[1]), table))
    config = PredictivityConfig(splits=1, halvings=5, components=5, **keys)
    np.testing.assert_array_equal(stimulus_splits(118, config)[0][0], published["train_idx"])
    return score_from_animals(groups[0], [[groups[1]]], scoring(config), config)


def test_published_scores_of_drawn_source_units(published):
    """Three draws of 6 of 12 units for each of 5 halvings; scikit-learn's PLS ends its search early."""
    found = published_scores(published, num_source_units=6, source_draws=3)
    expected = published["out_animal_pls_subsample6"]
    assert expected.shape == (5 * 3, 8)
    np.testing.assert_allclose(found["score"], expected.mean(0), rtol=0, atol=2e-5)
    assert (found["defined"] == 15).all()
    assert (found["features"] == 6).all()


def test_published_scores_of_train_stimuli(published):
    found = published_scores(published, report_train=True)
    np.testing.assert_allclose(found["fitted_score"], published["out_animal_pls_rt_train"].mean(0), rtol=0, atol=2e-4)
    np.testing.assert_allclose(found["score"], published["out_animal_pls_rt_test"].mean(0), rtol=0, atol=2e-4)
    assert "fitted_score" not in published_scores(published)


def test_more_units_than_there_are_is_all_of_them(published):
    """In another order, and with other halves of the repeats."""
    drawn = published_scores(published, num_source_units=99, source_draws=1)
    assert (drawn["features"] == 12).all()
    np.testing.assert_allclose(drawn["score"], published_scores(published)["score"], atol=0.05)


@settings(deadline=None)
@given(repeats=st.lists(st.integers(2, 9), min_size=1, max_size=4), draws=st.integers(1, 3), units=st.integers(1, 12))
def test_every_draw_has_an_order_of_every_animals_repeats(repeats, draws, units):
    config = PredictivityConfig(halvings=4, num_source_units=units, source_draws=draws)
    drawn = draw_orders(config, 7, repeats, 10)
    assert (np.sort(drawn.target, axis=1) == np.arange(7)).all()
    for orders, number in zip(drawn.sources, repeats, strict=True):
        assert orders.shape == (4 * draws, number)
        assert (np.sort(orders, axis=1) == np.arange(number)).all()
    assert drawn.units.shape == (4 * draws, min(units, 10))
    assert all(len(set(row)) == len(row) for row in drawn.units.tolist())
    longest = repeats.index(max(repeats))
    for one in (index for index, number in enumerate(repeats) if number == repeats[longest]):
        np.testing.assert_array_equal(drawn.sources[one], drawn.sources[longest])


def test_pairwise_means_of_train_scores_are_means_over_animals():
    groups = [group("a", 1), group("b", 2), group("c", 3)]
    config = dataclasses.replace(CONFIG, report_train=True, num_source_units=5, source_draws=2)
    target, sources = other_animals(groups, "pairwise")[0]
    found = score_from_animals(target, sources, scoring(config), config)
    each = [score_from_animals(target, [source], scoring(config), config) for source in sources]
    for column in ("score", "fitted_score"):
        np.testing.assert_allclose(found[column], np.mean([table[column] for table in each], axis=0))
    assert (found["defined"] == 2 * 2 * config.halvings).all()
    assert found["fitted_score"].median() > found["score"].median() - 0.05
