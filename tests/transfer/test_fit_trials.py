"""Which trials train and which measure: tiers, folds, lists; never one that has no responses."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from transfer.fit_config import TrialsConfig
from transfer.fit_trials import choose_trials

TIERS = ["train"] * 5 + ["oracle"] * 3 + ["live_test_main"] * 2 + ["none"]


@dataclass
class Trials:
    """What choosing looks at of a recording of 3 neurons."""

    name: str = "dynamic1"
    frames: np.ndarray = field(default_factory=lambda: np.array([60] * 4 + [20] + [60] * 6))
    withheld: np.ndarray = field(default_factory=lambda: np.array([False] * 8 + [True] * 2 + [False]))
    dynamic: bool = True
    neurons: tuple = (0, 1, 2)

    @property
    def trials(self) -> pd.DataFrame:
        return pd.DataFrame({"tier": TIERS})


def rows(config: TrialsConfig, shortest: int = 1, **recordings) -> tuple[list[int], list[int]]:
    chosen = choose_trials(recordings or {"a": Trials()}, config, seed=0, shortest=shortest)
    return chosen.train["a"].tolist(), chosen.validation["a"].tolist()


def test_official_tiers():
    assert rows(TrialsConfig()) == ([0, 1, 2, 3, 4], [5, 6, 7])


def test_withheld_trials_of_a_tier_never_train():
    assert rows(TrialsConfig(train_tiers=["train", "live_test_main"]))[0] == [0, 1, 2, 3, 4]
    published = Trials(withheld=np.zeros(11, bool))
    assert rows(TrialsConfig(train_tiers=["train", "live_test_main"]), a=published)[0] == [0, 1, 2, 3, 4, 8, 9]


def test_all_trials_with_responses_are_those_of_every_tier_but_none():
    assert rows(TrialsConfig(train_tiers=[]))[0] == list(range(8))


def test_trials_shorter_than_the_window_are_left_out():
    assert rows(TrialsConfig(), shortest=31)[0] == [0, 1, 2, 3]


def test_a_limit_draws_the_same_trials_again():
    limited = TrialsConfig(train_limit=2)
    first = rows(limited)[0]
    assert first == rows(limited)[0]
    assert len(first) == 2
    assert set(first) < {0, 1, 2, 3, 4}


def test_own_lists(tmp_path):
    lists = {name: tmp_path / f"{name}.csv" for name in ("train", "validation")}
    lists["train"].write_text("animal,row\na,1\na,6\nb,0\n")
    lists["validation"].write_text("animal,row\ndynamic1,2\n")
    config = TrialsConfig(train_list=str(lists["train"]), validation_list=str(lists["validation"]))
    assert rows(config) == ([1, 6], [2])


def test_animals_that_count_in_the_validation():
    assert rows(TrialsConfig(validation_animals=["b"]))[1] == []


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            TrialsConfig(train_tiers=["training"]),
            "animal 'a' has no trial with responses in .* tiers are 'train', 'o",
        ),
        (TrialsConfig(folds=7, fold=7), "trials.fold=7 is not one of trials.folds=7, counted from 0"),
        (TrialsConfig(train_list="x.csv"), "trials.train_list and trials.validation_list go together"),
    ],
)
def test_a_mistake_is_one_line(config, line):
    with pytest.raises(ValueError, match=line) as caught:
        rows(config)
    assert "\n" not in str(caught.value)


def test_a_list_of_trials_without_responses_is_refused(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("animal,row\na,8\n")
    with pytest.raises(ValueError, match="trial 8 of animal a has no responses, or is too short"):
        rows(TrialsConfig(train_list=str(path), validation_list=str(path)))
