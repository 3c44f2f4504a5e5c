"""From the command line, a notebook or a Ray trial to the typed config of one verb, by one path.

What comes in: a verb and either `key=value` arguments (`compose`) or a nested dict (`compose_mapping`).
What goes out: the verb's config dataclass, made of its defaults, then a recipe, then what was given; or a
`ConfigError` of one line. OmegaConf reads YAML and follows references such as `${seed}`; `ray_jobs/keys.py`
checks. Imports nothing heavy, so that help is instant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_origin

from pretrain.config import PretrainConfig, setting
from ray_jobs.keys import ConfigError, all_keys, checked, did_you_mean, kind_at, level_keys, nearest, shown
from transfer.config import PredictivityConfig
from transfer.fit_config import FitConfig


@dataclass
class SweepConfig:
    """A grid of pretrainings, each followed by its predictivity, or of fits, as Ray trials."""

    stage: str = setting(
        "pretrain",
        "pretrain: a pretraining, then its predictivity; fit: a fit, scored on its validation trials",
        choices=("pretrain", "fit"),
    )
    pretrain: PretrainConfig = setting(PretrainConfig, "what every trial trains")
    predictivity: PredictivityConfig = setting(PredictivityConfig, "what every trial measures")
    fit: FitConfig = setting(FitConfig, "with stage=fit, what every trial fits")
    grid: dict[str, Any] = setting({}, "values to try for any key: `grid.pretrain.optimizer.lr=[0.003,0.03]`")
    cpus_per_trial: float = setting(1, "processor cores that a trial occupies", "cores", 0.1)
    gpus_per_trial: float = setting(0, "graphics processors that a trial occupies, also a share of one", "GPUs", 0)
    max_concurrent: int = setting(0, "trials at a time; 0: as many as fit", "trials", 0)
    out: str | None = setting(None, "folder of the sweep (default: runs/sweep-<hash of the config>)")


@dataclass
class ModelsConfig:
    """Which models to list."""

    pattern: str = setting("*", "names to list, with `*` and `?` as wildcards")
    aliases: bool = setting(False, "list mouse-vision's own names for the networks beside ours")
    table: str | None = setting(
        None, "write docs/models.md, or another file, with what each backbone and core costs and sees; takes minutes"
    )


@dataclass
class RecipesConfig:
    """Which recipes to describe."""

    verb: str = setting("pretrain", "whose recipes")
    pattern: str = setting("*", "names to list, with `*` and `?` as wildcards")


@dataclass
class DataConfig:
    """Which recordings to fetch, list, look into, convert or prepare for training."""

    action: str | None = setting(
        None, "what to do; the first word", choices=("fetch", "list", "info", "convert", "prepare")
    )
    what: list[str] = setting([], "what to do it with; the words after it")
    out: str | None = setting(
        None, "folder that receives it (default for fetch: that of the source in $MURINE_DATA, or in the user's cache)"
    )
    yes: bool = setting(False, "fetch without a question after size and licence")
    mirror: str | None = setting(None, "URL of a copy of the folder, which serves the files instead of their source")
    stimuli: str = setting("uint8", "prepare: how grey levels are kept", choices=("uint8", "float32"))
    responses: str = setting("float16", "prepare: how responses are kept", choices=("float16", "float32"))


@dataclass(frozen=True)
class Verb:
    """One verb of the command; config class and function are named, not imported, to keep help instant.

    `recipes` names the verb whose recipes it takes, where it has none of its own; `bare` is the key of an argument that
    comes without one, `rest` that of the further ones, a list. `forms` are the words it takes, with what they do.
    """

    name: str
    summary: str
    config: str
    run: str
    example: str
    recipes: str = ""
    bare: str = ""
    rest: str = ""
    forms: tuple[tuple[str, str], ...] = ()

    def config_class(self) -> type:
        """The dataclass that describes the verb's keys."""
        return load(self.config)


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "shards",
            "write images as WebDataset shards, or verify shards",
            "pretrain.config:ShardsConfig",
            "ray_jobs.verbs:shards",
            "murine shards source=photos out=shards/photos",
        ),
        Verb(
            "data",
            "fetch public recordings, list them, say what is in a file, convert packaged ones, prepare for training",
            "ray_jobs.config:DataConfig",
            "ray_jobs.data_verbs:data",
            "murine data fetch allen session_715093703",
            bare="action",
            rest="what",
            forms=(
                ("list [<pattern>]", "what can be fetched: size, licence, number of files"),
                (
                    "fetch allen <what> ...",
                    "Allen Visual Coding: Neuropixels sessions, two-photon experiments, packages",
                ),
                (
                    "fetch sensorium2022 [<scan> ...]",
                    "static images; likewise sensorium2023 (videos), franke2022 (colour)",
                ),
                ("info <path>", "animals, areas, neurons, stimuli, repeats, and what is missing"),
                ("convert <file.pkl> out=<folder>", "a package of mouse-vision in an open format"),
                ("prepare <path> out=<folder>", "each recording as training reads it fastest, in a folder of its name"),
            ),
        ),
        Verb(
            "simulate",
            "make a recording with known truth, to try everything on",
            "neural_data.simulate:SimulationConfig",
            "ray_jobs.verbs:simulate",
            "murine simulate out=recordings/simulated",
        ),
        Verb(
            "pretrain",
            "train a model on shards without labels",
            "pretrain.config:PretrainConfig",
            "ray_jobs.verbs:pretrain",
            "murine pretrain recipe=alexnet_bn_ir data.shards=shards/photos out=runs/first",
        ),
        Verb(
            "views",
            "draw a contact sheet of the views that a pretraining would see",
            "pretrain.config:PretrainConfig",
            "ray_jobs.verbs:views",
            "murine views recipe=alexnet_bn_simclr data.shards=shards/photos out=views.png",
            recipes="pretrain",
        ),
        Verb(
            "predictivity",
            "measure how well each layer predicts recorded neurons",
            "transfer.config:PredictivityConfig",
            "ray_jobs.verbs:predictivity",
            "murine predictivity checkpoint=runs/first recording=recordings/simulated",
        ),
        Verb(
            "fit",
            "fit an encoder, a core with a readout for each animal, to recordings",
            "transfer.fit_config:FitConfig",
            "ray_jobs.verbs:fit",
            "murine fit recipe=demo_factorized3d recording=recordings/videos out=runs/fit",
        ),
        Verb(
            "predict",
            "predict every frame of every trial with one fitted encoder, or an ensemble",
            "transfer.predict_config:PredictConfig",
            "ray_jobs.prediction_verbs:predict",
            "murine predict 'runs=[runs/fold_0,runs/fold_1]' out=runs/predicted",
        ),
        Verb(
            "score",
            "score predictions as a team of the competitions does: per neuron, animal, tier and class",
            "transfer.predict_config:ScoreConfig",
            "ray_jobs.prediction_verbs:score",
            "murine score predictions=runs/predicted protocol=organisers out=runs/scores",
        ),
        Verb(
            "submission",
            "write the files that a competition takes, or check one",
            "transfer.predict_config:SubmissionConfig",
            "ray_jobs.prediction_verbs:submission",
            "murine submission predictions=runs/predicted out=submission",
        ),
        Verb(
            "tasks",
            "measure what else each layer tells: textures, objects, their position, pose and size",
            "transfer.config:TasksConfig",
            "ray_jobs.verbs:tasks",
            "murine tasks task=dtd data=textures/dtd checkpoint=runs/first",
        ),
        Verb(
            "report",
            "turn run folders into one HTML page",
            "transfer.config:ReportConfig",
            "ray_jobs.verbs:report",
            "murine report 'runs=[runs/first,runs/second]' out=report.html",
        ),
        Verb(
            "sweep",
            "pretrain and measure, or fit, over a grid of values with Ray",
            "ray_jobs.config:SweepConfig",
            "ray_jobs.verbs:sweep",
            "murine sweep pretrain.data.shards=shards/photos predictivity.recording=recordings/simulated "
            "'grid.pretrain.optimizer.lr=[0.003,0.03]'",
        ),
        Verb(
            "recipes",
            "say what each recipe of a verb is",
            "ray_jobs.config:RecipesConfig",
            "ray_jobs.verbs:recipes",
            "murine recipes '*_simclr'",
            bare="pattern",
        ),
        Verb(
            "models",
            "list the models that can be trained",
            "ray_jobs.config:ModelsConfig",
            "ray_jobs.verbs:models",
            "murine models 'alexnet*'",
            bare="pattern",
        ),
    )
}


def load(reference: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def find_verb(name: str) -> Verb:
    """The verb of that name.

    Raises:
        ConfigError: there is none; the message lists the verbs and the nearest.
    """
    if name not in VERBS:
        raise ConfigError(f"unknown verb '{name}'{did_you_mean(name, VERBS)} (verbs: {', '.join(VERBS)})")
    return VERBS[name]


def compose(verb: str, arguments: Sequence[str]) -> Any:
    """The verb's typed config: `key=value` arguments over a recipe (`recipe=<name or path>`) over defaults.

    Keys are dotted paths. Values are YAML, read as the key's type declares, so that `out=2024` is the text
    "2024"; `null` stands for none, `[a,b]` for a list. Of the sweep, `sweep=` is the same as `recipe=`; of a verb that
    lists something, an argument without `=` is the pattern, and `data` takes several.

    Raises:
        ConfigError: one line naming the wrong argument, key or recipe, what is allowed and what is nearest.
    """
    cls, bare, rest = find_verb(verb).config_class(), VERBS[verb].bare, VERBS[verb].rest
    given: dict[str, Any] = {}
    words = []
    for argument in arguments:
        path, equals, text = argument.partition("=")
        if not equals and rest and bare in given:
            words.append(argument)
            continue
        if not equals and bare:
            path, equals, text = bare, "=", argument
        if not equals:
            near = nearest(argument, [key.path for key in all_keys(cls)]) or "key"
            raise ConfigError(f"argument '{argument}' has no '=': write {near}=<value>")
        if not all(path.split(".")):
            raise ConfigError(f"argument '{argument}' has no complete key before its '=' (write key=value)")
        path = "recipe" if (verb, path) == ("sweep", "sweep") else path
        kind = str if path == "recipe" else kind_at(cls, path)
        given = _joined(given, _nested(path, _parsed(kind, path, text.strip())))
    return compose_mapping(verb, _joined(given, {rest: words}) if words else given)


def compose_mapping(verb: str, mapping: Mapping[str, Any]) -> Any:
    """The verb's typed config from a nested dict over a recipe (key `recipe`) over defaults.

    A key of the outermost level can be a dotted path; it goes over the nested one. A mapping adds to what
    lies below it, but an empty one, `{}`, resets to the defaults.

    Raises:
        ConfigError: as `compose` does.
    """
    cls = find_verb(verb).config_class()
    given = _plain(mapping)
    layers = [("", given)]
    if (recipe := given.pop("recipe", None)) is not None:
        path = find_recipe(verb, recipe)
        layers.insert(0, (f"recipe {path}: ", read_recipe(path)))
    values = asdict(cls())
    for origin, layer in layers:
        layer = _expanded(layer)
        if cls is SweepConfig and isinstance(layer.get("grid"), dict):
            layer["grid"] = _flattened(layer["grid"])
        try:
            _checked(cls, _without_references(layer))
        except ConfigError as error:
            raise ConfigError(f"{origin}{error}") from error
        values = _merged(values, layer)
    return _built(cls, _checked(cls, _resolved(values)))


def to_yaml(config: Any) -> str:
    """The complete config as YAML text, which `recipe=<path>` reads back to the same typed object."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def list_recipes(verb: str) -> dict[str, Path]:
    """The recipes that are installed with the project for a verb, by name."""
    # Not importlib.resources: it fails on Python 3.11 for a plain folder of an editable install
    # ("MultiplexedPath only supports directories"), and a folder `configs` of the user's would hide ours.
    folder = Path(__file__).resolve().parents[1] / "configs" / (find_verb(verb).recipes or verb)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(verb: str, recipe: str) -> Path:
    """The file of a recipe, given by name or by the path of a `.yaml` file.

    Raises:
        ConfigError: no such recipe or file; the message lists the recipes and the nearest.
    """
    if not isinstance(recipe, str):
        raise ConfigError(
            f"key 'recipe': expected the name of a recipe or the path of a .yaml file, given {shown(recipe)}"
        )
    recipes = list_recipes(verb)
    if recipe in recipes:
        return recipes[recipe]
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or path.name != recipe:
        raise ConfigError(f"recipe '{recipe}' is not a .yaml file that exists")
    listed = f"recipes of {verb}: {', '.join(recipes)}" if recipes else f"{verb} has no recipes"
    raise ConfigError(
        f"unknown recipe '{recipe}'{did_you_mean(recipe, recipes)} ({listed}; or give a .yaml file's path)"
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """The nested dict of a recipe's YAML file, its references not yet followed.

    Raises:
        ConfigError: the file is not readable YAML (with its line), or holds something other than keys.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"recipe {path}{line}: {error.problem}") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe {path} cannot be read: {_first_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {path} holds a list, expected keys with values")
    return values


def _parsed(kind: Any, path: str, text: str) -> Any:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not text:
        raise ConfigError(f"key '{path}' has no value (write {path}=null for none)")
    if text.lower() in ("null", "none"):
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if kind in (int, float, bool) or (kind is str and not quoted):
        return text
    try:
        if kind is str or get_origin(kind) is list:
            # leaves every scalar as text, so that `[007,1e3]` stays what was typed
            return yaml.load(text, yaml.BaseLoader)
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or _first_line(error)
        raise ConfigError(f"key '{path}': cannot read {shown(text)} as YAML: {problem}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def _joined(tree: dict[str, Any], more: dict[str, Any], path: str = "") -> dict[str, Any]:
    joined = dict(tree)
    for name, value in more.items():
        if name not in joined:
            joined[name] = value
        elif isinstance(value, dict) and isinstance(joined[name], dict) and value and joined[name]:
            joined[name] = _joined(joined[name], value, f"{path}{name}.")
        else:
            raise ConfigError(f"key '{path}{name}' is given twice")
    return joined


def _merged(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for name, value in high.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if value and isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _expanded(layer: dict[str, Any]) -> dict[str, Any]:
    expanded = {name: value for name, value in layer.items() if "." not in str(name)}
    for path, value in layer.items():
        if path not in expanded:
            expanded = _merged(expanded, _nested(str(path), value))
    return expanded


def _flattened(grid: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in grid.items():
        flat |= _flattened(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if hasattr(value, "tolist"):  # numpy scalars and arrays, as a notebook or a search algorithm gives them
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _without_references(value: Any) -> Any:
    def is_reference(each: Any) -> bool:
        return isinstance(each, str) and "${" in each

    if isinstance(value, dict):
        return {name: _without_references(each) for name, each in value.items() if not is_reference(each)}
    if isinstance(value, list):
        return [_without_references(each) for each in value if not is_reference(each)]
    return value


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"key '{error.full_key}': cannot follow its reference ${{...}}: {_first_line(error)}"
        ) from error


def _checked(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    values = checked(cls, values)
    if cls is SweepConfig and "grid" in values:
        values["grid"] = {path: _checked_candidates(path, each) for path, each in values["grid"].items()}
    return values


def _checked_candidates(path: str, candidates: Any) -> list[Any]:
    stages = ("pretrain", "predictivity", "fit")
    if path.partition(".")[0] not in stages:
        near = did_you_mean(path, [f"{stage}.{path}" for stage in stages])
        raise ConfigError(f"grid key '{path}' is not below pretrain, predictivity or fit{near}")
    if not isinstance(candidates, list) or not candidates:
        raise ConfigError(f"grid key '{path}': expected a list of values to try, given {shown(candidates)}")
    try:
        levels = [checked(SweepConfig, _nested(path, candidate)) for candidate in candidates]
    except ConfigError as error:
        raise ConfigError(f"grid: {error}") from error
    for name in path.split("."):
        levels = [level[name] for level in levels]
    return levels


def _built(cls: type, values: dict[str, Any]) -> Any:
    keys = level_keys(cls)
    return cls(
        **{name: _built(keys[name].kind, each) if keys[name].is_group else each for name, each in values.items()}
    )
