"""What the report reads from a run folder, without trust: status, config, scores, training curves, pictures.

What comes in: the path of a folder that `murine pretrain` or `murine predictivity` left. What goes out: a `Run`, the
tables of `predictivity.csv` and `metrics.csv` as pandas, and pictures as `data:` addresses that a page can hold.
Folders may come from strangers: nothing in them is run or resolved, pictures are decoded before they are passed on,
and a file that cannot be read is named in one line.
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

KINDS = ("predictivity", "score", "fit", "pretrain")
NAME_COLUMNS = ("model", "layer", "area", "animal")
SCORE_COLUMNS = (*NAME_COLUMNS, "median", "low", "high")
LARGEST_PICTURE = 1_000_000  # bytes of a picture file above which it is embedded smaller
LONGEST_SIDE = 2400  # pixels: twice the width that a page gives a picture


@dataclass
class Run:
    """One run folder: what it is, how it went, its config as written (None where there is none) and as a mapping."""

    folder: Path
    kind: str
    status: dict[str, Any]
    config_text: str | None
    config: dict[str, Any]


def read_run(folder: str | Path) -> Run:
    """Read `status.json` and `config.yaml`.

    Raises FileNotFoundError where the folder is absent; ValueError where it is no run folder, is of a kind that has
    no report, or holds a file that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder {folder} is not there (looked from {Path.cwd()})")
    status_file, config_file = folder / "status.json", folder / "config.yaml"
    if not status_file.is_file():
        inside = [str(path.parent) for path in sorted(folder.glob("*/status.json"))]
        hint = f"; it holds run folders, so give those: runs=[{','.join(inside)}]" if inside else ""
        raise ValueError(f"{folder} is not a run folder: it has no status.json{hint}")
    try:
        status = json.loads(status_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{status_file} cannot be read as JSON: {error}") from error
    kind = status.get("kind") if isinstance(status, dict) else None
    if kind not in KINDS:
        raise ValueError(f"{status_file}: kind is {kind!r}; a report is made of runs of kind {' or '.join(KINDS)}")
    text = config_file.read_text(encoding="utf-8", errors="replace") if config_file.is_file() else None
    try:
        config = yaml.safe_load(text or "")
    except yaml.YAMLError as error:
        raise ValueError(f"{config_file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    return Run(folder, kind, status, text, config if isinstance(config, dict) else {})


def read_scores(folder: Path) -> pd.DataFrame | None:
    """Read `predictivity.csv`: names as text, other columns as float64; None where there is no such file.

    Scores are noise-corrected correlations without unit. Raises ValueError where a column is missing or a row repeated.
    """
    path = folder / "predictivity.csv"
    table = _read_text_table(path)
    if table is None:
        return None
    missing = [column for column in SCORE_COLUMNS if column not in table]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    # A recording need not name its areas.
    table = table.replace({column: {"": "unnamed"} for column in NAME_COLUMNS})
    repeated = int(table.duplicated(list(NAME_COLUMNS)).sum())
    if repeated:
        raise ValueError(f"{path} has {repeated} rows that repeat a model, layer, area and animal")
    for column in table.columns.difference(NAME_COLUMNS):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table


def read_numbers(folder: Path, name: str, texts: tuple[str, ...], numbers: tuple[str, ...]) -> pd.DataFrame | None:
    """Read a small table such as `chosen.csv` or `differences.csv`; None where there is no such file.

    Raises ValueError where one of the columns `texts` (names) or `numbers` is missing.
    """
    table = _read_text_table(folder / name)
    if table is None or table.empty:
        return None
    missing = [column for column in (*texts, *numbers) if column not in table]
    if missing:
        raise ValueError(f"{folder / name} lacks the columns {', '.join(missing)}")
    for column in numbers:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table[[*texts, *numbers]].replace({column: {"": "unnamed"} for column in texts})


def read_curves(folder: Path) -> dict[str, pd.DataFrame] | None:
    """Read `metrics.csv` as one table per logged column; None where there is no such file or no row in it.

    Each has the columns `x` (images seen, or else steps), `y` (not a number where training logged none), one row
    per filled cell. The frame's `attrs["x_label"]` names the unit of `x`.
    """
    table = _read_text_table(folder / "metrics.csv")
    if table is None or table.empty:
        return None
    position = next((name for name in ("images_seen", "step") if name in table), None)
    if position is None:
        raise ValueError(f"{folder / 'metrics.csv'} lacks the columns step and images_seen")
    curves = {}
    for column in table.columns.drop(["step", "epoch", "images_seen"], errors="ignore"):
        filled = table[(table[column] != "") & (table[position] != "")]
        if len(filled):
            numbers = {"x": filled[position], "y": filled[column]}
            curves[column] = pd.DataFrame(numbers).apply(pd.to_numeric, errors="coerce").astype(float)
            curves[column].attrs["x_label"] = position.replace("_", " ")
    return curves


def read_picture(path: Path) -> str | None:
    """A PNG file as a `data:` address, re-encoded smaller where it is large; None where it is absent.

    Raises ValueError where the file is no picture that can be decoded.
    """
    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a PNG picture: {error}") from error
    if path.stat().st_size <= LARGEST_PICTURE:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    picture = picture.convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    while True:
        encoded = io.BytesIO()
        picture.save(encoded, format="JPEG", quality=88)
        if encoded.tell() <= LARGEST_PICTURE:
            return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
        picture.thumbnail(tuple(int(side) for side in np.array(picture.size) * 0.8))


def _read_text_table(path: Path) -> pd.DataFrame | None:
    """Cells as text, empty where nothing was written, so that a logged `nan` differs from an empty cell."""
    if not path.is_file():
        return None
    if not path.stat().st_size:
        return pd.DataFrame()
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8").fillna("")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
