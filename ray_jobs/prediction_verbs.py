"""What `murine predict`, `murine score` and `murine submission` do with their typed configs.

What comes in: a config that `ray_jobs/config.py` has checked. What goes out: files where the config says, a table or
the paths on stdout, progress on stderr.
"""

import json
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from transfer.predict_config import PredictConfig, ScoreConfig, SubmissionConfig

POOLED = "all"


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
    """One row per tier, class and animal, the protocol's one number last; the protocol below."""
    index = ["tier", "stimulus_class", "animal"]
    options = ", ".join(f"{name} {value}" for name, value in protocol.items() if name != "name")
    shown = Table(title=f"Scores by the protocol {protocol['name']}", caption=options)
    metrics = list(dict.fromkeys(table["metric"]))
    for heading in index:
        shown.add_column(heading, no_wrap=True)
    for metric in metrics:
        shown.add_column(metric.replace("_", " "), justify="right")
    for key, rows in table.groupby(index, sort=False):
        values = rows.set_index("metric")["value"].reindex(metrics)
        style = "bold" if key[2] == POOLED else None
        shown.add_row(*key, *("" if pd.isna(value) else f"{value:.4f}" for value in values), style=style)
    Console().print(shown)


def submission(config: SubmissionConfig) -> None:
    """Write submission files and print their paths, or say what is in one."""
    from transfer.submission import check
    from transfer.submission import submission as write

    found = check(config) if config.check is not None else write(config)
    for line in found:
        print(Path(line).resolve() if isinstance(line, Path) else line)
