"""One trial, as Ray Tune sees it: pretrain a model, then measure its predictivity.

What comes in: the point of the grid, as `{dotted key: value}`, and the sweep's config as plain values. What goes out:
reports to Tune; the last one carries `predictivity`, the score of the trial. Runs lie in the trial's own folder, so a
trial that is started again goes on from its last checkpoint.
"""

from pathlib import Path
from typing import Any

from ray import tune

from ray_jobs.config import compose_mapping


def trial(point: dict[str, Any], settings: dict[str, Any], folder: str) -> None:
    """Pretrain and score one point of the grid.

    Args:
        point: values by dotted key, for example {"pretrain.optimizer.lr": 0.01}.
        settings: the sweep's whole config as nested plain values, with absolute paths.
        folder: the sweep's folder; this trial's runs go to `trials/<name of the point>/`.
    """
    from pretrain.run import pretrain
    from transfer.predictivity import predictivity
    from transfer.report_inputs import read_run

    home = Path(folder) / "trials" / point_name(point)
    config = compose_mapping("sweep", {**settings, "grid": {}, **point})
    config.pretrain.out = str(home / "pretrain")
    config.predictivity.out = str(home / "predictivity")
    config.predictivity.checkpoint = str(pretrain(config.pretrain, report=lambda measured: tune.report(measured)))
    scored = read_run(predictivity(config.predictivity))
    tune.report({"predictivity": scored.status["best_layer_score"], "neurons": scored.status["neurons"]})


def point_name(point: dict[str, Any]) -> str:
    """A folder name that tells the point: `optimizer.lr=0.01,epochs=2`."""
    parts = (f"{key.partition('.')[2]}={value}" for key, value in sorted(point.items()))
    return ",".join(parts).replace("/", "-").replace(" ", "") or "all-defaults"
