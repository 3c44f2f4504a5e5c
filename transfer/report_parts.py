"""What a section of the report page is made of: pictures, tables, and how numbers are shown.

Comes in: charts and numbers of one run. Goes out: the parts that the page's template lays out.
"""

import math
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from transfer import charts
from transfer.report_inputs import Run

NO_NUMBER = "\N{EN DASH}"


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


def show_number(value: float) -> str:
    """Three decimals with a true minus sign, or a dash where there is no number."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else NO_NUMBER


def drawn_chart(figure: Figure, section: Section, title: str, spoken: str, note: str = "") -> Picture:
    """An inlined chart, with ids of its own on the page; `spoken` is for those who cannot see it."""
    prefix = f"{section.anchor}-chart-{len(section.figures) + len(section.panels)}"
    return Picture(title, Markup(charts.to_svg(figure, prefix, f"{title}. {spoken}")), note)


def spoken_medians(rows: pd.DataFrame, column: str) -> str:
    """Medians in words: `trained: conv1 0.210, conv2 0.250; pixels: pixels 0.180`."""
    lines = []
    for model, group in rows.groupby("model", sort=False):
        pairs = zip(group[column], group["median"], strict=True)
        lines.append(
            f"{charts.model_name(model)}: " + ", ".join(f"{name} {show_number(score)}" for name, score in pairs)
        )
    return "; ".join(lines)
