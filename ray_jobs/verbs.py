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
from ray_jobs.config import ModelsConfig, SweepConfig
from transfer.config import PredictivityConfig, ReportConfig

if TYPE_CHECKING:
    from pretrain.sources import Source

MADE_ON_THE_SPOT = "simulated"


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
            "shards needs source=<folder, .parquet file or `simulated`> and out=<folder>, or verify=<folder>"
        )
    source = simulated_source(config) if config.source == MADE_ON_THE_SPOT else open_source(config)
    index = write_shards(source, config)
    labels = f", {len(index['labels'])} labels" if index["labels"] else ", no labels"
    print(f"{config.out}: {index['samples']:,} images{labels}, {len(index['shards'])} shards")


def simulated_source(config: ShardsConfig) -> "Source":
    """Patches of photographs and dead leaves, of `where=split=train` (default) or `split=test`, which never overlap.

    The label says which photograph, or leaves.
    """
    from neural_data.natural_images import SPLITS, image_samples
    from pretrain.sources import Item, Source

    key, _, split = (config.where or "split=train").partition("=")
    if key != "split" or split not in SPLITS:
        raise ValueError(
            f"source=simulated has where=split={' or where=split='.join(SPLITS)}, found where={config.where}"
        )

    def items(start: int) -> Iterator[Item]:
        samples = image_samples(config.images, config.size, config.seed, split)
        return (Item(name, image, label) for name, image, label in islice(samples, start, None))

    fingerprint = f"simulated {config.images} {config.size} {config.seed} {split}"
    return Source(config.images, items, fingerprint)


def simulate(config: SimulationConfig) -> None:
    """Write a simulated recording and its truth; the same command finds it complete."""
    from neural_data.arrays import read_arrays

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
    print(read_arrays(folder).summary())
    print(folder)


def pretrain(config: PretrainConfig) -> None:
    """Train a backbone."""
    from pretrain.run import pretrain as run

    print(run(config))


def predictivity(config: PredictivityConfig) -> None:
    """Score a model's layers on a recording and print the table."""
    from transfer.predictivity import predictivity as run

    folder = run(config)
    show_predictivity(pd.read_parquet(folder / "predictivity.parquet"))
    print(folder)


def show_predictivity(table: pd.DataFrame) -> None:
    """The rows that pool all areas and animals, and how many neurons were left out."""
    pooled = table[(table["area"] == "all") & (table["animal"] == "all")]
    reasons = ("silent", "unreliable", "unscored")
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
        shown.add_column(column.removeprefix("pretrain."), overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    Console().print(shown)
    print(Path(folder))


def models(config: ModelsConfig) -> None:
    """List backbones with their number of parameters and fit layers; timm's too where the pattern asks for them."""
    import torch

    from pretrain.models import TIMM_PREFIX, create_model, list_models, model_info

    names = [name for name in list_models() if fnmatch.fnmatch(name, config.pattern)]
    if config.pattern.startswith(TIMM_PREFIX):
        import timm

        names += [TIMM_PREFIX + name for name in timm.list_models(config.pattern.removeprefix(TIMM_PREFIX))]
    if not names:
        raise ValueError(f"no model matches {config.pattern!r}; ours: {', '.join(list_models())}; timm's: timm/*")
    shown = Table("model", "parameters", "input", "fit layers", "source")
    for name in names:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in create_model(name).parameters())
        info = model_info(name)
        shown.add_row(name, f"{parameters:,}", f"{info.input_size}", " ".join(info.fit_layers), info.source)
    Console().print(shown)
