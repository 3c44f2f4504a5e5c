"""What the report page tells of a run of `murine fit` and of `murine score`.

What comes in: a `Section` of such a run, and the files in its folder. What goes out: the section with headline, tiles,
charts and tables: learning curves and receptive fields of a fit; of scores, by animal and tier, over neurons, traces of
measured and predicted responses with the ceiling, and two models neuron by neuron. Every score stands beside the
options of its protocol.
"""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from transfer import charts, fit_charts
from transfer.report_inputs import read_curves
from transfer.report_parts import Picture, Section, Table, drawn_chart, show_number

ALL = "all"
SCORE = "single_trial_correlation"
WORDS = {
    SCORE: "single-trial correlation",
    "per_trial_correlation": "correlation within trials",
    "correlation_to_average": "correlation to average",
    "normalized_correlation": "normalised correlation",
    "feve": "FEVE",
    "oracle_jackknife": "oracle, jackknife",
    "oracle_conservative": "oracle, conservative",
    "single_trial_ceiling": "ceiling of single trials",
}


def add_fit(section: Section) -> None:
    """Learning curves, the scores of the best epoch, and receptive fields on the cortex."""
    scores = section.run.status.get("scores") or {}
    options = section.run.status.get("score_options") or {}
    if scores:
        section.score = float(np.mean(list(scores.values())))
        said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options.items())
        section.headline = f"Validation {show_number(section.score)}, the mean over {len(scores)} animals ({said})."
        tiles = [
            {"label": animal, "value": show_number(value), "note": "validation"} for animal, value in scores.items()
        ]
        section.tiles = tiles
    curves = read_curves(section.run.folder) or {}
    if not curves:
        section.warnings.append("There are no learning curves: metrics.csv is absent or has no rows yet.")
    section.panels_title = "Learning curves"
    for name, points in curves.items():
        finite = points[np.isfinite(points).all(axis=1)]
        if len(finite):
            words = name.replace("_", " ")
            figure = charts.curve(finite, points.attrs["x_label"], words)
            spoken = f"From {finite['y'].iloc[0]:.4g} to {finite['y'].iloc[-1]:.4g}."
            picture = drawn_chart(figure, section, words.capitalize(), spoken)
            picture.value = f"{finite['y'].iloc[-1]:.4g}"
            section.panels.append(picture)
    add_fields(section)


def add_fields(section: Section) -> None:
    """Where the neurons of each animal lie, coloured by where their readouts look."""
    for animal, (coordinates, positions) in positions_of(section.run.folder).items():
        figure = fit_charts.fields_on_cortex(coordinates, positions)
        spoken = f"{len(positions)} neurons, looking from {positions.min():.2f} to {positions.max():.2f}."
        note = "Mean positions of the readouts at the mean gaze; -1 is the left and the upper edge of the frame."
        section.figures.append(drawn_chart(figure, section, f"Receptive fields on the cortex: {animal}", spoken, note))


def positions_of(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By animal, places in cortex (neurons, 2), µm, and in the frame (neurons, 2), of readouts that have both."""
    from pretrain.checkpoint import read_checkpoint
    from transfer.fitted import fitted_file, load_fitted

    try:
        file = fitted_file(folder)
    except FileNotFoundError:
        return {}
    facts, encoder, found = read_checkpoint(file)["model"]["animals"], load_fitted(file).encoder, {}
    for animal in encoder.animals:
        coordinates, positions = facts[animal]["facts"].get("coordinates"), encoder.positions(animal)
        if positions is not None and coordinates is not None:
            found[animal] = np.asarray(coordinates, float)[:, :2], positions.numpy()
    return found


def add_score(section: Section) -> None:
    """Scores by animal and tier, over neurons, and traces, with the protocol in words."""
    folder = section.run.folder
    table, neurons = read_scores(folder)
    protocol = json.loads((folder / "protocol.json").read_text(encoding="utf-8"))
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in protocol.items() if name != "name")
    whole = table[table["stimulus_class"] == ALL]
    ones = whole[(whole["animal"] == ALL) & (whole["metric"] == SCORE)]
    section.score = float(ones["value"].iloc[-1])
    section.headline = (
        f"{WORDS[SCORE].capitalize()} of {ones['tier'].iloc[-1]} {show_number(section.score)} "
        f"by the protocol {protocol['name']}: {options}."
    )
    section.facts["Protocol"] = f"{protocol['name']}: {options}"
    section.tiles = [
        {"label": row.tier, "value": show_number(row.value), "note": WORDS[SCORE]} for row in ones.itertuples()
    ]
    for metric in (SCORE, "correlation_to_average"):
        rows = whole[whole["metric"] == metric]
        if len(rows):
            spoken = "; ".join(f"{row.tier}, {row.animal} {show_number(row.value)}" for row in rows.itertuples())
            note = "Points: animals. Bar: the protocol's one number."
            figure = fit_charts.by_tier(rows, WORDS[metric])
            section.figures.append(drawn_chart(figure, section, WORDS[metric].capitalize(), spoken, note))
    own = neurons[neurons["stimulus_class"] == ALL]
    by_tier = {str(tier): rows[SCORE].to_numpy() for tier, rows in own.groupby("tier", sort=False)}
    spoken = "; ".join(f"{tier}: median {show_number(float(np.nanmedian(values)))}" for tier, values in by_tier.items())
    figure = fit_charts.over_neurons(by_tier, WORDS[SCORE])
    section.figures.append(drawn_chart(figure, section, "Distribution over neurons", spoken))
    add_traces(section, protocol["response_space"])
    section.tables.append(score_table(table))


def read_scores(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`scores.csv` and `neurons.csv`. Raises ValueError where one is not there or lacks a column."""
    tables = []
    for name, columns in (("scores.csv", ("metric", "value")), ("neurons.csv", ("neuron_id", SCORE))):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; run `murine score` to its end")
        table = pd.read_csv(folder / name, dtype={"neuron_id": str, "animal": str, "tier": str, "stimulus_class": str})
        missing = [each for each in ("tier", "animal", "stimulus_class", *columns) if each not in table]
        if missing:
            raise ValueError(f"{folder / name} lacks the columns {', '.join(missing)}")
        tables.append(table)
    return tables[0], tables[1]


def add_traces(section: Section, space: str) -> None:
    """Panels of the best and the median neuron of each animal."""
    path = section.run.folder / "traces.csv"
    if not path.is_file():
        section.warnings.append("There are no traces: no clip that was scored is repeated.")
        return
    section.panels_title = "Measured and predicted responses, means over the repeats of a clip"
    table = pd.read_csv(path, dtype={"neuron_id": str, "animal": str})
    for (animal, which), rows in table.groupby(["animal", "which"], sort=False):
        first = rows.iloc[0]
        title = f"{animal}: the {which} neuron, {first['neuron_id']}"
        ceiling = f"; ceiling, as estimated: {show_number(first['ceiling'])}" if math.isfinite(first["ceiling"]) else ""
        spoken = f"{WORDS[SCORE].capitalize()} {show_number(first['score'])}{ceiling}."
        chart = fit_charts.trace(rows, space.replace("_", " "))
        section.panels.append(drawn_chart(chart, section, title, spoken, spoken))


def score_table(table: pd.DataFrame) -> Table:
    """Every score: tiers, classes and animals as rows, metrics as columns."""
    wide = table.pivot_table("value", ["tier", "stimulus_class", "animal"], "metric", sort=False, dropna=False)
    metrics = [metric for metric in WORDS if metric in wide]
    wide = wide.dropna(how="all")
    rows = [[*map(str, key), *(show_number(row[metric]) for metric in metrics)] for key, row in wide.iterrows()]
    return Table("All scores", ["tier", "class", "animal", *(WORDS[each] for each in metrics)], rows, 3, folded=True)


def compare_scores(sections: Sequence[Section]) -> list[Picture]:
    """Each pair of neighbouring score runs neuron by neuron, where they share a tier and options."""
    pictures = []
    for first, second in pairwise(sections):
        tables = [read_scores(section.run.folder)[1] for section in (first, second)]
        keys = ["animal", "neuron_id", "tier", "stimulus_class", "protocol", "response_space"]
        both = tables[0].merge(tables[1], on=keys, suffixes=("_a", "_b"))
        both = both[both["stimulus_class"] == ALL]
        if both.empty:
            continue
        a, b = (both[f"{SCORE}_{side}"].to_numpy() for side in "ab")
        title = f"{second.title} against {first.title}"
        higher = f"{np.mean(b > a):.0%} of {len(a):,} scores of neurons are higher in {second.title}."
        figure = fit_charts.neuron_by_neuron(a, b, (first.title, second.title), WORDS[SCORE])
        pictures.append(Picture(title, Markup(charts.to_svg(figure, f"{second.anchor}-against", higher)), higher))
    return pictures
