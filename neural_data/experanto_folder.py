"""An experanto folder: one recording, a sub-folder per device, one clock.

Comes in: the folder. Goes out: `ExperantoFolder` with its devices, each a `Screen`, `Sequence`, `TimeIntervals` or
`Spikes` by the `modality` of its `meta.yml`; and `chunk`, a piece of time as seen by several devices. The format is
that of sensorium-competition/experanto, branches `main` and `foundation_model`; the folder is never written to.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neural_data.experanto_devices import (
    Sampled,
    Sequence,
    Spikes,
    TimeIntervals,
    open_sequence,
    open_spikes,
    open_time_intervals,
)
from neural_data.experanto_meta import read_meta
from neural_data.experanto_screen import Screen, open_screen

Device = Screen | Sequence | TimeIntervals | Spikes

OPENERS = {
    "sequence": open_sequence,
    "screen": open_screen,
    "time_interval": open_time_intervals,
    "spikes": open_spikes,
}
# Chunks are cut in whole units of this, as experanto's own (`interpolate_precision=5`).
UNITS_PER_S = 10**5


@dataclass(frozen=True)
class ExperantoFolder:
    """`animal`: its name, of published recordings animal-session-scan; `devices`: by the name of their folder; `names`:
    of all devices that there are, opened or not."""

    path: Path
    animal: str
    devices: Mapping[str, Device]
    names: tuple[str, ...]


def open_experanto(folder: str | Path, only: Collection[str] | None = None) -> ExperantoFolder:
    """Opens all devices, or those of `only` that there are; of large files only the headers are read.

    Raises FileNotFoundError, or ValueError of one line with the file, the field, what was found and was expected.
    """
    folder = Path(folder)
    if not folder.is_dir():
        hint = "; unpack the archive first" if folder.is_file() else ""
        raise FileNotFoundError(f"{folder}: no such folder{hint}")
    names = sorted(meta.parent.name for meta in folder.glob("*/meta.yml"))
    if not names:
        raise FileNotFoundError(f"{folder}: no devices, expected folders such as screen and responses with a meta.yml")
    devices = {name: open_device(folder / name) for name in names if only is None or name in only}
    return ExperantoFolder(folder, _animal(folder), devices, tuple(names))


def open_device(folder: str | Path) -> Device:
    """One device, by the `modality` in its `meta.yml`. Raises as `open_experanto` does."""
    folder = Path(folder)
    meta = read_meta(folder / "meta.yml")
    modality = meta.text("modality")
    if modality not in OPENERS:
        raise meta.wrong("modality", " or ".join(OPENERS))
    return OPENERS[modality](folder, meta)


@dataclass(frozen=True)
class ChunkPart:
    """How one device is seen in a chunk: `samples` at `sampling_rate_hz`, `offset_s` after the chunk's start."""

    sampling_rate_hz: float
    samples: int
    offset_s: float = 0.0

    def times_s(self, start_s: float) -> np.ndarray:
        """float64 (samples,), in whole steps of 10 µs, as experanto's `ChunkDataset` has them."""
        start, offset, step = (
            round(seconds * UNITS_PER_S) for seconds in (start_s, self.offset_s, 1 / self.sampling_rate_hz)
        )
        return (start + offset + step * np.arange(self.samples)) / UNITS_PER_S


def chunk(folder: ExperantoFolder, start_s: float, parts: Mapping[str, ChunkPart]) -> dict[str, Sampled]:
    """Values and masks of the named devices from `start_s` on, on the recording's clock; raw, not normalised."""
    return {name: folder.devices[name].at(part.times_s(start_s)) for name, part in parts.items()}


def _animal(folder: Path) -> str:
    """animal-session-scan, or what else `meta.json` calls the recording, or the folder's name does."""
    fields, path = {}, folder / "meta.json"
    if path.is_file():
        try:
            fields = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())})") from None
    scan = fields.get("scan_key", {}) if isinstance(fields, dict) else None
    if not isinstance(scan, dict):
        raise ValueError(f"{path}: found another form, expected a table with data_key, or with scan_key and its parts")
    parts = [str(scan[part]) for part in ("animal_id", "session", "scan_idx") if part in scan]
    named = re.search(r"dynamic(.+?)-Video", folder.resolve().name)
    return str(fields.get("data_key") or "-".join(parts) or (named[1] if named else folder.resolve().name))
