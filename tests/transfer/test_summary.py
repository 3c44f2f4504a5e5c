"""Tables: medians with honest intervals, and every excluded neuron counted."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from transfer import summary
from transfer.summary import bootstrap_median, summarise


def make_scores(rng: np.random.Generator, layers: tuple[str, ...] = ("a", "b"), neurons: int = 40) -> pd.DataFrame:
    """Scores of one model: half the neurons in each of two animals, areas in turn."""
    rows = []
    for layer in layers:
        for n in range(neurons):
            place = {"neuron_id": f"n{n}", "animal": f"m{n * 2 // neurons}", "area": ("V1", "LM")[n % 2]}
            rows.append(place | {"model": "trained", "layer": layer, "score": rng.normal(0.5, 0.2), "reliability": 0.8})
    return pd.DataFrame(rows)


def make_excluded(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["animal", "area", "reason"])


NONE_EXCLUDED = make_excluded()
SIZES = {("trained", "a"): 7, ("trained", "b"): 9}


def row(table: pd.DataFrame, **where: str) -> pd.Series:
    chosen = table[np.logical_and.reduce([table[key] == value for key, value in where.items()])]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_there_is_a_row_for_all_neurons_each_area_and_each_animal_of_an_area():
    scores = make_scores(np.random.default_rng(0))
    table = summarise(scores, NONE_EXCLUDED, SIZES, 100, 0)
    groups = table[table["layer"] == "a"][["area", "animal"]].itertuples(index=False, name=None)
    assert list(groups) == [
        ("all", "all"), ("V1", "all"), ("LM", "all"), ("V1", "m0"), ("LM", "m0"), ("V1", "m1"), ("LM", "m1"),
    ]  # fmt: skip
    assert len(table) == 14
    of_b = scores[(scores["layer"] == "b") & (scores["area"] == "LM")]
    found = row(table, layer="b", area="LM", animal="all")
    assert found["median"] == of_b["score"].median()
    assert (found["features"], found["neurons"]) == (9, 20)
    found = row(table, layer="b", area="LM", animal="m1")
    assert found["median"] == of_b[of_b["animal"] == "m1"]["score"].median()


def test_excluded_neurons_are_counted_by_reason_and_never_scored_as_zero():
    scores = make_scores(np.random.default_rng(0))
    scores.loc[[0, 2], "score"] = np.nan
    excluded = make_excluded(
        ("m0", "V1", "silent"), ("m0", "V1", "silent"), ("m1", "LM", "unreliable"), ("m1", "V1", "unscored")
    )
    table = summarise(scores, excluded, SIZES, 100, 0)
    everything = row(table, layer="a", area="all", animal="all")
    counts = ["neurons", "excluded_silent", "excluded_unreliable", "excluded_unscored"]
    assert everything[counts].tolist() == [38, 2, 1, 3]
    assert everything["median"] == scores[scores["layer"] == "a"]["score"].dropna().median()
    assert row(table, layer="a", area="V1", animal="m0")[counts].tolist() == [8, 2, 0, 2]
    assert row(table, layer="b", area="V1", animal="m0")[counts].tolist() == [10, 2, 0, 0]
    assert row(table, layer="a", area="LM", animal="m1")[counts].tolist() == [10, 0, 1, 0]


def test_a_group_without_a_scored_neuron_still_has_its_row():
    excluded = make_excluded(("m9", "AM", "silent"), ("m9", "AM", "unreliable"))
    table = summarise(make_scores(np.random.default_rng(0)), excluded, SIZES, 100, 0)
    for animal in ("all", "m9"):
        found = row(table, layer="a", area="AM", animal=animal)
        assert (found["neurons"], found["excluded_silent"], found["excluded_unreliable"]) == (0, 1, 1)
        assert np.isnan(found["median"])


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.floats(-1, 2), min_size=1, max_size=60), seed=st.integers(0, 100))
def test_the_interval_holds_the_median(values, seed):
    median, low, high = bootstrap_median(np.array(values), 200, seed)
    assert median == np.median(values)
    assert min(values) <= low <= median <= high <= max(values)


@pytest.mark.parametrize("size", [12, 101, 400])
def test_the_interval_is_scipys(size):
    values = np.random.default_rng(size).gamma(2, 0.3, size)
    resamples = 20_000 if size < 200 else 4000
    _, low, high = bootstrap_median(values, resamples, 0)
    expected = bootstrap(
        (values,), np.median, n_resamples=resamples, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.05 * width)
    assert high == pytest.approx(expected.high, abs=0.05 * width)


def test_intervals_cover_the_true_median_about_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        _, low, high = bootstrap_median(rng.normal(0.4, 1, 50), 300, trial)
        covered += low <= 0.4 <= high
    # The percentile bootstrap of a median covers a little less or more than 95 % at 50 values.
    assert 0.88 <= covered / 200 <= 0.99


def test_an_interval_of_no_values_is_not_a_number():
    assert np.isnan(bootstrap_median(np.array([]), 100, 0)).all()


def test_the_bootstrap_follows_its_seed():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_median(values, 100, 3) == bootstrap_median(values, 100, 3)
    assert bootstrap_median(values, 100, 3) != bootstrap_median(values, 100, 4)


def test_blocks_of_resamples_change_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    expected = bootstrap_median(values, 100, 0)
    monkeypatch.setattr(summary, "BLOCK_BYTES", 8 * 50 * 7)
    assert bootstrap_median(values, 100, 0) == expected
