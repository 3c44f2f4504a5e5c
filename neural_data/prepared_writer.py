"""A recording of any format, written as training reads it fastest; `prepared.py` has the layout.

Comes in: a `Recording`, whose files are only read. Goes out: a folder. Stimuli and trials go through one at a time. An
interrupted preparation goes on where it was: what is written is noted every 256 MB, and what comes after that note is
written again. At the end all of it is read back and compared with its checksums.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neural_data.prepared import FORMAT, INDEX, PARTS, TABLES, VERSION, check_prepared
from neural_data.recording import Recording
from neural_data.row_file import RowFile, RowWriter
from neural_data.whole_folder import require_free

PROGRESS = "unfinished.json"
NOTED_BYTES = 2**28
SPARE_BYTES = 2**26
TYPES = {"stimuli": ("uint8", "float32"), "responses": ("float16", "float32")}


def write_prepared(
    recording: Recording,
    folder: str | Path,
    stimuli: str = "uint8",
    responses: str = "float16",
    advance: Callable[[int], None] = lambda rows: None,
) -> Path:
    """Writes a recording in the prepared layout, or goes on with that; returns the folder.

    `stimuli`: "uint8", grey levels rounded to whole ones, or "float32". `responses`: "float16", see `row_file.py`, or
    "float32". `advance` is told of each row of `prepared_rows` when it is written, and again when it is checked.
    Behavior and pupil centre become float32. Raises ValueError where the disk is too full, where values do not fit
    their type, where the folder is there and not empty, or lies where the recording is read from.
    """
    folder = Path(folder)
    require_free(folder)
    _require_elsewhere(recording, folder)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    files = {part: _rows(recording, part, dtype, unfinished) for part, dtype in _types(stimuli, responses).items()}
    require_space(folder, prepared_bytes(recording, stimuli, responses) - _written_bytes(unfinished))
    unfinished.mkdir(parents=True, exist_ok=True)
    state = _state(unfinished, _fingerprint(recording, files))
    for part, rows in files.items():
        files[part] = _write_rows(recording, part, rows, state, unfinished, advance)
    _write_small(recording, unfinished)
    _write_index(recording, files, state, unfinished)
    check_prepared(unfinished, advance)
    (unfinished / PROGRESS).unlink()
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)
    return folder


def prepared_rows(recording: Recording) -> int:
    """Clips or images, and trials, each of which is written once."""
    return len(recording.stimuli) + len(recording.trials)


def prepared_bytes(recording: Recording, stimuli: str = "uint8", responses: str = "float16") -> int:
    """Bytes that a prepared recording takes on disk, but for the tables and the source's statistics."""
    types = _types(stimuli, responses)
    rows = sum(int(_rows(recording, part, dtype, Path()).starts[-1]) for part, dtype in types.items())
    signals = (getattr(recording, part) for part in ("behavior", "pupil_center"))
    return rows + sum(4 * math.prod(signal.shape) for signal in signals if signal is not None)


def _types(stimuli: str, responses: str) -> dict[str, str]:
    chosen = {"stimuli": stimuli, "responses": responses}
    for part, dtype in chosen.items():
        if dtype not in TYPES[part]:
            raise ValueError(f"{part}: found {dtype!r}, expected {' or '.join(TYPES[part])}")
    return chosen


def _rows(recording: Recording, part: str, dtype: str, folder: Path) -> RowFile:
    """What a file of rows is to hold, without checksums."""
    if part == "responses":
        frames = np.where(recording.withheld, 0, recording.frames)
        shape: tuple[int, ...] = (len(recording.neurons),)
    else:
        shape = tuple(recording.stimuli.shape[2 if recording.video else 1 :])
        frames = np.ones(len(recording.stimuli), np.int64)
        if recording.video:
            frames = np.zeros(len(recording.stimuli), np.int64)
            np.maximum.at(frames, recording.trials["stimulus"].to_numpy(), _video_frames(recording))
    return RowFile(folder / f"{part}.bin", np.dtype(dtype), shape, frames.astype(np.int64), np.zeros(len(frames), int))


def _video_frames(recording: Recording) -> np.ndarray:
    """Frames of the video of each trial: all of them where responses are not resolved in time."""
    whole = recording.stimuli.shape[1]
    return recording.frames if recording.dynamic else np.full(len(recording.trials), whole)


def _row(recording: Recording, part: str, row: int, frames: int) -> np.ndarray:
    """A row (frames, ...) as the recording has it."""
    if part == "stimuli":
        values = recording.stimuli[row, :frames] if recording.video else recording.stimuli[row]
        return np.asarray(values) if recording.video else np.asarray(values)[None]
    if not frames:
        return np.empty((0, len(recording.neurons)), np.float32)
    return np.asarray(recording.responses[row, :, :frames].T if recording.dynamic else recording.responses[row][None])


def _write_rows(
    recording: Recording, part: str, rows: RowFile, state: dict[str, Any], folder: Path, advance: Callable[[int], None]
) -> RowFile:
    """Write what is missing of a file; returns it with its checksums."""
    noted = state.setdefault(part, {"crc32": [], "halved": [], "change": 0.0})
    writer = RowWriter(rows.path, rows, noted)
    advance(writer.count)
    written = 0
    try:
        for row in range(writer.count, len(rows.frames)):
            values = _row(recording, part, row, int(rows.frames[row]))
            try:
                change = writer.append(values)
            except ValueError as error:
                raise ValueError(f"{recording.name}: {part}, row {row}: found {error}, or {part}=float32") from None
            noted["change"] = max(noted["change"], change)
            written += values.nbytes
            advance(1)
            if written >= NOTED_BYTES or row + 1 == len(rows.frames):
                writer.sync()
                noted |= writer.done
                _write_json(folder / PROGRESS, state)
                written = 0
    finally:
        writer.close()
    return replace(rows, crc32=tuple(writer.done["crc32"]), halved=np.array(writer.done["halved"], np.int64))


def _state(folder: Path, fingerprint: str) -> dict[str, Any]:
    """What was noted of an interrupted preparation of the same recording; otherwise a beginning."""
    beginning = {"fingerprint": fingerprint}
    try:
        state = json.loads((folder / PROGRESS).read_text())
        return state if state["fingerprint"] == fingerprint else beginning
    except (OSError, ValueError, KeyError, TypeError):
        return beginning


def _fingerprint(recording: Recording, files: Mapping[str, RowFile]) -> str:
    """Of what decides what is written where: a recording that has changed is begun again."""
    digest = hashlib.sha256(repr((VERSION, recording.name, recording.source)).encode())
    for table in (recording.trials, recording.neurons):
        digest.update(table.to_csv().encode())
    for rows in files.values():
        digest.update(repr((rows.dtype.name, rows.shape, rows.frames.tolist())).encode())
    return digest.hexdigest()


def _write_small(recording: Recording, folder: Path) -> None:
    """Signals, tables and the source's statistics."""
    for part in ("behavior", "pupil_center"):
        values = getattr(recording, part)
        if values is not None:
            np.save(folder / f"{part}.npy", np.asarray(values[:], np.float32), allow_pickle=False)
    for name in TABLES:
        getattr(recording, name).to_parquet(folder / f"{name}.parquet")
    for name, values in _flat(recording.statistics):
        file = folder / "meta" / "statistics" / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.asarray(values), allow_pickle=False)


def _flat(statistics: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Statistics by path; nested ones below the name of what holds them. Raises ValueError for what is no path."""
    for name, values in statistics.items():
        if any(part in ("", ".", "..") for part in str(name).split("/")) or "\\" in str(name):
            raise ValueError(f"statistics: found the name {name!r}, expected one that a file can have")
        if isinstance(values, Mapping):
            yield from _flat(values, f"{above}{name}/")
        else:
            yield f"{above}{name}", values


def _write_index(recording: Recording, files: Mapping[str, RowFile], state: dict[str, Any], folder: Path) -> None:
    keys = ("name", "video", "dynamic", "sampling_rate_hz", "response_start_ms", "behavior_names")
    index = {"format": FORMAT, "version": VERSION} | {key: getattr(recording, key) for key in keys}
    index["source"] = str(recording.source)
    index["notes"] = [*recording.notes, *_rounding(files, state)]
    index |= {part: rows.entry() for part, rows in files.items()}
    _write_json(folder / INDEX, index)


def _rounding(files: Mapping[str, RowFile], state: dict[str, Any]) -> Iterator[str]:
    change = state["stimuli"]["change"]
    if change:
        yield f"prepared: grey levels are rounded to whole ones, by {change:.2g} at most"
    if files["responses"].dtype == np.float16:
        yield "prepared: responses are rounded to float16, by 0.05 % at most"


def _written_bytes(folder: Path) -> int:
    return sum((folder / f"{part}.bin").stat().st_size for part in PARTS if (folder / f"{part}.bin").exists())


def _require_elsewhere(recording: Recording, folder: Path) -> None:
    """Data folders are never written to."""
    source = Path(str(recording.source)) if recording.source else None
    if source is not None and source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{folder}: lies in the recording's own folder {source}; name another one")


def require_space(folder: Path, needed: int) -> None:
    """Raises ValueError where the disk of a folder, which need not be there yet, has less than `needed` bytes free."""
    there = next(above for above in (folder, *folder.resolve().parents) if above.exists())
    free = shutil.disk_usage(there).free
    if needed + SPARE_BYTES > free:
        raise ValueError(f"{folder}: {needed / 1e9:.2f} GB are needed, found {free / 1e9:.2f} GB free")


def _write_json(file: Path, values: Any) -> None:
    """Whole or as it was."""
    beside = file.with_name(f"{file.name}.new")
    with open(beside, "w") as stream:
        json.dump(values, stream)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
