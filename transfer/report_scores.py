"""What the report page tells of a predictivity run: its numbers, charts by layer and area, model against model, tables.

Comes in: a `Section` of the run, and the tables in its folder (`transfer/report_inputs.py`). Goes out: the section,
filled. Scores are noise-corrected correlations, without unit: medians over neurons with 95 % bootstrap intervals, as in
Nayebi et al. 2023 (https://doi.org/10.1371/journal.pcbi.1011506).
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from transfer import charts
from transfer.report_inputs import NAME_COLUMNS, read_numbers, read_scores
from transfer.report_parts import NO_NUMBER, Section, Table, drawn_chart, show_number, spoken_medians

MOST_PAIRS = 20  # of models that are drawn against each other
HEADS = {  # column of predictivity.csv: its head on the page
    "low": "95 % from",
    "high": "95 % to",
    "neurons": "neurons scored",
    "fitted": "median, stimuli fitted to",
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


def add_scores(section: Section) -> None:
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
        section.figures.append(drawn_chart(charts.by_layer(rows), section, title, spoken_medians(rows, "layer"), note))
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


def pooled_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `predictivity.csv` over all areas and all animals."""
    return table[(table["area"] == "all") & (table["animal"] == "all")]


def best_rows(pooled: pd.DataFrame) -> dict[str, pd.Series]:
    """The layer with the highest median of each kind of model; a kind without a finite median has none."""
    scored = pooled[np.isfinite(pooled["median"])].reset_index(drop=True)
    best = scored.groupby("model")["median"].idxmax()
    return {model: scored.loc[best[model]] for model in charts.models_in(scored)}


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
        section.figures.append(drawn_chart(figure, section, "Model against model", spoken, note))
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
    spoken = spoken_medians(at_best[at_best["animal"] == "all"], "area")
    figure = charts.by_animal(at_best)
    section.figures.append(drawn_chart(figure, section, "Predictivity by area and animal", spoken, note))
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
            picture = drawn_chart(
                charts.by_layer(drawn, limits, small=True), section, str(area), spoken_medians(drawn, "layer")
            )
            picture.value = f"{neurons:,.0f} neurons" if math.isfinite(neurons) else ""
            section.panels.append(picture)


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
