"""Run folders become one self-contained HTML page: scores with baselines, curves, pictures, config, versions.

What comes in: folders that `murine pretrain` and `murine predictivity` left. What goes out: one HTML file with
every picture inside it, without scripts, which fetches nothing and follows the reader's light or dark mode; what
is not there is named as such. `transfer/report.html` is the page's template, and escapes all text that it is given;
`transfer/report_section.py` says what the page tells of one run.
"""

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from pretrain.durable import write_atomically
from transfer import charts
from transfer.config import ReportConfig
from transfer.fit_report import compare_scores
from transfer.report_inputs import KINDS, read_run, read_scores
from transfer.report_parts import Picture, Section, show_number
from transfer.report_scores import best_rows, by_network, pooled_rows
from transfer.report_section import make_section, show_date


def report(config: ReportConfig) -> Path:
    """Write the page of `config.runs` and return its path.

    The page appears under its name only when it is complete. Raises FileNotFoundError for a run folder that is
    not there; ValueError where `runs` is empty, a folder is no run folder, or a file in one cannot be read.
    """
    if not config.runs:
        raise ValueError("runs is empty: name the run folders to report on, for example runs=[runs/a,runs/b]")
    runs = [read_run(folder) for folder in config.runs]
    out = Path(config.out) if config.out else runs[-1].folder / "report.html"
    if out.is_dir():
        raise ValueError(f"out={out} is a folder: give the page's name, for example out={out / 'report.html'}")
    sections, seen = [], Counter()
    for number, run in enumerate(runs, start=1):
        name = run.folder.resolve().name
        seen[name] += 1
        title = f"{name} ({seen[name]})" if seen[name] > 1 else name
        sections.append(make_section(run, title, f"run-{number}"))
    page = render_page(config.title, sections).encode("utf-8")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(page))
    return out


def predictivity_picture(run_folder: str | Path, path: str | Path) -> Path:
    """Write the chart of predictivity by layer of a run's first network as a PNG on white; returns its path."""
    table = read_scores(Path(run_folder))
    if table is None:
        raise FileNotFoundError(f"{run_folder} has no predictivity.csv: give a predictivity run's folder")
    (_, rows), *_ = by_network(pooled_rows(table))
    return charts.to_png(charts.by_layer(rows), path)


def render_page(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML text: each kind of run in turn, with an overview where there are several."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("transfer").joinpath("report.html").read_text(encoding="utf-8"))
    groups = {kind: [section for section in sections if section.run.kind == kind] for kind in KINDS}
    return template.render(
        title=title,
        date=show_date(datetime.now().astimezone()),
        groups=groups,
        comparisons={kind: compare(group) for kind, group in groups.items() if len(group) > 1},
        light=charts.LIGHT,
        dark=charts.DARK,
    )


def compare(group: Sequence[Section]) -> dict[str, Any]:
    """Runs of one kind side by side: `labels` of their tiles, the `best` by score, `pictures` of their scores."""
    labels = dict.fromkeys(tile["label"] for section in group for tile in section.tiles)
    scored = [section for section in group if math.isfinite(section.score)]
    if group[0].run.kind != "predictivity":
        pictures = compare_scores(group) if group[0].run.kind == "score" else []
        return {"labels": list(labels), "best": None, "pictures": pictures}
    rows = [
        {"run": section.title, "model": model, "median": row["median"], "low": row["low"], "high": row["high"]}
        for section in scored
        for model, row in best_rows(pooled_rows(read_scores(section.run.folder))).items()
    ]
    if not rows:
        return {"labels": list(labels), "best": None, "pictures": []}
    spoken = "; ".join(f"{row['run']}, {row['model']}: {show_number(row['median'])}" for row in rows)
    image = charts.to_svg(charts.runs_compared(pd.DataFrame(rows)), "compared", f"Runs compared. {spoken}")
    note = "The best layer of each run over all areas and animals, with its 95 % interval."
    best = max(scored, key=lambda section: section.score)
    return {"labels": list(labels), "best": best, "pictures": [Picture("Runs compared", Markup(image), note)]}
