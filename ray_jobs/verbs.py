"""What each verb of the `murine` command does with its typed config.

What comes in: a config dataclass that `ray_jobs/config.py` has checked. What goes out: files where the config says,
a table or the path of the result on stdout, progress on stderr.
"""

import dataclasses
import fnmatch
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.table import Table

from neural_data.simulate import SimulationConfig, write_simulation
from pretrain.config import PretrainConfig, ShardsConfig
from ray_jobs.config import ModelsConfig, RecipesConfig, SweepConfig, list_recipes
from ray_jobs.help import describe_recipe
from ray_jobs.keys import did_you_mean
from transfer.config import PredictivityConfig, ReportConfig, TasksConfig
from transfer.fit_config import FitConfig

if TYPE_CHECKING:
    from pretrain.sources import Source

MADE_ON_THE_SPOT = "simulated"
FEW_MODELS = 3  # up to this many are listed with all their layers


def shards(config: ShardsConfig) -> None:
    """Write shards, or verify them."""
    from pretrain.shards import verify_shards, write_shards
    from pretrain.sources import open_source

    if config.verify is not None:
        problems = verify_shards(config.verify)
        if problems:
            raise ValueError(f"{config.verify}: {len(problems)} problems: {'; '.join(problems)}")
        print(f"{config.verify}: every shard is as the index says")
        return
    if config.source is None or config.out is None:
        raise ValueError(
            "shards needs source=<folder, file, URL or `simulated`> and out=<folder or URL>, or verify=<folder or URL>"
        )
    source = simulated_source(config) if config.source == MADE_ON_THE_SPOT else open_source(config)
    index = write_shards(source, config)
    labels = f", {len(index['labels'])} labels" if index["labels"] else ", no labels"
    depth = " and depth maps" if index.get("depth") else ""
    signals = "".join(f", {name} ({channels})" for name, channels in index.get("signals", {}).items())
    kind = index.get("kind", "images")
    print(f"{config.out}: {index['samples']:,} {kind}{depth}{signals}{labels}, {len(index['shards'])} shards")


def simulated_source(config: ShardsConfig) -> "Source":
    """Patches of photographs and dead leaves, of `where=split=train` (default) or `split=test`, which never overlap.

    The label says which photograph, or leaves. With `depth=simulated` they are all leaves, whose depth is known, and
    have no labels.
    """
    from neural_data.natural_images import SPLITS, depth_samples, image_samples
    from pretrain.sources import Item, Source

    key, _, split = (config.where or "split=train").partition("=")
    if key != "split" or split not in SPLITS:
        raise ValueError(
            f"source=simulated has where=split={' or where=split='.join(SPLITS)}, found where={config.where}"
        )

    if config.depth not in (None, MADE_ON_THE_SPOT) or config.depth_column is not None:
        raise ValueError("source=simulated takes no other depth than depth=simulated")
    plain = ShardsConfig()
    for key in ("labels", "label_column", "image_column", "clip_frames", "frame_rate_hz"):
        if (value := getattr(config, key)) != getattr(plain, key):
            raise ValueError(f"source=simulated makes images with labels of their own; leave out {key}={value}")

    def items(start: int) -> Iterator[Item]:
        arguments = (config.images, config.size, config.seed, split)
        if config.depth:
            samples = (Item(name, image, depth=depth) for name, image, depth in depth_samples(*arguments))
        else:
            samples = (Item(name, image, label) for name, image, label in image_samples(*arguments))
        return islice(samples, start, None)

    fingerprint = f"simulated {config.images} {config.size} {config.seed} {split}"
    return Source(config.images, items, fingerprint + (" depth" if config.depth else ""))


def simulate(config: SimulationConfig) -> None:
    """Write a simulated recording and its truth; the same command finds it complete."""
    from neural_data.formats import read_recordings

    if config.out is None:
        raise ValueError(
            "out is not set; name the folder that receives the recording, for example out=recordings/simulated"
        )
    folder = Path(config.out)
    made_with = folder / "truth_config.json"
    settings = json.dumps(dataclasses.asdict(config) | {"out": None})
    if made_with.exists() and made_with.read_text() == settings:
        print(f"{folder} is complete already")
    else:
        write_simulation(config)
        made_with.write_text(settings)
    if config.format == "packaged":
        [package] = folder.glob("*.pkl")
        print(f"{package}: read it with `murine data convert {package} out=<folder>`")
    else:
        for recording in read_recordings(folder):
            print(recording.summary())
    print(folder)


def pretrain(config: PretrainConfig) -> None:
    """Train a backbone."""
    from pretrain.process_group import is_first_process
    from pretrain.run import pretrain as run

    folder = run(config)
    if is_first_process():
        print(folder)


def views(config: PretrainConfig) -> None:
    """Draw what a pretraining with this config would see of a few images."""
    from pretrain.run import draw_views

    print(draw_views(config, Path(config.out or "views.png")))


def predictivity(config: PredictivityConfig) -> None:
    """Score a model's layers on a recording and print the table."""
    from transfer.predictivity import predictivity as run

    folder = run(config)
    show_predictivity(pd.read_parquet(folder / "predictivity.parquet"))
    show_one_number(pd.read_csv(folder / "chosen.csv").fillna({"area": ""}))
    print(folder)


def show_predictivity(table: pd.DataFrame) -> None:
    """The rows that pool all areas and animals, and how many neurons were left out."""
    pooled = table[(table["area"] == "all") & (table["animal"] == "all")]
    reasons = ("unselected", "silent", "unreliable", "unscored")
    excluded = ", ".join(f"{pooled[f'excluded_{reason}'].max()} {reason}" for reason in reasons)
    shown = Table(
        title="Predictivity, corrected for noise: median over neurons",
        caption=f"neurons excluded: {excluded}",
    )
    for heading in ("model", "layer"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("features", "median", "95 % interval", "neurons"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in pooled.itertuples():
        interval = f"{row.low:.3f} to {row.high:.3f}"
        shown.add_row(row.model, row.layer, f"{row.features:,}", f"{row.median:.3f}", interval, str(row.neurons))
    Console().print(shown)


def show_one_number(table: pd.DataFrame) -> None:
    """One number per model and area, at layers that were chosen without the stimuli that it is of."""
    shown = Table(title="One number: layers chosen on train stimuli, scored on test stimuli")
    for heading in ("model", "area", "layers, by split"):
        shown.add_column(heading, overflow="fold")
    for heading in ("median", "95 % interval", "neurons"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table.itertuples():
        interval = f"{row.low:.3f} to {row.high:.3f}"
        shown.add_row(row.model, row.area or "unnamed", row.layers, f"{row.median:.3f}", interval, str(row.neurons))
    Console().print(shown)


def fit(config: FitConfig) -> None:
    """Fit an encoder and print its scores on the validation trials."""
    from transfer.fit import fit as run

    folder = run(config)
    show_fit(json.loads((folder / "status.json").read_text()))
    print(folder)


def show_fit(status: dict) -> None:
    """The validation scores of the best epoch, by animal, with what they are of."""
    if not status.get("scores"):
        return
    options = ", ".join(f"{name} {value}" for name, value in status["score_options"].items())
    shown = Table(title=f"Validation, best epoch {status['best']['epoch']}", caption=options)
    shown.add_column("animal", no_wrap=True)
    shown.add_column("single-trial correlation", justify="right")
    for animal, score in status["scores"].items():
        shown.add_row(animal, f"{score:.4f}")
    Console().print(shown)


def tasks(config: TasksConfig) -> None:
    """Read a model's layers on a transfer task and print the means over its splits."""
    from transfer.tasks import tasks as run

    folder = run(config)
    show_tasks(pd.read_parquet(folder / "tasks.parquet"))
    print(folder)


def show_tasks(table: pd.DataFrame) -> None:
    """Mean and standard deviation over the splits, of accuracies and of R²."""
    shown = Table(title="Readouts: accuracy of classes, R² of numbers, mean over splits ± standard deviation")
    for heading in ("model", "layer", "target", "variable"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("train", "test", "splits"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for key, group in table.groupby(["model", "layer", "target", "variable"], sort=False):
        spread = f" ± {group['test_acc'].std():.3f}" if len(group) > 1 else ""
        test = f"{group['test_acc'].mean():.3f}{spread}"
        shown.add_row(*key, f"{group['train_acc'].mean():.3f}", test, str(len(group)))
    Console().print(shown)


def report(config: ReportConfig) -> None:
    """Write the page."""
    from transfer.report import report as run

    print(run(config).resolve())


def sweep(config: SweepConfig) -> None:
    """Run the grid and print its table."""
    from ray_jobs.sweep import sweep as run

    folder, table = run(config)
    shown = Table(title="Sweep, best first")
    for column in table.columns:
        shown.add_column(column.removeprefix("pretrain.").removeprefix("fit."), overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    Console().print(shown)
    print(Path(folder))


def recipes(config: RecipesConfig) -> None:
    """List the recipes of a verb with what each one is."""
    paths = list_recipes(config.verb)
    names = fnmatch.filter(paths, config.pattern)
    if not names:
        raise ValueError(
            f"no recipe of {config.verb} matches {config.pattern!r}{did_you_mean(config.pattern, paths)} "
            f"(it has {len(paths)}; pattern='*' lists them)"
        )
    shown = Table("recipe", "what it is")
    for name in names:
        shown.add_row(name, describe_recipe(paths[name]))
    Console().print(shown)


def models(config: ModelsConfig) -> None:
    """List backbones and cores with size and cost; mouse-vision's names and timm's too where the pattern asks."""
    names = matching_models(config.pattern, config.aliases)
    if config.table is not None:
        from ray_jobs.models_table import write_table

        write_table(config.table, names)
        print(config.table)
        return
    shown = Table(box=None, pad_edge=False)
    shown.add_column("model", no_wrap=True)
    for heading in ("input", "parameters", "multiply-adds"):
        shown.add_column(heading, justify="right", no_wrap=True)
    in_full = len(names) <= FEW_MODELS
    for heading in ("layers for fits" if in_full else "layers", "paper"):
        shown.add_column(heading, overflow="fold")
    for name in names:
        shown.add_row(name, *model_facts(name, in_full))
    Console().print(shown)


def model_facts(name: str, in_full: bool) -> tuple[str, ...]:
    """Input, parameters, multiply-adds, layers for fits (or their number) and paper of a backbone or a core."""
    import torch

    from pretrain.models import core_names, create_model, model_info
    from pretrain.models.multiply_adds import multiply_adds, multiply_adds_of

    core = core_names().get(name)
    if core is not None:
        size, layers, paper = " x ".join(map(str, core.input)), (), core.paper
        if name == "backbone":
            return size, "any", "any", "", paper
    else:
        info = model_info(name)
        size, layers, paper = str(info.input_size), info.fit_layers, info.paper
    made_for = {"input_size": info.input_size} if name.startswith("timm/") else {}
    with torch.device("meta"):
        model = create_model(name, **made_for)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    adds = multiply_adds_of(model, *core.stimulus_shapes()) if core else multiply_adds(model, info.input_size)
    listed = " ".join(layers) if in_full else str(len(layers) or "")
    return size, f"{parameters:,}", f"{adds / 1e6:,.1f} M", listed, paper if in_full else paper.split(",")[0]


def matching_models(pattern: str, aliases: bool = False) -> list[str]:
    """Names of our backbones and cores that match; timm's where the pattern begins with `timm/`.

    Names that mouse-vision uses are listed with `aliases`, or where none of ours matches.
    """
    from pretrain.models import TIMM_PREFIX, core_names, list_aliases, list_models

    if pattern.startswith(TIMM_PREFIX):
        import timm

        names = [TIMM_PREFIX + name for name in timm.list_models(pattern.removeprefix(TIMM_PREFIX))]
    else:
        names = fnmatch.filter([*list_models(), *sorted(core_names())], pattern)
        if aliases or not names:
            names = [*names, *fnmatch.filter(list_aliases(), pattern)]
    if not names:
        ours = ", ".join([*list_models(), *sorted(core_names())])
        raise ValueError(
            f"no model matches {pattern!r}; ours: {ours}; mouse-vision's: shi_*, simplified_*, ...; timm/*"
        )
    return names
