"""Charts of fitted encoders: scores by tier, their distribution over neurons, traces, receptive fields on the cortex.

What comes in: tables of `murine score` (`neurons.csv`, `traces.csv`), or places of neurons. What goes out: matplotlib
figures in the style of `charts.py`, which makes SVG or PNG of them.
"""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer.charts import LIGHT, NARROW, STYLE, WIDE

SERIES = ("series1", "series2", "series3", "series4", "series5")
MOST_DOTS = 4000  # neurons that are drawn as dots; of more, an even choice


@mpl.rc_context(STYLE)
def by_tier(table: pd.DataFrame, label: str) -> Figure:
    """A point for each tier and animal, and a bar at the protocol's one number of each tier.

    `table` has the columns `tier`, `animal` ("all" for the one number) and `value`.
    """
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    tiers = list(table["tier"].unique())
    for place, tier in enumerate(tiers):
        rows = table[table["tier"] == tier]
        animals = rows.loc[rows["animal"] != "all", "value"].to_numpy()
        axes.plot(place + np.linspace(-0.2, 0.2, len(animals)), animals, "o", color=LIGHT["trained"], markersize=4)
        one = rows.loc[rows["animal"] == "all", "value"]
        axes.hlines(one, place - 0.3, place + 0.3, color=LIGHT["ink"], linewidth=1.8)
    rotated = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(tiers) > 2 else {}
    axes.set_xticks(range(len(tiers)), tiers, **rotated)
    axes.set_xlim(-0.6, len(tiers) - 0.4)
    axes.set_ylim(min(0, 1.1 * table["value"].min()), max(0.01, 1.1 * table["value"].max()))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel(label)
    return figure


@mpl.rc_context(STYLE)
def over_neurons(scores: dict[str, np.ndarray], label: str) -> Figure:
    """How many of the neurons score no more than so much, a line for each name; undefined scores are left out."""
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    for place, (name, values) in enumerate(scores.items()):
        ordered = np.sort(values[np.isfinite(values)])
        shares = 100 * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
        keep = np.unique(np.linspace(0, len(ordered) - 1, 400).astype(int)) if len(ordered) else []
        axes.plot(ordered[keep], shares[keep], color=LIGHT[SERIES[place % len(SERIES)]], label=name)
    axes.set_xlabel(label)
    axes.set_ylabel("neurons at or below (%)")
    axes.set_ylim(0, 100)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@mpl.rc_context(STYLE)
def trace(table: pd.DataFrame, unit: str) -> Figure:
    """Measured responses with their standard error, and predicted ones, over the frames of one clip.

    `table` has the columns `frame`, `measured`, `low`, `high` and `predicted`.
    """
    figure = Figure(figsize=NARROW, layout="constrained")
    axes = figure.subplots()
    axes.fill_between(table["frame"], table["low"], table["high"], color=LIGHT["muted"], alpha=0.3, linewidth=0)
    axes.plot(table["frame"], table["measured"], color=LIGHT["muted"], linewidth=1.4, label="measured")
    axes.plot(table["frame"], table["predicted"], color=LIGHT["trained"], linewidth=1.6, label="predicted")
    axes.set_xlabel("frame")
    axes.set_ylabel(f"response ({unit})")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@mpl.rc_context(STYLE | {"axes.grid": False, "axes.spines.left": True})
def fields_on_cortex(coordinates: np.ndarray, positions: np.ndarray) -> Figure:
    """Where neurons lie in cortex, coloured by where they look: from left to right, and from top to bottom.

    `coordinates` (neurons, 2) in µm; `positions` (neurons, 2), x and y from -1 to 1.
    """
    some = np.unique(np.linspace(0, len(coordinates) - 1, min(len(coordinates), MOST_DOTS)).astype(int))
    figure = Figure(figsize=(2 * WIDE[0], WIDE[1]), layout="constrained")
    for axes, values, name in zip(figure.subplots(1, 2), positions.T, ("horizontal", "vertical"), strict=True):
        bounds = {"vmin": -1, "vmax": 1, "cmap": "viridis", "linewidths": 0}
        dots = axes.scatter(*coordinates[some, :2].T, c=values[some], s=9, **bounds)
        figure.colorbar(dots, ax=axes, label=f"{name} position in the frame", ticks=[-1, 0, 1])
        axes.set_xlabel("cortex x (µm)")
        axes.set_ylabel("cortex y (µm)")
        axes.set_aspect("equal")
    return figure


@mpl.rc_context(STYLE)
def neuron_by_neuron(first: np.ndarray, second: np.ndarray, names: tuple[str, str], label: str) -> Figure:
    """Scores of the same neurons by two models, and the line of equal ones."""
    some = np.unique(np.linspace(0, len(first) - 1, min(len(first), MOST_DOTS)).astype(int))
    figure = Figure(figsize=(NARROW[0], NARROW[0]), layout="constrained")
    axes = figure.subplots()
    axes.plot(first[some], second[some], ".", color=LIGHT["trained"], markersize=3, alpha=0.5)
    ends = [np.nanmin([first, second]), np.nanmax([first, second])]
    axes.plot(ends, ends, color=LIGHT["muted"], linewidth=1.2)
    axes.set_xlabel(f"{names[0]}: {label}")
    axes.set_ylabel(f"{names[1]}: {label}")
    axes.set_aspect("equal")
    return figure
