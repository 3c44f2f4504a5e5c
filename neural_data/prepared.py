"""Recordings laid out for training: few files, time first, small numbers.

Comes in: a folder that `prepared_writer.py` has made of a recording of any format. Goes out: the same `Recording`,
whose stimuli and responses are mapped into memory and read in the window that is asked for. The layout:

    prepared.json               what there is: names, types, frames and checksum of each row, what rounding has changed
    stimuli.bin                 every clip (frames, height, width[, channels]) or image, uint8 or float32
    responses.bin               every trial (frames, neurons), float16 or float32; none where they are withheld
    behavior.npy, pupil_center.npy         float32 (trials, K[, time])
    trials.parquet, neurons.parquet        the tables
    meta/statistics/<name>.npy             the source's own

Of a mouse of 2023 with 8,000 neurons, 20 MB of responses in each trial's file become 4.8 MB, 16 frames of which lie
together in 0.25 MB.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.recording import Recording
from neural_data.row_file import RowFile, TimeFirstTraces
from neural_data.sensorium_folder import Statistics
from neural_data.trial_files import TrialFiles, npy_file
from neural_data.zip_folder import disk_folder

INDEX, FORMAT, VERSION = "prepared.json", "murine prepared recording", 1
PARTS = ("stimuli", "responses")
TABLES = ("trials", "neurons")
TEXTS = ("name", "source")


def read_prepared(path: str | Path) -> Recording:
    """The recording in a prepared folder; large arrays stay on disk.

    Raises FileNotFoundError, or ValueError with one line: the file, what was found, what was expected.
    """
    folder = Path(path)
    index, files = _index(folder)
    for rows in files.values():
        rows.check_size()
    tables = {name: _table(folder / f"{name}.parquet") for name in TABLES}
    signals = {
        name: npy_file(folder / f"{name}.npy") if (folder / f"{name}.npy").exists() else None
        for name in ("behavior", "pupil_center")
    }
    return Recording(
        name=index["name"],
        stimuli=_stimuli(files["stimuli"], index["video"]),
        trials=tables["trials"],
        responses=_responses(files["responses"], index["dynamic"]),
        neurons=tables["neurons"],
        **signals,
        sampling_rate_hz=index["sampling_rate_hz"],
        statistics=Statistics(disk_folder(folder, ("meta",))),
        source=index["source"],
        behavior_names=tuple(index["behavior_names"]),
        response_start_ms=index["response_start_ms"],
        notes=tuple(index["notes"]),
    )


def check_prepared(path: str | Path, advance: Callable[[int], None] = lambda rows: None) -> None:
    """Read everything and compare it with the checksums; `advance` is told of each row.

    Raises ValueError with the file and the row where something is damaged."""
    for rows in _index(Path(path))[1].values():
        rows.check_size()
        for row in range(len(rows.frames)):
            rows.check_row(row)
            advance(1)


def _index(folder: Path) -> tuple[dict[str, Any], dict[str, RowFile]]:
    """What the index says, and the files of rows that it describes."""
    file = folder / INDEX
    try:
        index = json.loads(file.read_text())
        if index["format"] != FORMAT or index["version"] != VERSION:
            raise ValueError(f"{index['format']!r} version {index['version']}, expected {FORMAT!r} version {VERSION}")
        for key in ("video", "dynamic", "sampling_rate_hz", "response_start_ms", "behavior_names", "notes", *TEXTS):
            _ = index[key]
        return index, {part: RowFile.from_index(folder, index[part]) for part in PARTS}
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except KeyError as error:
        raise ValueError(f"{file}: found no {error.args[0]!r}, expected an index of a prepared recording") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: found {' '.join(str(error).split())}") from None


def _table(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as a table ({' '.join(str(error).split())})") from None


def _stimuli(rows: RowFile, video: bool) -> TrialFiles:
    """Videos (stimuli, frames, height, width[, channels]) or images (stimuli, height, width[, channels])."""
    if not video:
        return TrialFiles(rows.only_frame, (len(rows.frames), *rows.shape), _dtype(rows))
    shape = (len(rows.frames), int(rows.frames.max()), *rows.shape)
    # Clips that end early end in NaN, which only float has.
    dtype = _dtype(rows) if (rows.frames == rows.frames.max()).all() else np.float32
    return TrialFiles(rows.read, shape, dtype, time_axis=0)


def _responses(rows: RowFile, dynamic: bool) -> TrialFiles:
    """(trials, neurons, time) or (trials, neurons), NaN where a trial has none."""
    if dynamic:
        return TimeFirstTraces(rows)
    return TrialFiles(rows.only_frame, (len(rows.frames), rows.shape[0]))


def _dtype(rows: RowFile) -> np.dtype:
    return rows.dtype if rows.dtype == np.uint8 else np.dtype(np.float32)
