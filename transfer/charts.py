"""Charts of a report: predictivity by layer, area and animal, runs side by side, training curves.

What comes in: pandas tables with the columns of `predictivity.csv` (`model`, `layer`, `area`, `animal`,
`median`, `low`, `high`; scores are noise-corrected correlations, without unit), or arrays of points. What goes
out: matplotlib figures, and from them SVG text for inlining in a page, or a PNG file on white.

An inlined SVG takes every colour from a CSS variable (`--chart-ink`, ...), so that one drawing serves light and
dark mode; its text stays text, in the page's font. Colours are those of Okabe and Ito (2008), which colour-blind
readers can tell apart (https://jfly.uni-koeln.de/color/); each kind of model also has its own marker.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

LIGHT = {
    "ink": "#1c2026",
    "muted": "#5b6470",
    "grid": "#e4e7eb",
    "paper": "#ffffff",
    "trained": "#0072b2",
    "random": "#d55e00",
    "pixels": "#009e73",
    "gabor": "#b0578d",
    "animals": "#5b6471",
    "series1": "#0073b3",
    "series2": "#b37400",
    "series3": "#2a94d6",
    "series4": "#7a4fbf",
    "series5": "#8a8000",
}
DARK = {
    "ink": "#e8eaed",
    "muted": "#a4adb8",
    "grid": "#343a43",
    "paper": "#1b1f25",
    "trained": "#56b4e9",
    "random": "#f08a3c",
    "pixels": "#2fc79a",
    "gabor": "#e08cc0",
    "animals": "#a4adb9",
    "series1": "#57b5ea",
    "series2": "#f0b13c",
    "series3": "#9ad4f7",
    "series4": "#b89af0",
    "series5": "#d9cf4a",
}
MODEL_NAMES = {
    "trained": "trained",
    "random": "random weights",
    "gabor": "Gabor energies",
    "pixels": "pixels",
    "animals": "other animals",
}
MARKERS = {"trained": "o", "random": "s", "gabor": "v", "pixels": "D", "animals": "_"}
SERIES_MARKERS = "o^P*X"  # of checkpoints that are compared, in their order
BANDS = ("gabor", "pixels", "animals")  # what has one score for all layers, and is drawn as a band
SCORE_LABEL = "median predictivity"
WIDE, NARROW = (4.7, 3.6), (4.2, 2.7)  # inches: a phone 390 px wide shows both at about that size
ROW_HEIGHT = 0.46  # inches of one run among runs compared
LONGEST_LABEL = 18  # characters
CHARACTER_WIDTH = 0.62  # of the font size: the mean advance of DejaVu Sans, which the layout is made with
LEGEND_COLUMNS = 2
CROWDED = 14  # ticks above which labels stand upright
FEW_POINTS = 40  # a curve with fewer shows each
STYLE = {
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "text.color": LIGHT["ink"],
    "axes.labelcolor": LIGHT["muted"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "ytick.labelcolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 1.0,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.4,
    "text.parse_math": False,  # a layer name with a dollar sign is a name, not mathematics
    "svg.fonttype": "none",
}


def model_name(model: str) -> str:
    """A model in words: `random alexnet_bn` is `random weights (alexnet_bn)`, a checkpoint's name stays."""
    kind, _, rest = model.partition(" ")
    return MODEL_NAMES.get(model) or (f"{MODEL_NAMES[kind]} ({rest})" if kind in MODEL_NAMES else model)


def kind_of(model: str) -> str:
    """`trained`, `random`, `gabor`, `pixels` or `animals`; of a checkpoint that is compared its name."""
    kind = model.partition(" ")[0]
    return kind if kind in MODEL_NAMES else model


def models_in(table: pd.DataFrame) -> list[str]:
    """Models in a table: checkpoints in its order, then random weights, Gabor energies, pixels, other animals."""
    places = {kind: place for place, kind in enumerate(MODEL_NAMES, 1)}
    return sorted(dict.fromkeys(table["model"]), key=lambda model: places.get(kind_of(model), 0))


def looks(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour name and marker of each model; checkpoints that are compared take theirs in turn."""
    found, others = {}, 0
    for model in models:
        kind = kind_of(model)
        if kind in MODEL_NAMES:
            found[model] = (kind, MARKERS[kind])
        else:
            found[model] = (f"series{others % len(SERIES_MARKERS) + 1}", SERIES_MARKERS[others % len(SERIES_MARKERS)])
            others += 1
    return found


@mpl.rc_context(STYLE)
def by_layer(table: pd.DataFrame, limits: tuple[float, float] | None = None, small: bool = False) -> Figure:
    """Median predictivity of each layer with its 95 % interval; what has no layers is a horizontal band.

    `table` has one row per model and layer, in network order. A small figure stands among others: it leaves the
    legend to the page and takes its score `limits` from all of them.
    """
    figure = Figure(figsize=NARROW if small else WIDE, layout="constrained")
    axes = figure.subplots()
    models = models_in(table)
    look = looks(models)
    lines = [model for model in models if kind_of(model) not in BANDS]
    layers = list(table.loc[table["model"].isin(lines), "layer"].unique())
    for place, model in enumerate(lines):
        rows, colour = table[table["model"] == model].set_index("layer").reindex(layers), LIGHT[look[model][0]]
        x = np.arange(len(layers)) + 0.12 * (place - (len(lines) - 1) / 2)  # so that no interval hides another
        axes.plot(x, rows["median"], color=colour, alpha=0.5, linewidth=1.5)
        axes.vlines(x, rows["low"], rows["high"], color=colour, linewidth=1.4)
        for end in ("low", "high"):
            axes.plot(x, rows[end], "_", color=colour, markersize=6, markeredgewidth=1.4)
        _points(axes, x, rows["median"], look[model], 5, _printable(model_name(model)))
    for model in models[len(lines) :]:
        _band(axes, table[table["model"] == model].iloc[0], look[model][0])
    axes.set_xlim(-0.5, max(len(layers), 1) - 0.5)
    axes.set_ylim(*(limits or score_limits(table)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    _name_ticks(axes, layers)
    axes.set_ylabel(SCORE_LABEL)
    if not small:
        axes.set_xlabel("layer, from input to output")
        _legend(figure, models)
    return figure


@mpl.rc_context(STYLE)
def by_animal(table: pd.DataFrame) -> Figure:
    """A point for each area and animal, and a bar at each area's median with its 95 % interval as a thin line.

    `table` has one row per model, area and animal at one layer; the animal `all` is the pooled row of its area.
    """
    figure = Figure(figsize=WIDE, layout="constrained")
    axes = figure.subplots()
    areas, models = list(table["area"].unique()), models_in(table)
    look, slot = looks(models), 0.84 / len(models)
    for place, model in enumerate(models):
        rows = table[table["model"] == model]
        centres = np.arange(len(areas)) + slot * (place - (len(models) - 1) / 2)
        for centre, area in zip(centres, areas, strict=True):
            medians = rows.loc[(rows["area"] == area) & (rows["animal"] != "all"), "median"].to_numpy()
            _points(axes, centre + slot * np.linspace(-0.3, 0.3, len(medians)), medians, look[model], 4)
        pooled = rows[rows["animal"] == "all"].set_index("area").reindex(areas)
        ends = (centres - 0.4 * slot, centres + 0.4 * slot)
        axes.hlines(pooled["median"], *ends, color=LIGHT["ink"], linewidth=1.8, zorder=4)
        axes.vlines(centres, pooled["low"], pooled["high"], color=LIGHT["ink"], linewidth=1.2, zorder=4)
        _points(axes, [], [], look[model], 5, _printable(model_name(model)))
    axes.set_xlim(-0.5, len(areas) - 0.5)
    axes.set_ylim(*score_limits(table, intervals=False))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    _name_ticks(axes, areas)
    axes.set_ylabel(SCORE_LABEL)
    axes.set_xlabel("visual area")
    _legend(figure, models)
    return figure


@mpl.rc_context(STYLE | {"axes.grid.axis": "x"})
def model_differences(table: pd.DataFrame) -> Figure:
    """Differences of medians between pairs of models with their 95 % intervals, one row per pair, and a line at zero.

    `table` has the columns `model_a`, `model_b`, `difference`, `low`, `high`.
    """
    figure = Figure(figsize=(WIDE[0], 0.9 + 0.34 * len(table)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=LIGHT["muted"], linewidth=1.2)
    heights = np.arange(len(table))
    axes.hlines(heights, table["low"], table["high"], color=LIGHT["ink"], linewidth=1.6)
    axes.plot(table["difference"], heights, "o", color=LIGHT["ink"], markersize=5)
    names = [
        f"{_printable(model_name(row.model_a))} \N{MINUS SIGN} {_printable(model_name(row.model_b))}"
        for row in table.itertuples()
    ]
    axes.set_yticks(heights, names)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("difference of median predictivity")
    return figure


@mpl.rc_context(STYLE | {"axes.grid.axis": "x"})
def runs_compared(table: pd.DataFrame) -> Figure:
    """The best layer of each kind of model with its 95 % interval, one row per run from top to bottom.

    `table` has the columns `run`, `model`, `median`, `low`, `high`, one row per run and model.
    """
    runs, models = list(table["run"].unique()), models_in(table)
    look = looks(models)
    figure = Figure(figsize=(WIDE[0], 1.1 + ROW_HEIGHT * len(runs)), layout="constrained")
    axes = figure.subplots()
    for place, model in enumerate(models):
        rows = table[table["model"] == model].set_index("run").reindex(runs)
        heights = np.arange(len(runs)) + 0.22 * (place - (len(models) - 1) / 2)
        axes.hlines(heights, rows["low"], rows["high"], color=LIGHT[look[model][0]], linewidth=1.6)
        _points(axes, rows["median"], heights, look[model], 6, _printable(model_name(model)))
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlim(*score_limits(table))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_yticks(range(len(runs)), [_printable(run, LONGEST_LABEL + 6) for run in runs])
    axes.set_xlabel(SCORE_LABEL)
    _legend(figure, models)
    return figure


@mpl.rc_context(STYLE)
def curve(
    points: pd.DataFrame,
    x_label: str,
    y_label: str,
    reference: tuple[float, str] | None = None,
    from_zero: bool = False,
    logarithmic: bool = False,
) -> Figure:
    """One curve over training; `reference` is a level with its name, drawn dashed (for example chance).

    `points` has the columns `x` and `y`.
    """
    figure = Figure(figsize=NARROW, layout="constrained")
    axes = figure.subplots()
    axes.plot(points["x"], points["y"], color=LIGHT["trained"])
    if len(points) <= FEW_POINTS:
        _points(axes, points["x"], points["y"], ("trained", "o"), 4.5)
    if reference:
        level, name = reference
        axes.axhline(level, color=LIGHT["muted"], linestyle=(0, (4, 3)), linewidth=1.2)
        anchor = {"ha": "right", "va": "bottom", "color": LIGHT["muted"], "fontsize": 10.5}
        axes.annotate(name, (1, level), (0, 3), axes.get_yaxis_transform(), "offset points", **anchor)
    axes.margins(y=0.1)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if from_zero and points["y"].min() >= 0:
            axes.set_ylim(0, 1.15 * (max(points["y"].max(), reference[0] if reference else 0) or 1))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(x_label)
    axes.set_ylabel(_printable(y_label, 2 * LONGEST_LABEL))
    return figure


def score_limits(table: pd.DataFrame, intervals: bool = True) -> tuple[float, float]:
    """Limits of a score axis: from zero, or from below the lowest score, to just above the highest.

    Without `intervals`, those of single animals do not count, because only their medians are drawn.
    """
    pooled = table if intervals else table[table["animal"] == "all"]
    shown = pd.concat([table["median"], pooled["low"], pooled["high"]]).to_numpy(float)
    shown = shown[np.isfinite(shown)]
    low, high = (min(shown.min(), 0.0), max(shown.max(), 0.0)) if len(shown) else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.5
    return (low - margin if low < 0 else 0.0), high + margin


def to_svg(figure: Figure, prefix: str, description: str) -> str:
    """SVG text for inlining in HTML: colours are CSS variables, ids begin with `prefix`, nothing is external."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib = {name: _for_page(name, value, prefix) for name, value in attributes.items()}
    attributes = {"class": "chart", "role": "img", "aria-label": description}
    root.attrib = {"viewBox": root.attrib["viewBox"]} | attributes
    return ElementTree.tostring(root, encoding="unicode")


def to_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure on a white background, at twice the resolution of a screen."""
    with mpl.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=200, facecolor=LIGHT["paper"])
    return Path(path)


def _for_page(name: str, value: str, prefix: str) -> str:
    """One attribute of an SVG element as the page needs it."""
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return value.replace("#", f"#{prefix}-", 1)
    value = value.replace("url(#", f"url(#{prefix}-")
    for colour, code in LIGHT.items():
        value = value.replace(code, f"var(--chart-{colour})")
    return re.sub(r"'DejaVu Sans'.*?sans-serif", "var(--font)", value)


def _band(axes: Axes, row: pd.Series, colour: str) -> None:
    """One score for all layers: its interval as a band, its median as a dashed line."""
    code = LIGHT[colour]
    axes.axhspan(row["low"], row["high"], color=code, alpha=0.15, linewidth=0, zorder=1)
    dashes = {"linestyle": (0, (3, 1.5)), "linewidth": 1.5, "zorder": 1.5}
    axes.axhline(row["median"], color=code, label=_printable(model_name(row["model"])), **dashes)


def _points(axes: Axes, x: object, y: object, look: tuple[str, str], size: float, label: str = "_") -> None:
    colour, marker = look
    axes.plot(x, y, marker, markersize=size, color=LIGHT[colour], zorder=3, label=label)


def _legend(figure: Figure, models: Sequence[str]) -> None:
    figure.legend(loc="outside upper left", ncols=min(len(models), LEGEND_COLUMNS))


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Label ticks level where the names fit, slanted where they do not, upright where they are many."""
    labels = [_printable(name) for name in names]
    longest = max((len(label) for label in labels), default=0)
    room = axes.figure.get_figwidth() * 72 * 0.85 / max(len(labels), 1)
    axes.set_xticks(range(len(labels)), labels)
    if len(labels) > CROWDED:
        axes.tick_params(axis="x", labelrotation=90, labelsize=9)
    elif longest * CHARACTER_WIDTH * STYLE["xtick.labelsize"] > room - 4:
        axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")


def _printable(text: object, longest: int = LONGEST_LABEL) -> str:
    """A name from a file as a label: no control characters, and the middle of a long one left out."""
    label = "".join(character if character.isprintable() else "?" for character in str(text))
    half = longest // 2
    return label if len(label) <= longest else f"{label[:half]}…{label[-half + 1 :]}"
