"""Keys of config dataclasses: what is listed, what is accepted, and what a mistake is told."""

import math
from dataclasses import dataclass, is_dataclass
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pretrain.config import PretrainConfig, setting
from ray_jobs.config import VERBS, compose_mapping
from ray_jobs.keys import ConfigError, all_keys, checked, kind_at, nearest

LETTERS = "abcdefghijklmnopqrstuvwxyz_"


@dataclass
class Inner:
    lr: float = setting(0.5, "rate", low=0, high=1)
    steps: list[int] = setting([1], "steps", "epochs", 0)


@dataclass
class Outer:
    count: int = setting(3, "how many", "images", 1, 10)
    free: float = setting(0.0, "no range")
    on: bool = setting(True, "switch")
    name: str | None = setting(None, "name")
    mode: str = setting("fast", "mode", choices=("fast", "slow"))
    extra: dict[str, Any] = setting({}, "more")
    inner: Inner = setting(Inner, "group")


def message(values: dict[str, Any]) -> str:
    """The single line that a mistake in `values` is told."""
    with pytest.raises(ConfigError) as caught:
        checked(Outer, values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_are_listed_with_their_notes() -> None:
    keys = {key.path: key for key in all_keys(Outer)}
    assert list(keys) == [
        *("count", "free", "on", "name", "mode", "extra", "inner", "inner.lr", "inner.steps"),
    ]
    assert (keys["count"].allowed, keys["count"].type_name, keys["count"].default) == (
        "1 to 10 images",
        "integer",
        3,
    )
    assert (keys["name"].type_name, keys["mode"].allowed) == ("text or null", "fast | slow")
    assert (keys["inner.steps"].type_name, keys["inner.steps"].allowed) == ("list of integers", "0 or more epochs")
    assert kind_at(Outer, "inner.lr") is float
    assert kind_at(Outer, "extra.depth") is Any
    assert kind_at(Outer, "absent") is Any


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_of_every_verb_has_a_type_in_words_and_a_valid_default(verb: str) -> None:
    cls = VERBS[verb].config_class()
    assert is_dataclass(cls)
    for key in all_keys(cls):
        assert key.meaning
        assert key.type_name
    assert compose_mapping(verb, {}) == cls()


def test_accepts_what_means_the_same() -> None:
    values = checked(Outer, {"count": "7", "free": 2, "on": "True", "inner": {"lr": "1e-3", "steps": ["007"]}})
    assert values == {"count": 7, "free": 2.0, "on": True, "inner": {"lr": 0.001, "steps": [7]}}
    assert isinstance(values["free"], float)
    assert checked(Outer, {"name": None}) == {"name": None}
    assert math.isnan(checked(Outer, {"free": math.nan})["free"])


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"inner": {"lrr": 1}}, ["'inner.lrr'", "did you mean 'inner.lr'?", "keys of inner: lr, steps"]),
        ({"lr": 1}, ["'lr'", "did you mean 'inner.lr'?", "keys: count, free"]),
        ({"iner": {"lr": 1}}, ["'iner.lr'", "did you mean 'inner.lr'?"]),
        ({"qqqqqqq": 1}, ["unknown key 'qqqqqqq' (keys: count"]),
        ({"count": 1.5}, ["'count'", "expected integer (1 to 10 images)", "given 1.5"]),
        ({"count": 2.0}, ["'count'", "expected integer", "given 2.0"]),
        ({"count": True}, ["'count'", "expected integer", "given true"]),
        ({"count": None}, ["'count'", "expected integer", "given null"]),
        ({"count": 11}, ["'count'", "11 is out of range", "1 to 10 images"]),
        ({"count": 10**400}, ["'count'", "out of range"]),
        ({"free": 10**400}, ["'free'", "expected number"]),
        ({"free": False}, ["'free'", "expected number", "given false"]),
        ({"on": 1}, ["'on'", "expected true or false", "given 1"]),
        ({"on": "yes"}, ["'on'", "expected true or false", "given 'yes'"]),
        ({"name": 1e3}, ["'name'", "expected text or null", "given 1000.0", "quotes"]),
        ({"mode": "slw"}, ["'mode'", "'slw'", "fast, slow", "did you mean 'slow'?"]),
        ({"extra": [1]}, ["'extra'", "expected mapping", "given [1]"]),
        ({"extra": {1: 2}}, ["'extra'", "given 1"]),
        ({"inner": 3}, ["'inner'", "group", "given 3", "lr, steps"]),
        ({"inner": None}, ["'inner'", "group", "given null"]),
        ({"inner": {"lr": math.nan}}, ["'inner.lr'", "nan is out of range", "0 to 1"]),
        ({"inner": {"steps": 3}}, ["'inner.steps'", "expected list of integers", "[a,b]"]),
        ({"inner": {"steps": [1, 2.5]}}, ["'inner.steps[1]'", "expected integer", "given 2.5"]),
        ({"inner": {"steps": [1, -2]}}, ["'inner.steps[1]'", "-2 is out of range", "0 or more epochs"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(values: dict[str, Any], parts: list[str]) -> None:
    line = message(values)
    for part in parts:
        assert part in line


@settings(deadline=None)
@given(st.floats() | st.integers())
def test_a_number_is_accepted_exactly_where_it_lies_in_the_range(value: float) -> None:
    if 0 <= value <= 1:
        assert checked(Outer, {"inner": {"lr": value}}) == {"inner": {"lr": value}}
    else:
        assert "'inner.lr'" in message({"inner": {"lr": value}})


@settings(deadline=None)
@given(st.floats(min_value=1, allow_infinity=True))
def test_infinity_lies_in_no_range(value: float) -> None:
    values = {"optimizer": {"lr": value}}  # from 0, without an upper limit
    if math.isinf(value):
        with pytest.raises(ConfigError, match="inf is out of range"):
            checked(PretrainConfig, values)
    else:
        assert checked(PretrainConfig, values) == values


@settings(deadline=None)
@given(st.data())
def test_a_misspelt_key_is_answered_with_a_near_key(data: st.DataObject) -> None:
    names = [key.path for key in all_keys(PretrainConfig)]
    path = data.draw(st.sampled_from([name for name in names if len(name.rpartition(".")[2]) > 1]))
    place = data.draw(st.integers(path.rfind(".") + 1, len(path) - 1))
    letter = data.draw(st.sampled_from(LETTERS))
    kept = data.draw(st.sampled_from(["", letter, letter + path[place]]))
    misspelt = path[:place] + kept + path[place + 1 :]
    assume(misspelt not in names)
    with pytest.raises(ConfigError, match=f"unknown key '{misspelt}': did you mean '") as caught:
        compose_mapping("pretrain", {misspelt: 1})
    suggested = str(caught.value).split("did you mean '")[1].split("'")[0]
    assert suggested in names
    assert suggested == nearest(misspelt, names)
    assert suggested == path or nearest(misspelt, [path, suggested]) == suggested


def test_nearest_prefers_the_whole_name_to_its_end() -> None:
    assert nearest("views.siz", ["data.size", "views.size"]) == "views.size"
    assert nearest("size", ["epochs", "views.size"]) == "views.size"
    assert nearest("qqq", ["epochs", "views.size"]) is None
    assert nearest("qqq", []) is None
