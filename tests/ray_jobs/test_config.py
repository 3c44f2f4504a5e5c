"""Composing a verb's config: layers, recipes, references, the sweep's grid, and the YAML that gives it back."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import PretrainConfig
from ray_jobs.config import VERBS, SweepConfig, compose, compose_mapping, list_recipes, to_yaml
from ray_jobs.keys import ConfigError, Key, all_keys


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def message(verb: str, *arguments: str) -> str:
    """The single line that the arguments are answered with."""
    with pytest.raises(ConfigError) as caught:
        compose(verb, arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(folder: Path, text: str) -> str:
    """The argument that names a recipe with this text."""
    path = folder / "made.yaml"
    path.write_text(text, encoding="utf-8")
    return f"recipe={path}"


def texts() -> st.SearchStrategy[str]:
    # PyYAML turns Unicode's own line breaks into blanks when it writes them
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"), max_size=12).filter(
        lambda text: "${" not in text and not text.startswith("~/")
    )


def values_of(key: Key) -> st.SearchStrategy[Any]:
    """Every kind of value that a key takes."""
    low = 0 if key.low is None else key.low
    high = low + 10**6 if key.high is None else key.high
    scalars = {
        int: st.integers(int(low), int(high)),
        float: st.floats(low, high),
        bool: st.booleans(),
        str: texts(),
    }
    anything = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts()
    kind = get_args(key.kind)[0] if get_origin(key.kind) is list else key.kind
    value = st.sampled_from(key.choices) if key.choices else scalars.get(kind)
    if get_origin(key.kind) is list:
        return st.lists(value, max_size=3)
    if get_origin(key.kind) is dict:
        return st.dictionaries(st.sampled_from(["pool_size", "width"]), anything | st.lists(anything, max_size=2))
    return st.none() | value if key.optional else value


@st.composite
def overrides(draw: st.DrawFn, verb: str) -> dict[str, Any]:
    """Valid values for a few keys of a verb, by dotted path."""
    keys = [key for key in all_keys(VERBS[verb].config_class()) if not key.is_group and key.path != "grid"]
    chosen = draw(st.lists(st.sampled_from(keys), unique_by=lambda key: key.path, max_size=6))
    return {key.path: draw(values_of(key)) for key in chosen}


def at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_in_help_composes(verb: str) -> None:
    words = [word.strip("'") for word in VERBS[verb].example.split()]
    assert words[:2] == ["murine", verb]
    assert isinstance(compose(verb, words[2:]), VERBS[verb].config_class())


def test_arguments_go_over_the_recipe_and_the_recipe_over_the_defaults(folder: Path) -> None:
    recipe = written(folder, "epochs: 7\noptimizer:\n  lr: 5e-2\nmodel_args: {pool_size: 6}\n")
    config = compose("pretrain", [recipe, "optimizer.lr=1", "model_args.width=2", "data.shards=a/b=c"])
    expected = PretrainConfig(epochs=7, model_args={"pool_size": 6, "width": 2})
    expected.optimizer.lr = 1.0
    expected.data.shards = "a/b=c"
    assert config == expected
    assert isinstance(config.optimizer.lr, float)


def test_an_empty_mapping_resets_what_the_recipe_gave(folder: Path) -> None:
    recipe = written(folder, "objective_args: {temperature: 0.07}\nviews: {size: 32}\n")
    config = compose("pretrain", [recipe, "objective_args={}", "views={}"])
    assert config == PretrainConfig()


def test_arguments_are_read_as_their_key_declares() -> None:
    config = compose("report", ["runs=[007,1e3,'a b']", "title=murine: May", "out=2024"])
    assert (config.runs, config.title, config.out) == (["007", "1e3", "a b"], "murine: May", "2024")
    assert compose("report", ["title='null'", "out=None"]).title == "null"
    assert compose("pretrain", ["seed=010"]).seed == 10
    assert compose("predictivity", ["baselines=false"]).baselines is False
    arguments = compose("pretrain", ["model_args={a: 1e-3, b: [x, null]}", "model_args.c.d=true"]).model_args
    assert arguments == {"a": 0.001, "b": ["x", None], "c": {"d": True}}


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert compose("pretrain", ["data.shards=~/shards"]).data.shards == "/home/someone/shards"


def test_references_are_followed_and_checked() -> None:
    config = compose("pretrain", ["seed=5", "out=runs/${seed}", "probe.k=${seed}"])
    assert (config.out, config.probe.k) == ("runs/5", 5)
    assert "key 'epochs': expected integer" in message("pretrain", "epochs=${optimizer.lr}")
    assert "'absent' not found" in message("pretrain", "out=${absent}")
    assert "Recursive" in message("pretrain", "out=${model}", "model=${out}")
    assert "'out'" in message("pretrain", "out=${seed")
    assert "only for references" in message("pretrain", r"out=\${x}")


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("verb", VERBS)
def test_printed_config_read_as_a_recipe_is_the_same_object(verb: str, folder: Path, data: st.DataObject) -> None:
    config = compose_mapping(verb, data.draw(overrides(verb)))
    again = compose(verb, [written(folder, to_yaml(config))])
    assert again == config
    assert type(again) is type(config)
    assert repr(again) == repr(config)  # 1 == 1.0 == True, but their texts differ


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_notebook_gets_the_same_object_as_the_command_line(data: st.DataObject) -> None:
    keys = [key for key in all_keys(PretrainConfig) if key.kind in (int, float)]
    given_values = {key.path: data.draw(values_of(key)) for key in data.draw(st.sets(st.sampled_from(keys)))}
    from_notebook = compose_mapping("pretrain", given_values)
    assert from_notebook == compose("pretrain", [f"{path}={value}" for path, value in given_values.items()])
    for path, value in given_values.items():
        assert at(from_notebook, path) == value


def test_a_notebook_may_give_numpy_values_paths_tuples_and_a_recipe(folder: Path) -> None:
    path = folder / "notebook.yaml"
    path.write_text("epochs: 9\n", encoding="utf-8")
    config = compose_mapping(
        "pretrain",
        {
            "recipe": path,
            "seed": np.int64(3),
            "data": {"shards": Path("a") / "b"},
            "optimizer": {"decay_epochs": (1, 2), "lr": np.float32(0.5)},
        },
    )
    assert (config.epochs, config.seed, config.data.shards) == (9, 3, "a/b")
    assert (config.optimizer.decay_epochs, config.optimizer.lr) == ([1, 2], 0.5)
    assert type(config.seed) is int


def test_a_trial_sets_single_keys_over_the_whole_config() -> None:
    sweep = compose("sweep", ["pretrain.epochs=4", "grid.pretrain.optimizer.lr=[1e-3,1]"])
    trial = compose_mapping("sweep", {**asdict(sweep), "grid": {}, "pretrain.optimizer.lr": 1})
    assert (trial.pretrain.epochs, trial.pretrain.optimizer.lr, trial.grid) == (4, 1.0, {})


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["epochs=3", "epochs=4"], ["'epochs' is given twice"]),
        (["optimizer.lr=3", "optimizer={lr: 4}"], ["'optimizer.lr' is given twice"]),
        (["recipe=a", "recipe=b"], ["'recipe' is given twice"]),
        (["epoch"], ["'epoch' has no '='", "epochs=<value>"]),
        (["=3"], ["'=3' has no complete key"]),
        (["a..b=3"], ["'a..b=3' has no complete key"]),
        (["out="], ["'out' has no value", "out=null"]),
        (["optimizer.decay_epochs=[1,2"], ["'optimizer.decay_epochs'", "'[1,2'", "expected ',' or ']'"]),
        (["model_args.a={b"], ["'model_args.a'", "'{b'"]),
        (["epochs.x=3"], ["'epochs'", "expected integer"]),
        (["recipe=alexnet_bn_if"], ["'alexnet_bn_if'", "did you mean 'alexnet_bn_ir'?", "recipes of pretrain"]),
        (["recipe=absent/x.yaml"], ["'absent/x.yaml'", "exists"]),
        (["precision=bf16"], ["'bf16'", "32-true, bf16-mixed, 16-mixed", "did you mean 'bf16-mixed'?"]),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(arguments: list[str], parts: list[str]) -> None:
    line = message("pretrain", *arguments)
    for part in parts:
        assert part in line


def test_an_unknown_verb_lists_the_verbs() -> None:
    assert message("pretain") == f"unknown verb 'pretain': did you mean 'pretrain'? (verbs: {', '.join(VERBS)})"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("epochs: 3\noptimizer: [1\n", ["line 3", "expected ',' or ']'"]),
        ("epochs: 3\nepochs: 4\n", ["line 2", "duplicate key epochs"]),
        ("- 1\n- 2\n", ["holds a list"]),
        ("5\n", ["cannot be read"]),
        ("epoch\n", ["unknown key 'epoch'", "did you mean 'epochs'?"]),
        ("1.5: 3\n", ["unknown key '1.5'"]),
        ("out: 1e3\n", ["'out'", "expected text or null", "given 1000.0", "quotes"]),
        ("epochs: 1.5\n", ["'epochs'", "expected integer"]),
        ("data:\n", ["'data'", "group"]),
        ("recipe: other\n", ["unknown key 'recipe'"]),
        ("model_args: {a: !!python/name:os.system }\n", ["line 1", "python/name"]),
    ],
)
def test_a_mistake_in_a_recipe_names_its_file(folder: Path, text: str, parts: list[str]) -> None:
    line = message("pretrain", written(folder, text))
    for part in ["made.yaml", *parts]:
        assert part in line


def test_a_recipe_that_is_not_text_is_one_line(folder: Path) -> None:
    path = folder / "latin.yaml"
    path.write_bytes(b"out: \xe9\xff\n")
    assert "latin.yaml cannot be read" in message("pretrain", f"recipe={path}")


def test_the_grid_is_checked_key_by_key_and_value_by_value() -> None:
    grid = compose(
        "sweep",
        [
            "grid.pretrain.optimizer.lr=[1e-3,1]",
            "grid={predictivity: {stimulus_view: [whole]}, pretrain.model_args.depth: [1, deep]}",
            "grid.pretrain.optimizer.decay_epochs=[[1,2],[]]",
        ],
    ).grid
    assert grid == {
        "pretrain.optimizer.lr": [0.001, 1.0],
        "predictivity.stimulus_view": ["whole"],
        "pretrain.model_args.depth": [1, "deep"],
        "pretrain.optimizer.decay_epochs": [[1, 2], []],
    }
    assert isinstance(grid["pretrain.optimizer.lr"][1], float)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("grid.pretrain.optimizer.lrr=[1]", ["'pretrain.optimizer.lrr'", "did you mean 'pretrain.optimizer.lr'?"]),
        ("grid.pretrain.optimizer.lr=[1,fast]", ["'pretrain.optimizer.lr'", "expected number", "given 'fast'"]),
        ("grid.pretrain.batch_size=[8,0]", ["'pretrain.batch_size'", "0 is out of range"]),
        ("grid.pretrain.batch_size=8", ["'pretrain.batch_size'", "list of values", "given 8"]),
        ("grid.pretrain.batch_size=[]", ["'pretrain.batch_size'", "list of values"]),
        ("grid.optimizer.lr=[1]", ["'optimizer.lr'", "did you mean 'pretrain.optimizer.lr'?"]),
        ("grid.out=[a]", ["'out'", "not below pretrain, predictivity or fit"]),
        ("grid=[1]", ["'grid'", "expected mapping"]),
    ],
)
def test_a_mistake_in_the_grid_is_one_line(argument: str, parts: list[str]) -> None:
    line = message("sweep", argument)
    for part in ["grid", *parts]:
        assert part in line


def test_a_sweep_recipe_is_found_under_both_names_and_given_back(folder: Path) -> None:
    text = "pretrain: {epochs: 2}\ngrid:\n  pretrain.seed: [1, 2]\n  pretrain: {views: {size: [32, 64]}}\n"
    recipe = written(folder, text)
    config = compose("sweep", [recipe.replace("recipe=", "sweep=")])
    assert config == compose("sweep", [recipe])
    assert config == SweepConfig(
        pretrain=PretrainConfig(epochs=2), grid={"pretrain.seed": [1, 2], "pretrain.views.size": [32, 64]}
    )
    assert compose("sweep", [written(folder, to_yaml(config))]) == config
    assert "'recipe' is given twice" in message("sweep", "sweep=a", "recipe=b")


@pytest.mark.parametrize(
    ("verb", "recipe"), [(verb, recipe) for verb in VERBS if not VERBS[verb].recipes for recipe in list_recipes(verb)]
)
def test_every_recipe_composes(verb: str, recipe: str) -> None:
    assert isinstance(compose(verb, [f"recipe={recipe}"]), VERBS[verb].config_class())
