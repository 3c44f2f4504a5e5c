"""One trial, as Ray Tune sees it: pretrain a model and measure its predictivity, or fit an encoder.

What comes in: the point of the grid, as `{dotted key: value}`, and the sweep's config as plain values. What goes out:
reports to Tune; those of a fit carry `single_trial_correlation`, the last one of a pretraining `predictivity`: the
score of the trial. Runs lie in the trial's own folder, so a trial that is started again goes on from its last
checkpoint.
"""

from pathlib import Path
from typing import Any

from ray import tune

from ray_jobs.config import SweepConfig, compose_mapping


def trial(point: dict[str, Any], settings: dict[str, Any], folder: str) -> None:
    """Pretrain and score, or fit, one point of the grid.

    Args:
        point: values by dotted key, for example {"pretrain.optimizer.lr": 0.01}.
        settings: the sweep's whole config as nested plain values, with absolute paths.
        folder: the sweep's folder; this trial's runs go to `trials/<name of the point>/`.
    """
    home = Path(folder) / "trials" / point_name(point)
    config = compose_mapping("sweep", {**settings, "grid": {}, **point})
    stages = {"pretrain": pretrained, "fit": fitted}
    stages[config.stage](config, home)


def fitted(config: SweepConfig, home: Path) -> None:
    """Fit; the scores of the best epoch are reported last."""
    from transfer.fit import fit
    from transfer.fitted import load_fitted

    config.fit.out = str(home / "fit")
    scores = load_fitted(fit(config.fit, report=lambda measured: tune.report(measured))).scores
    tune.report({"single_trial_correlation": sum(scores.values()) / len(scores)} if scores else {})


def pretrained(config: SweepConfig, home: Path) -> None:
    """Pretrain, then measure how well the layers predict neurons."""
    from pretrain.run import pretrain
    from transfer.predictivity import predictivity
    from transfer.report_inputs import read_run

    config.pretrain.out = str(home / "pretrain")
    config.predictivity.out = str(home / "predictivity")
    config.predictivity.checkpoint = str(pretrain(config.pretrain, report=lambda measured: tune.report(measured)))
    scored = read_run(predictivity(config.predictivity))
    tune.report({"predictivity": scored.status["best_layer_score"], "neurons": scored.status["neurons"]})


def point_name(point: dict[str, Any]) -> str:
    """A folder name that tells the point: `optimizer.lr=0.01,epochs=2`."""
    parts = (f"{key.partition('.')[2]}={value}" for key, value in sorted(point.items()))
    return ",".join(parts).replace("/", "-").replace(" ", "") or "all-defaults"
