"""What the report page tells of one run: its numbers, charts, pictures, tables, and what is missing.

What comes in: a `Run` and the files in its folder (`transfer/report_inputs.py`). What goes out: a `Section`, which the
page's template lays out. Scores are noise-corrected correlations, without unit: medians over neurons with 95 %
bootstrap intervals, as in Nayebi et al. 2023 (https://doi.org/10.1371/journal.pcbi.1011506). RankMe is that of
Garrido et al. 2023 (https://arxiv.org/abs/2210.02885).
"""

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from transfer import charts
from transfer.report_inputs import NAME_COLUMNS, Run, read_curves, read_numbers, read_picture, read_scores

NO_NUMBER = "\N{EN DASH}"
MOST_POINTS = 400  # of a curve; a longer one is averaged, for its picture has no more columns to show it in
MOST_PAIRS = 20  # of models that are drawn against each other
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
HEADS = {  # column of predictivity.csv: its head on the page
    "low": "95 % from",
    "high": "95 % to",
    "neurons": "neurons scored",
    "excluded_unselected": "left out: not selected",
    "excluded_silent": "left out: silent",
    "excluded_unreliable": "left out: unreliable",
    "excluded_unscored": "left out: no score",
}
REASONS = {  # column of predictivity.csv: why its neurons were left out
    "excluded_unselected": "were not selected",
    "excluded_silent": "gave the same response to everything",
    "excluded_unreliable": "did not respond reliably",
    "excluded_unscored": "could not be scored",
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


@dataclass
class Picture:
    """One picture with its words; `image` is an SVG or an img element, `value` the number to read off first."""

    title: str
    image: Markup
    note: str = ""
    value: str = ""


@dataclass
class Table:
    """Cells as text; the first `names` columns are names, the others numbers."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    names: int
    folded: bool


@dataclass
class Section:
    """What the page says of one run; `score` is the best trained median, where there is one."""

    anchor: str
    title: str
    run: Run
    headline: str = ""
    score: float = math.nan
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tiles: list[dict[str, str]] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)
    panels_title: str = ""
    legend: dict[str, str] = field(default_factory=dict)
    panels: list[Picture] = field(default_factory=list)
    sheets: list[Picture] = field(default_factory=list)
    counts: str = ""
    tables: list[Table] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)


def make_section(run: Run, title: str, anchor: str) -> Section:
    """All that the page says of a run; `anchor` names its place on the page.

    Raises ValueError where a file in the run folder cannot be read.
    """
    section = Section(anchor, title, run, facts=_facts(run))
    state, message = str(run.status.get("state", "unknown")), str(run.status.get("message") or "")
    if state != "finished":
        words = {
            "running": "This run had not finished when the page was made",
            "failed": "This run failed",
            "stopped": "This run was stopped",
        }
        words = words.get(state, f"The state of this run is {state}")
        section.warnings.append(f"{words}: {message}" if message else f"{words}.")
    if run.config_text is None:
        section.warnings.append("There is no config.yaml in this folder.")
    if run.kind == "predictivity":
        _add_scores(section)
    else:
        _add_curves(section)
        _add_sheets(section)
    section.about = _flat({key: value for key, value in run.status.items() if key not in ("kind", "state")})
    return section


def pooled_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `predictivity.csv` over all areas and all animals."""
    return table[(table["area"] == "all") & (table["animal"] == "all")]


def best_rows(pooled: pd.DataFrame) -> dict[str, pd.Series]:
    """The layer with the highest median of each kind of model; a kind without a finite median has none."""
    scored = pooled[np.isfinite(pooled["median"])].reset_index(drop=True)
    best = scored.groupby("model")["median"].idxmax()
    return {model: scored.loc[best[model]] for model in charts.models_in(scored)}


def show_number(value: float) -> str:
    """Three decimals with a true minus sign, or a dash where there is no number."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else NO_NUMBER


def show_date(moment: datetime) -> str:
    """Day, month in words, year, time and, where it is known, time zone."""
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _facts(run: Run) -> dict[str, str]:
    status, facts = run.status, {}
    if run.kind == "pretrain":
        facts = {"Model": run.config.get("model"), "Objective": run.config.get("objective")}
    facts["Recording"] = status.get("recording")
    if status.get("checkpoint"):
        epoch = status.get("checkpoint_epoch")
        facts["Checkpoint"] = f"{status['checkpoint']}" + (f", epoch {epoch}" if epoch is not None else "")
    facts["Device"] = status.get("device")
    try:
        started, updated = (datetime.fromisoformat(str(status.get(name))) for name in ("started", "updated"))
        seconds = (updated - started).total_seconds()
        facts["Started"] = show_date(started)
        facts["Took"] = f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    except (ValueError, TypeError):
        facts["Started"] = status.get("started")
    return {name: str(value) for name, value in facts.items() if value}


def _add_scores(section: Section) -> None:
    table = read_scores(section.run.folder)
    pooled = None if table is None else pooled_rows(table)
    best = {} if pooled is None else best_rows(pooled)
    if not best:
        reason = "There is no predictivity.csv in this folder" if table is None else "No layer has a score"
        section.warnings.append(f"{reason}: nothing can be shown of this run's predictivity.")
        return
    chosen = next(iter(best.values()))
    section.score = float(chosen["median"])
    look = charts.looks(list(best))
    section.tiles = [_score_tile(model, row, look[model][0]) for model, row in best.items()]
    numbers = read_numbers(section.run.folder, "chosen.csv", ("model", "area", "layers"), ("median", "low", "high"))
    section.headline = _score_sentence(best, numbers)
    for title, rows in by_network(pooled):
        note = "With 95 % intervals over neurons. Bands: what has no layers."
        if (rows["model"] == "animals").any():
            note += " Other animals: how well their neurons of the same area predict, which is the ceiling of a model."
        section.figures.append(_drawn(charts.by_layer(rows), section, title, _spoken(rows, "layer"), note))
    _add_differences(section)
    in_areas = table[table["area"] != "all"]
    if in_areas.empty:
        section.warnings.append("There are no scores of single areas or animals.")
    else:
        _add_areas(section, in_areas, best)
    section.counts = _counts_sentence(chosen, section.run.config)
    section.tables += _score_tables(table)
    if numbers is not None:
        section.tables.insert(1, _numbers_table(numbers))


def by_network(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of models that have the same layers, each time with what has none; and a title for each."""
    whole = table["model"].map(charts.kind_of).isin(charts.BANDS)
    networks: dict[tuple[str, ...], list[str]] = {}
    for model, rows in table[~whole].groupby("model", sort=False):
        networks.setdefault(tuple(rows["layer"]), []).append(model)
    found = [table[whole | table["model"].isin(models)] for models in networks.values()] or [table]
    if len(found) == 1:
        return [("Predictivity by layer", found[0])]
    names = [charts.model_name(models[0]) for models in networks.values()]
    return [(f"Predictivity by layer: {name}", rows) for name, rows in zip(names, found, strict=True)]


def _add_differences(section: Section) -> None:
    """Model against model, where several were scored."""
    columns = ("model_a", "model_b", "area"), ("difference", "low", "high", "neurons")
    table = read_numbers(section.run.folder, "differences.csv", *columns)
    if table is None:
        return
    everywhere = table[(table["area"] == "all") & np.isfinite(table["difference"])].head(MOST_PAIRS)
    if len(everywhere):
        spoken = "; ".join(
            f"{charts.model_name(row.model_a)} minus {charts.model_name(row.model_b)} {show_number(row.difference)}"
            for row in everywhere.itertuples()
        )
        note = "Difference of the medians over the same neurons, each model at its chosen layers, with 95 % intervals."
        figure = charts.model_differences(everywhere)
        section.figures.append(_drawn(figure, section, "Model against model", spoken, note))
    rows = [
        [charts.model_name(row.model_a), charts.model_name(row.model_b), row.area]
        + [show_number(value) for value in (row.difference, row.low, row.high)]
        + [f"{row.neurons:,.0f}"]
        for row in table.itertuples()
    ]
    heads = ["model", "minus model", "area", "difference", "95 % from", "95 % to", "neurons"]
    section.tables.append(Table("Model against model, by area", heads, rows, 3, folded=True))


def _numbers_table(numbers: pd.DataFrame) -> Table:
    rows = [
        [charts.model_name(row.model), row.area, row.layers, *map(show_number, (row.median, row.low, row.high))]
        for row in numbers.itertuples()
    ]
    title = "One number per model: layers chosen on train stimuli, scored on test stimuli"
    return Table(title, ["model", "area", "layers, by split", "median", "95 % from", "95 % to"], rows, 3, folded=False)


def _add_areas(section: Section, table: pd.DataFrame, best: dict[str, pd.Series]) -> None:
    """Charts of areas and animals; `table` has the rows of single areas, each model is shown at its best layer."""
    at_best = pd.concat(
        [table[(table["model"] == model) & (table["layer"] == row["layer"])] for model, row in best.items()]
    )
    animals = at_best.loc[at_best["animal"] != "all", "animal"].nunique()
    points = f"each point one of {animals} animals" if animals > 1 else f"animals: {animals}"
    note = f"Each model at its best layer over all neurons. Bar: median of the area, with its 95 % interval; {points}."
    spoken = _spoken(at_best[at_best["animal"] == "all"], "area")
    figure = charts.by_animal(at_best)
    section.figures.append(_drawn(figure, section, "Predictivity by area and animal", spoken, note))
    by_area = table[table["animal"] == "all"]
    if by_area["area"].nunique() < 2:
        return
    limits = charts.score_limits(by_area)
    section.panels_title = "Predictivity by layer in each area"
    look = charts.looks(charts.models_in(by_area))
    section.legend = {charts.model_name(model): colour for model, (colour, _) in look.items()}
    networks = by_network(by_area.drop_duplicates(["model", "layer"]))
    for area, rows in by_area.groupby("area", sort=False):
        neurons = rows["neurons"].max() if "neurons" in rows else math.nan
        for _, of_network in networks:
            drawn = rows[rows["model"].isin(of_network["model"])]
            picture = _drawn(charts.by_layer(drawn, limits, small=True), section, str(area), _spoken(drawn, "layer"))
            picture.value = f"{neurons:,.0f} neurons" if math.isfinite(neurons) else ""
            section.panels.append(picture)


def _add_curves(section: Section) -> None:
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
    picture = _drawn(figure, section, title, f"Over {x_label}, from {first} to {last}.", note)
    picture.value = last
    section.panels.append(picture)


def _add_sheets(section: Section) -> None:
    for name, (title, spoken, note) in SHEETS.items():
        address = read_picture(section.run.folder / name)
        if address is None:
            section.warnings.append(f"{title}: there is no {name} in this folder.")
            continue
        kind = "filters" if name == "filters.png" else "photos"
        image = Markup('<img src="{}" alt="{}" class="{}">').format(address, spoken, kind)
        section.sheets.append(Picture(title, image, note))


def _score_tables(table: pd.DataFrame) -> list[Table]:
    """All rows in three tables: pooled, by area, by area and animal; the latter two are folded away."""
    whole = (table["area"] == "all") & (table["animal"] == "all")
    areas = ~whole & (table["animal"] == "all")
    tables = []
    for title, chosen, names in (
        ("All areas and animals", whole, NAME_COLUMNS[:2]),
        ("By area", areas, NAME_COLUMNS[:3]),
        ("By area and animal", ~whole & ~areas, NAME_COLUMNS),
    ):
        columns = [*names, *(column for column in table if column not in NAME_COLUMNS)]
        rows = [[_cell(column, row[column]) for column in columns] for _, row in table[chosen].iterrows()]
        heads = [HEADS.get(column, column.replace("_", " ")) for column in columns]
        if rows:
            tables.append(Table(title, heads, rows, len(names), folded=chosen is not whole))
    return tables


def _cell(column: str, value: Any) -> str:
    if column in NAME_COLUMNS:
        return charts.model_name(value) if column == "model" else value
    if column in ("features", "neurons") or column.startswith("excluded_"):
        return f"{value:,.0f}" if math.isfinite(value) else NO_NUMBER
    return show_number(value)


def _score_tile(model: str, row: pd.Series, colour: str) -> dict[str, str]:
    return {
        "model": colour,
        "label": charts.model_name(model).capitalize() if model in charts.MODEL_NAMES else charts.model_name(model),
        "value": show_number(row["median"]),
        "where": "" if charts.kind_of(model) in charts.BANDS else f"best layer: {row['layer']}",
        "note": f"95 % interval {show_number(row['low'])} to {show_number(row['high'])}",
    }


def _score_sentence(best: dict[str, pd.Series], numbers: pd.DataFrame | None) -> str:
    model, first = next(iter(best.items()))
    interval = f"95 % interval {show_number(first['low'])} to {show_number(first['high'])}"
    layer = f"The best layer ({charts.model_name(model)}, {first['layer']})"
    parts = [f"{layer} reaches a predictivity of {show_number(first['median'])} ({interval})"]
    parts += [
        f"{charts.model_name(other)} reach {show_number(row['median'])}"
        for other, row in best.items()
        if other != model
    ]
    sentence = "; ".join(parts) + "."
    fair = None if numbers is None else numbers[(numbers["model"] == model) & (numbers["area"] == "all")]
    if fair is not None and len(fair) and math.isfinite(fair["median"].iloc[0]):
        how = "With layers chosen by area on train stimuli and scored on test stimuli, as one number should be"
        sentence += f" {how}: {show_number(fair['median'].iloc[0])}."
    return sentence


def _counts_sentence(row: pd.Series, config: dict[str, Any]) -> str:
    """How many neurons were scored in a row and why others were not; empty where the row does not say."""
    left_out = row[[name for name in row.index if name.startswith("excluded_")]].astype(float)
    if "neurons" not in row or not math.isfinite(row["neurons"]) or not np.isfinite(left_out).all():
        return ""
    bound = f" (split-half reliability below {config['min_reliability']})" if "min_reliability" in config else ""
    reasons = []
    for name, count in left_out.items():
        reason = REASONS.get(name, name.removeprefix("excluded_").replace("_", " "))
        reasons.append(f"{count:,.0f} {reason}" + (bound if name == "excluded_unreliable" else ""))
    sentence = f"At {row['layer']}, {row['neurons']:,.0f} neurons were scored and {left_out.sum():,.0f} left out"
    return sentence + (f": {', '.join(reasons)}." if reasons else ".")


def _drawn(figure: Figure, section: Section, title: str, spoken: str, note: str = "") -> Picture:
    """An inlined chart, with ids of its own on the page; `spoken` is for those who cannot see it."""
    prefix = f"{section.anchor}-chart-{len(section.figures) + len(section.panels)}"
    return Picture(title, Markup(charts.to_svg(figure, prefix, f"{title}. {spoken}")), note)


def _spoken(rows: pd.DataFrame, column: str) -> str:
    """Medians in words: `trained: conv1 0.210, conv2 0.250; pixels: pixels 0.180`."""
    lines = []
    for model, group in rows.groupby("model", sort=False):
        pairs = zip(group[column], group["median"], strict=True)
        lines.append(
            f"{charts.model_name(model)}: " + ", ".join(f"{name} {show_number(score)}" for name, score in pairs)
        )
    return "; ".join(lines)


def _flat(mapping: dict[str, Any], above: str = "") -> dict[str, str]:
    """Nested mappings as one, with names joined by dots and values as text."""
    flat = {}
    for name, value in mapping.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = str(value)
    return flat
