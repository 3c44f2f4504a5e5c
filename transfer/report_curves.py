"""What the report page tells of a pretraining run: training curves, and pictures of filters and views.

Comes in: a `Section` of the run, and the files in its folder (`transfer/report_inputs.py`). Goes out: the section,
filled. RankMe is that of Garrido et al. 2023 (https://arxiv.org/abs/2210.02885).
"""

import math

import numpy as np
import pandas as pd
from markupsafe import Markup

from transfer import charts
from transfer.report_inputs import read_curves, read_picture
from transfer.report_parts import Picture, Section, drawn_chart

MOST_POINTS = 400  # of a curve; a longer one is averaged, for its picture has no more columns to show it in
LOGARITHMIC = 20  # a learning rate that falls by more than this factor is drawn on a logarithmic axis
FROM_ZERO = ("knn_accuracy", "rankme", "feature_std", "images_per_s", "lr")
PANELS = {  # column of metrics.csv: title, axis label, what it is
    "loss": ("Loss", "loss", ""),
    "knn_accuracy": ("kNN accuracy", "accuracy (%)", "Held-out images, labelled by their nearest neighbours."),
    "rankme": ("RankMe", "effective dimensions", "How many directions the features use."),
    "feature_std": ("Feature spread", "share of isotropic", "1: as spread out as random directions; 0: collapsed."),
    "images_per_s": ("Speed", "images / s", ""),
    "lr": ("Learning rate", "learning rate", ""),
}
SHEETS = {  # file: title, words for those who cannot see it, note
    "filters.png": (
        "First-layer filters",
        "Grid of the filters of the first layer, as small pictures",
        "The weights of the first layer at the last probe, each filter as a picture.",
    ),
    "views.png": (
        "Training images and their views",
        "Grid of pictures: in each row an image, then its augmented views",
        "In each row an image, then random views of it as training sees them.",
    ),
}


def add_curves(section: Section) -> None:
    curves = read_curves(section.run.folder)
    if curves is None:
        section.warnings.append("There are no training curves: metrics.csv is absent or has no rows yet.")
        return
    absent = [PANELS[name][0] for name in PANELS if name not in curves]
    if absent:
        why = " (kNN accuracy needs labelled images)" if "knn_accuracy" not in curves else ""
        section.warnings.append(f"Not measured in this run: {', '.join(absent)}{why}.")
    parts_of_loss = [name for name in curves if name.endswith("_loss")]
    order = ["loss", *parts_of_loss, *PANELS, *curves]
    section.panels_title = "Training curves"
    for name in dict.fromkeys(name for name in order if name in curves):
        _add_curve(section, name, curves[name])
    last = {panel.title: panel.value for panel in section.panels}
    chance = section.run.status.get("knn_chance")
    notes = {"Loss": "last logged"}
    if isinstance(chance, int | float):
        notes["kNN accuracy"] = f"last probe; chance is {100 * chance:.3g} %"
    shown = [title for title in ("kNN accuracy", "RankMe", "Feature spread", "Loss") if title in last]
    section.tiles = [{"label": title, "value": last[title], "note": notes.get(title, "last probe")} for title in shown]
    named = [f"{title} {last[title]}" for title in ("kNN accuracy", "RankMe") if title in last]
    if "Loss" in last:
        stands = "ended" if section.run.status.get("state") == "finished" else "stood"
        section.headline = ", ".join([f"Training {stands} at a loss of {last['Loss']}", *named]) + "."


def _add_curve(section: Section, name: str, points: pd.DataFrame) -> None:
    """One panel of training curves; rows without a number are counted in a warning."""
    words = name.replace("_", " ")
    title, label, note = PANELS.get(name, (words.capitalize(), words, ""))
    finite = points[np.isfinite(points).all(axis=1)]
    if len(finite) < len(points):
        bad = len(points) - len(finite)
        section.warnings.append(f"{title}: {bad:,} of {len(points):,} logged values are not finite numbers.")
    if finite.empty:
        return
    scale, unit = (100, " %") if name == "knn_accuracy" else (1, "")
    rows_each = math.ceil(len(finite) / MOST_POINTS)
    if rows_each > 1:
        note = f"{note} Each point is the mean of {rows_each} logged rows.".strip()
    drawn = finite.groupby(np.arange(len(finite)) // rows_each).mean() * {"x": 1, "y": scale}
    chance = section.run.status.get("knn_chance") if name == "knn_accuracy" else None
    reference = (scale * chance, "chance") if isinstance(chance, int | float) else None
    low, high = drawn["y"].min(), drawn["y"].max()
    logarithmic = name == "lr" and low > 0 and bool(high / low > LOGARITHMIC)
    x_label = points.attrs["x_label"]
    figure = charts.curve(drawn, x_label, label, reference, name in FROM_ZERO, logarithmic)
    first, last = (f"{scale * finite['y'].iloc[place]:.4g}{unit}" for place in (0, -1))
    picture = drawn_chart(figure, section, title, f"Over {x_label}, from {first} to {last}.", note)
    picture.value = last
    section.panels.append(picture)


def add_sheets(section: Section) -> None:
    for name, (title, spoken, note) in SHEETS.items():
        address = read_picture(section.run.folder / name)
        if address is None:
            section.warnings.append(f"{title}: there is no {name} in this folder.")
            continue
        kind = "filters" if name == "filters.png" else "photos"
        image = Markup('<img src="{}" alt="{}" class="{}">').format(address, spoken, kind)
        section.sheets.append(Picture(title, image, note))
