"""Submission files of Sensorium 2023: parquet with brotli, a row per trial.

What comes in: predictions of trials, one at a time. What goes out: a file as pandas wrote the official examples, with
the columns, in this order,

    mouse           text, the recording's folder name
    trial_indices   int64, the number of the trial's files
    prediction      lists of float64, one per neuron, of the frames that count
    neuron_ids      list of int64, unit ids in the order of `prediction`

Each trial is a row group of its own, written before the next one is predicted: memory holds one trial, where the
starter kit (ecker-lab/sensorium_2023) and those after it hold all of a tier as Python lists.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neural_data.recording import Recording
from pretrain.durable import write_atomically
from transfer.unit_ids import unit_ids

COLUMNS = {
    "mouse": "string",
    "trial_indices": "int64",
    "prediction": "list<element: list<element: double>>",
    "neuron_ids": "list<element: int64>",
}
FILES = {
    "live_test_main": "predictions_live_main.parquet.brotli",
    "final_test_main": "predictions_final_main.parquet.brotli",
    "live_test_bonus": "predictions_live_test_bonus_ood.parquet.brotli",
    "final_test_bonus": "predictions_final_test_bonus_ood.parquet.brotli",
}
# What was uploaded together.
ARCHIVES = {
    "predictions_main.zip": ("live_test_main", "final_test_main"),
    "predictions_live_bonus.zip": ("live_test_bonus",),
    "predictions_final_bonus.zip": ("final_test_bonus",),
}


@dataclass(frozen=True, eq=False)
class TrialRow:
    """One row: `prediction` float (neurons, frames), `neuron_ids` int (neurons,)."""

    mouse: str
    trial: int
    prediction: np.ndarray
    neuron_ids: np.ndarray


def write_2023(path: Path, rows: Iterable[TrialRow], compression_level: int | None = None) -> int:
    """Write a file, whole or not at all, and return its rows. Raises ValueError for what is not finite."""
    import pyarrow.parquet as pq

    count = 0

    def write(file: Any) -> None:
        nonlocal count
        options = {"compression": "brotli", "compression_level": compression_level, "use_dictionary": ["mouse"]}
        with pq.ParquetWriter(file, schema(), write_statistics=["mouse", "trial_indices"], **options) as writer:
            for row in rows:
                writer.write_batch(batch_of(row), row_group_size=1)
                count += 1

    write_atomically(path, write)
    return count


def schema() -> Any:
    """The columns as pyarrow has them."""
    import pyarrow as pa

    numbers = pa.list_(pa.float64())
    kinds = (pa.string(), pa.int64(), pa.list_(numbers), pa.list_(pa.int64()))
    return pa.schema(list(zip(COLUMNS, kinds, strict=True)))


def batch_of(row: TrialRow) -> Any:
    """A row as a record batch; its numbers are not turned into Python lists on the way."""
    import pyarrow as pa

    prediction = np.ascontiguousarray(row.prediction, np.float64)
    if not np.isfinite(prediction).all():
        raise ValueError(f"mouse {row.mouse}, trial {row.trial}: a prediction is not finite")
    neurons, frames = prediction.shape
    by_neuron = pa.ListArray.from_arrays(pa.array(frames * np.arange(neurons + 1, dtype=np.int32)), prediction.ravel())
    ends = pa.array([0, neurons], pa.int32())
    columns = (
        pa.array([row.mouse]),
        pa.array([row.trial], pa.int64()),
        pa.ListArray.from_arrays(ends, by_neuron),
        pa.ListArray.from_arrays(ends, pa.array(row.neuron_ids.astype(np.int64))),
    )
    return pa.record_batch(list(columns), schema=schema())


def read_2023(path: Path) -> Iterator[TrialRow]:
    """The rows of a file one after the other. Raises ValueError, one line, for a file or a row that is not as it has
    to be; FileNotFoundError."""
    for number, batch in enumerate(batches(path)):
        values = {name: column[0] for name, column in zip(COLUMNS, batch.columns, strict=True)}
        if absent := [name for name, value in values.items() if not value.is_valid]:
            raise ValueError(f"{path}: row {number}: no {absent[0]}")
        by_neuron = values["prediction"].values
        lengths = np.diff(by_neuron.offsets.to_numpy()) if len(by_neuron) else np.zeros(0, int)
        where = f"{path}: row {number} (mouse {values['mouse']}, trial {values['trial_indices']})"
        if len(set(lengths.tolist())) > 1 or not lengths.all() or not len(lengths) or by_neuron.null_count:
            found = f"lists of {min(lengths, default=0)} to {max(lengths, default=0)} frames"
            raise ValueError(f"{where}: prediction has {found}, expected one length, above 0, for all neurons")
        prediction = by_neuron.flatten().to_numpy(zero_copy_only=False).reshape(len(lengths), -1)
        ids = values["neuron_ids"].values.to_numpy(zero_copy_only=False)
        yield TrialRow(str(values["mouse"]), int(values["trial_indices"].as_py()), prediction, ids)


def batches(path: Path) -> Iterator[Any]:
    """The rows as batches of one; memory holds one row, whatever the row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: is no parquet file ({' '.join(str(error).split())})") from None
    with file:
        check_columns(path, file)
        yield from file.iter_batches(batch_size=1)


def check_columns(path: Path, file: Any) -> None:
    """Fail unless columns, their order, types and compression are those of the examples, and there are rows."""
    found = file.schema_arrow
    if found.names != list(COLUMNS):
        raise ValueError(f"{path}: columns are {', '.join(found.names)}, expected {', '.join(COLUMNS)} in this order")
    for name, expected in COLUMNS.items():
        kind = str(found.field(name).type).replace("item:", "element:").replace("large_", "")
        if kind != expected:
            raise ValueError(f"{path}: column {name} is {kind}, expected {expected}")
    if not file.metadata.num_rows:
        raise ValueError(f"{path}: has no rows, expected one per trial")
    codec = file.metadata.row_group(0).column(0).compression
    if codec != "BROTLI":
        raise ValueError(f"{path}: is compressed with {codec.lower()}, expected brotli")


def check_2023(path: Path, recordings: dict[str, Recording] | None = None) -> str:
    """Look at a whole file, and say in one line what is in it.

    `recordings`: by folder name, what the file must be of: all of its mice, every trial of a tier, every neuron. Raises
    ValueError, one line, for the first thing that is wrong.
    """
    seen: dict[str, set[int]] = {}
    ids: dict[str, list[int]] = {}
    frames: set[int] = set()
    for row in read_2023(path):
        where = f"{path}: mouse {row.mouse}, trial {row.trial}"
        if row.trial in seen.setdefault(row.mouse, set()):
            raise ValueError(f"{where}: is there twice")
        check_row(where, row, ids.setdefault(row.mouse, row.neuron_ids.tolist()))
        if recordings is not None:
            check_against(where, row, recordings, tier_of(path, recordings, row))
        seen[row.mouse].add(row.trial)
        frames.add(row.prediction.shape[1])
    if recordings is not None:
        check_complete(path, seen, recordings)
    trials = sum(map(len, seen.values()))
    lengths = " or ".join(map(str, sorted(frames)))
    return f"{path}: {len(seen)} mice, {trials} trials, {lengths} frames of each, {sum(map(len, ids.values()))} neurons"


def check_row(where: str, row: TrialRow, ids: list[int]) -> None:
    """Fail where numbers or ids of a row are wrong."""
    if len(row.neuron_ids) != len(row.prediction):
        found = f"{len(row.prediction)} lists of predictions and {len(row.neuron_ids)} neuron_ids"
        raise ValueError(f"{where}: {found}, expected as many")
    if len(np.unique(row.neuron_ids)) < len(row.neuron_ids):
        raise ValueError(f"{where}: a neuron id is there twice")
    if sorted(row.neuron_ids.tolist()) != sorted(ids):
        raise ValueError(f"{where}: neuron_ids are others than in the mouse's first row")
    if not np.isfinite(row.prediction).all():
        neuron = row.neuron_ids[~np.isfinite(row.prediction).all(axis=1)][0]
        raise ValueError(f"{where}: the prediction of neuron {neuron} is not finite")


def check_against(where: str, row: TrialRow, recordings: dict[str, Recording], tier: str) -> None:
    """Fail where a row is not of a recording, its tier or its neurons."""
    recording = recordings[row.mouse]
    if not 0 <= row.trial < len(recording.trials):
        raise ValueError(f"{where}: the recording has trials 0 to {len(recording.trials) - 1}")
    found = recording.trials["tier"].iat[row.trial]
    if found != tier:
        raise ValueError(f"{where}: is of tier {found}, expected {tier}")
    expected = set(unit_ids(recording).tolist())
    if wrong := len(expected ^ set(row.neuron_ids.tolist())):
        raise ValueError(f"{where}: {wrong} neuron_ids are not in both, the file and the recording")
    if row.prediction.shape[1] > recording.frames[row.trial]:
        raise ValueError(f"{where}: {row.prediction.shape[1]} frames, the trial has {recording.frames[row.trial]}")


def tier_of(path: Path, recordings: dict[str, Recording], row: TrialRow) -> str:
    """The tier that a file is of, by its name; by the row where it has a name of its own."""
    if row.mouse not in recordings:
        raise ValueError(f"{path}: mouse {row.mouse} is none of {', '.join(recordings)}")
    named = {file: tier for tier, file in FILES.items()}
    trials = recordings[row.mouse].trials
    return named.get(path.name) or str(trials["tier"].iat[min(max(row.trial, 0), len(trials) - 1)])


def check_complete(path: Path, seen: dict[str, set[int]], recordings: dict[str, Recording]) -> None:
    """Fail where a mouse, or a trial of the tier, is missing."""
    tiers = {recordings[mouse].trials["tier"].iat[trial] for mouse, trials in seen.items() for trial in trials}
    if len(tiers) > 1:
        raise ValueError(f"{path}: holds trials of tiers {', '.join(sorted(tiers))}, expected one tier")
    for mouse, recording in recordings.items():
        expected = set(np.flatnonzero((recording.trials["tier"] == next(iter(tiers))).to_numpy()).tolist())
        if missing := sorted(expected - seen.get(mouse, set())):
            raise ValueError(
                f"{path}: mouse {mouse} lacks {len(missing)} of {len(expected)} trials, such as {missing[0]}"
            )
