"""A sweep: Ray Tune runs the same trial for each point of a grid.

What comes in: a `SweepConfig`. What goes out: a run folder with one folder a trial, Ray's own records in `ray/`, and
`trials.csv`, a row for each point with its score. Started again, it goes on with the trials that are not finished.
"""

import copy
import dataclasses
import itertools
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd

from pretrain.durable import write_atomically
from pretrain.progress import say
from pretrain.run_folder import open_run
from ray_jobs.config import SweepConfig
from ray_jobs.trainable import point_name, trial

# What trials of each stage are ranked by.
SCORES = {"pretrain": "predictivity", "fit": "single_trial_correlation"}
PATH_KEYS = (
    ("pretrain", "data", "shards"), ("pretrain", "data", "labelled"), ("predictivity", "recording"),
    ("fit", "recording"), ("fit", "initial"), ("fit", "core", "checkpoint"), ("fit", "distillation", "teacher"),
)  # fmt: skip


def sweep(config: SweepConfig) -> tuple[Path, pd.DataFrame]:
    """Run every point of the grid; returns the sweep's folder and its table, best first.

    Raises:
        ValueError: nothing to sweep, or the pretraining or the recording is not named.
        RuntimeError: trials failed; the line names them and where their logs are.
    """
    if not config.grid:
        raise ValueError("grid is empty; for example grid.pretrain.optimizer.lr=[0.003,0.03]")
    require_stage(config)
    config = with_absolute_paths(config)
    run = open_run(config, "sweep", "sweep")
    run.status(trials=math.prod(len(values) for values in config.grid.values()))
    results = run_trials(config, run.path)
    table = trial_table(results, list(config.grid), SCORES[config.stage])
    write_atomically(run.path / "trials.csv", lambda file: table.to_csv(file, index=False))
    failed = [point_name(result.config) for result in results if result.error]
    if failed:
        run.status(state="failed")
        raise RuntimeError(
            f"{len(failed)} of {len(results)} trials failed: {'; '.join(failed)}; see {run.path / 'ray'}"
        )
    run.status(state="finished", best=table.iloc[0].to_dict())
    return run.path, table


def require_stage(config: SweepConfig) -> None:
    """Fail where the stage lacks what it works on, or a key of the grid is of the other one."""
    others = {"pretrain": ("fit",), "fit": ("pretrain", "predictivity")}[config.stage]
    if wrong := next((key for key in config.grid if key.partition(".")[0] in others), None):
        raise ValueError(f"grid.{wrong} changes nothing with stage={config.stage}; leave it out, or set stage")
    if config.stage == "fit":
        if config.fit.recording is None and not config.fit.recordings:
            raise ValueError("fit.recording is not set; make one with `murine simulate`")
        return
    if config.pretrain.data.shards is None:
        raise ValueError("pretrain.data.shards is not set; make shards with `murine shards`")
    if config.predictivity.recording is None:
        raise ValueError("predictivity.recording is not set; make one with `murine simulate`")


def with_absolute_paths(config: SweepConfig) -> SweepConfig:
    """Trials run in folders of Ray's, where a relative path would lead elsewhere."""
    config = copy.deepcopy(config)
    for *groups, key in PATH_KEYS:
        owner: Any = config
        for group in groups:
            owner = getattr(owner, group)
        if getattr(owner, key) is not None:
            setattr(owner, key, str(Path(getattr(owner, key)).expanduser().resolve()))
    config.fit.recordings = [str(Path(path).expanduser().resolve()) for path in config.fit.recordings]
    return config


def run_trials(config: SweepConfig, folder: Path):
    """Ray Tune's results for the whole grid, resumed where Ray has a record of it."""
    # Restoring reads the last snapshot of the experiment: every second loses at most a second.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    # A local cluster of one user needs no token, and asking for one prints a notice.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray
    from ray import tune

    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=True, logging_level="ERROR")
    settings = dataclasses.asdict(config) | {"out": None}
    resources = {"cpu": config.cpus_per_trial, "gpu": config.gpus_per_trial}
    bound = tune.with_resources(tune.with_parameters(trial, settings=settings, folder=str(folder)), resources)
    space = {key: tune.grid_search(values) for key, values in config.grid.items()}
    try:
        if tune.Tuner.can_restore(str(folder / "ray")):
            say(f"going on with the trials in {folder} that are not finished")
            tuner = tune.Tuner.restore(str(folder / "ray"), bound, resume_errored=True, param_space=space)
        else:
            tuner = tune.Tuner(
                bound,
                param_space=space,
                tune_config=tune.TuneConfig(max_concurrent_trials=config.max_concurrent or None),
                run_config=tune.RunConfig(name="ray", storage_path=str(folder), verbose=1),
            )
        return tuner.fit()
    finally:
        if started_here:
            ray.shutdown()


def trial_table(results: Any, keys: list[str], score: str) -> pd.DataFrame:
    """One row a trial: its point, its score, what the probes measured last, and seconds; best score first."""
    measured = (score, "knn_accuracy", "rankme", "neurons", "time_total_s")
    rows = []
    for result in results:
        metrics = last_values(result)
        rows.append({key: result.config[key] for key in keys} | {name: metrics.get(name) for name in measured})
    table = pd.DataFrame(rows).dropna(axis=1, how="all")
    for name in set(keys) | {score}:
        if name not in table:
            table[name] = math.nan
    return table.sort_values(score, ascending=False, ignore_index=True)


def last_values(result: Any) -> dict[str, Any]:
    """The last value of each metric of a trial: probes and the score are reported at different times."""
    found: dict[str, Any] = {}
    frames = [result.metrics_dataframe] if result.metrics_dataframe is not None else []
    for row in itertools.chain.from_iterable(frame.to_dict("records") for frame in frames):
        found |= {key: value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
    return found
