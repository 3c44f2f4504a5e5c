"""Predictions on disk: pieces that are whole or absent, so that predicting can be killed at any time.

What comes in: predictions float32 of trials of one animal, run after run of an ensemble. What goes out: a folder

    predictions.json           response space, runs with their weights, and for each animal where its recording is
    <animal>/trials.csv        row (of the recording's trial table), tier, frames, piece
    <animal>/neurons.csv       neuron_id, in the order of the predictions
    <animal>/<piece>.npy       (neurons, time) of one trial; of images (images of the piece, neurons)

A piece of n runs is the weighted sum of the first k of them, `<piece>.<k>.npy`, until k = n. Memory holds one piece.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.trial_files import npy_file
from pretrain.durable import write_atomically

FACTS = "predictions.json"
IMAGES_OF_A_PIECE = 256


@dataclass(frozen=True, eq=False)
class AnimalPredictions:
    """The predictions of one animal in `folder`, of `runs` runs; images where not `dynamic`."""

    folder: Path
    dynamic: bool
    runs: int = 1

    @cached_property
    def trials(self) -> pd.DataFrame:
        """`row`, `tier`, `frames`, `piece`, in the order of prediction."""
        return pd.read_csv(self.folder / "trials.csv", dtype={"tier": str}, keep_default_na=False)

    @cached_property
    def neuron_ids(self) -> list[str]:
        """In the order of the predictions."""
        table = pd.read_csv(self.folder / "neurons.csv", dtype=str, keep_default_na=False)
        return table["neuron_id"].tolist()

    def trial(self, row: int) -> np.ndarray:
        """float32 (neurons, time), of an image (neurons, 1): a memory map. Raises ValueError where it is not there."""
        if row not in self._place:
            raise ValueError(f"{self.folder}: trial {row} was not predicted; predict its tier too")
        piece, place = self._place[row]
        values = npy_file(self.piece_file(piece))
        return values if self.dynamic else values[place][:, None]

    def images(self, rows: Sequence[int]) -> np.ndarray:
        """float32 (images, neurons) of several trials, each piece read once."""
        places = [self._place[row] for row in rows]
        pieces = {piece: npy_file(self.piece_file(piece)) for piece in dict.fromkeys(piece for piece, _ in places)}
        return np.stack([pieces[piece][place] for piece, place in places])

    @cached_property
    def _place(self) -> dict[int, tuple[int, int]]:
        """The piece that a trial is in, and its place there."""
        table = self.trials
        place = table.groupby("piece").cumcount()
        return dict(zip(table["row"].tolist(), zip(table["piece"].tolist(), place.tolist(), strict=True), strict=True))

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number and rows of each piece."""
        for piece, of_piece in self.trials.groupby("piece"):
            yield int(piece), of_piece["row"].to_numpy()

    def done(self, piece: int) -> int:
        """How many runs are in a piece."""
        if self.piece_file(piece).exists():
            return self.runs
        return max((k for k in range(1, self.runs) if self.piece_file(piece, k).exists()), default=0)

    def piece_file(self, piece: int, runs: int | None = None) -> Path:
        """Where a piece lies that some of the runs are in, by default all."""
        partial = "" if runs in (None, self.runs) else f".{runs}"
        return self.folder / f"{piece:06d}{partial}.npy"

    def add(self, piece: int, values: np.ndarray, run: int) -> None:
        """Add what run number `run` (from 0) gives, its weight applied, to a piece that has all runs before it."""
        if run:
            values = values + npy_file(self.piece_file(piece, run))
        array = np.ascontiguousarray(values, np.float32)
        write_atomically(self.piece_file(piece, run + 1), lambda file: _write_npy(file, array))
        for earlier in range(1, run + 1):
            self.piece_file(piece, earlier).unlink(missing_ok=True)


def _write_npy(file: Any, array: np.ndarray) -> None:
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header)
    file.write(array.data)


@dataclass(frozen=True, eq=False)
class Predictions:
    """A folder of predictions. `facts`: what `predictions.json` says; `animals`: by name."""

    path: Path
    facts: dict[str, Any]
    animals: dict[str, AnimalPredictions]

    @property
    def response_space(self) -> str:
        """The unit of all of them."""
        return self.facts["response_space"]

    @property
    def dynamic(self) -> bool:
        """Whether they are resolved in time."""
        return self.facts["dynamic"]


def create_predictions(
    path: Path, facts: dict[str, Any], trials: dict[str, pd.DataFrame], neuron_ids: dict[str, list[str]]
) -> Predictions:
    """Lay out a folder, or find it as it was left.

    `facts`: `response_space`, `dynamic`, `runs` (list), `weights`, `animals` (recording and name of each). `trials`: by
    animal, `row`, `tier` and `frames`; images are put together by hundreds.
    """
    animals = {}
    for animal, table in trials.items():
        folder = path / animal
        folder.mkdir(exist_ok=True)
        order = np.arange(len(table))
        table = table.assign(piece=order if facts["dynamic"] else order // IMAGES_OF_A_PIECE)
        _write_csv(folder / "trials.csv", table)
        _write_csv(folder / "neurons.csv", pd.DataFrame({"neuron_id": neuron_ids[animal]}))
        animals[animal] = AnimalPredictions(folder, facts["dynamic"], len(facts["runs"]))
    text = json.dumps(facts, indent=1) + "\n"
    write_atomically(path / FACTS, lambda file: file.write(text.encode()))
    return Predictions(path, facts, animals)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda file: file.write(table.to_csv(index=False).encode()))


def open_predictions(path: str | Path) -> Predictions:
    """The finished predictions of a run folder.

    Raises:
        FileNotFoundError: nothing there, or no predictions.
        ValueError: predicting has not come to its end.
    """
    path = Path(path).expanduser()
    if not (path / FACTS).is_file():
        raise FileNotFoundError(f"{path}: no {FACTS}, expected a run folder of `murine predict`")
    facts = json.loads((path / FACTS).read_text())
    runs = len(facts["runs"])
    animals = {animal: AnimalPredictions(path / animal, facts["dynamic"], runs) for animal in facts["animals"]}
    for animal, predictions in animals.items():
        missing = [piece for piece in predictions.trials["piece"].unique() if predictions.done(piece) < runs]
        if missing:
            raise ValueError(
                f"{path}: {len(missing)} pieces of animal {animal} are missing; the same `murine predict` goes on"
            )
    return Predictions(path, facts, animals)
