"""What `murine predict`, `murine score` and `murine submission` do with their typed configs.

What comes in: a config that `ray_jobs/config.py` has checked. What goes out: files where the config says, a table or
the paths on stdout, progress on stderr.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from transfer.predict_config import PredictConfig, ScoreConfig, SubmissionConfig

POOLED = "all"
PIPED_WIDTH = 120  # characters in a line of a table where there is no terminal to ask
# Metrics that the printed table has, with their heads; the file has all.
SHOWN = {
    "single_trial_correlation": "single trial",
    "correlation_to_average": "to average",
    "normalized_correlation": "CC norm",
    "feve": "FEVE",
    "single_trial_ceiling": "ceiling",
}


def predict(config: PredictConfig) -> None:
    """Predict and print the run folder."""
    from transfer.predict import predict as run

    print(run(config))


def score(config: ScoreConfig) -> None:
    """Score predictions, and print every tier's scores with the options they are of."""
    from transfer.score import score as run

    folder = run(config)
    show_scores(pd.read_csv(folder / "scores.csv"), json.loads((folder / "protocol.json").read_text()))
    print(folder)


def show_scores(table: pd.DataFrame, protocol: dict) -> None:
    """One row per tier, class and animal, the protocol's one number last; the protocol below. `ceiling` is that of the
    single-trial correlation."""
    index = ["tier", "stimulus_class", "animal"]
    options = ", ".join(f"{name} {value}" for name, value in protocol.items() if name != "name")
    shown = Table(title=f"Scores by the protocol {protocol['name']}", caption=options)
    metrics = [metric for metric in SHOWN if metric in set(table["metric"])]
    for heading in ("tier", "class", "animal"):
        shown.add_column(heading, overflow="fold")
    for metric in metrics:
        shown.add_column(SHOWN[metric], justify="right", no_wrap=True)
    for key, rows in table.groupby(index, sort=False):
        values = rows.set_index("metric")["value"].reindex(metrics)
        style = "bold" if key[2] == POOLED else None
        shown.add_row(*key, *("" if pd.isna(value) else f"{value:.4f}" for value in values), style=style)
    Console(width=shutil.get_terminal_size((PIPED_WIDTH, 0)).columns).print(shown)


def submission(config: SubmissionConfig) -> None:
    """Write submission files and print their paths, or say what is in one."""
    from transfer.submission import check
    from transfer.submission import submission as write

    found = check(config) if config.check is not None else write(config)
    for line in found:
        print(Path(line).resolve() if isinstance(line, Path) else line)
