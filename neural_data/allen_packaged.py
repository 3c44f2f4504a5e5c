"""The Allen Visual Coding recordings as mouse-vision packaged them, converted once to an open format.

Comes in: `mouse_neuropixels_visual_data_with_reliabilities.pkl` or `mouse_calcium_...pkl` (Nayebi, Kong et al., PLOS
Comput Biol 19(10):e1011506, 2023): a pickled dictionary with `stimuli`, (images, height, width), and `neural_data`, an
xarray.DataArray (trials, frame_id[, time_relative_to_stimulus_onset], units) in spikes/s or in % of dF/F, whose index
`units` says of each unit who it is. Goes out: a folder

    images.npy              (stimuli, height, width) uint8
    responses.npy           (repeats, stimuli, neurons[, time]) float32, NaN where an animal has no such repeat
    sampling_rate_hz.npy, response_start_ms.npy     numbers; where responses are resolved in time
    neurons.csv             neuron_id, animal, area, layer, x_um, y_um, z_um, and what else is known of each unit
    extra_<name>.npy        (time, neurons), such as extra_splithalf_r_mean.npy
    frames.npy              (repeats, stimuli) how many samples in time there are; where responses have some
    notes.txt               where it is from, and what was left out

which `read_arrays` reads. The Neuropixels pickle has 10 GB; it is never held in memory.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.pickled_xarray import NAMES, LabelledArray, labelled_array, plain_array
from neural_data.restricted_pickle import read_pickle
from neural_data.tables import NEURON_COLUMNS, neuron_table

REPEATS, STIMULI, UNITS, TIME = "trials", "frame_id", "units", "time_relative_to_stimulus_onset"
# What the two files call the columns of our neuron table, the first that is there counts.
NEURON_ID, ANIMAL, AREA = ("unit_id", "cell_specimen_id"), ("specimen_id",), ("visual_area", "area")
PROGRESS_FILE, NOTES_FILE, EXTRA = "progress.json", "notes.txt", "extra_"
SPARE_BYTES = 2**26


@dataclass(frozen=True)
class _Package:
    """What a packaged file holds; `responses` (repeats, stimuli, neurons[, time]) and `images` lie in the file."""

    images: np.ndarray
    pixels: type[np.generic]
    responses: np.ndarray
    neurons: pd.DataFrame
    extra: dict[str, np.ndarray]
    sampling_rate_hz: float | None
    response_start_ms: float
    notes: list[str]


def convert_packaged(path: str | Path, out: str | Path) -> Path:
    """Writes the folder above and returns it.

    What is half done lies beside the folder and is gone on with by the next call; a folder that was converted from
    this very file is returned as it is, and no other is touched. Only data is read out of the pickle: whatever else it
    names is refused. Raises FileNotFoundError, or ValueError naming the file, the field, what was found and expected.
    """
    path, out = Path(path), Path(out)
    source = _source(path)
    if out.exists():
        if _notes(out)[:1] == [source]:
            return out
        raise ValueError(f"{out}: exists already and was not converted from {path}; name a new folder")
    package = _read_package(path, source)
    unfinished = out.with_name(f".{out.name}.unfinished")
    done = _begin(unfinished, path, package)
    _write_responses(package.responses, unfinished, path, done)
    _write_rest(package, unfinished)
    (unfinished / PROGRESS_FILE).unlink()
    return unfinished.rename(out)


def _source(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected one of mouse-vision's packaged .pkl files")
    return f"converted from {path.name} ({path.stat().st_size} bytes)"


def _read_package(path: Path, source: str) -> _Package:
    packed = read_pickle(path, NAMES)
    if not (isinstance(packed, dict) and {"stimuli", "neural_data"} <= set(packed)):
        found = ", ".join(map(str, packed)) if isinstance(packed, dict) else type(packed).__name__
        raise ValueError(f"{path}: found {found[:200]}, expected a dictionary with stimuli and neural_data")
    field = "stimuli"
    try:
        images = plain_array(packed["stimuli"])
        field = "neural_data"
        return _in_our_order(images, labelled_array(packed["neural_data"]), source)
    except ValueError as error:
        raise ValueError(f"{path}: {field}: {error}") from None


def _in_our_order(images: np.ndarray, data: LabelledArray, source: str) -> _Package:
    wanted = (REPEATS, STIMULI, UNITS, TIME)[: 4 if TIME in data.dims else 3]
    if sorted(data.dims) != sorted(wanted):
        raise ValueError(f"found the dimensions {', '.join(data.dims)}, expected {', '.join(wanted)}")
    responses = data.values.transpose([data.dims.index(dim) for dim in wanted])
    if responses.dtype.kind not in "iuf":
        raise ValueError(f"found {responses.dtype}, expected numbers")
    labels = {name: values for name, (dims, values) in data.coordinates.items() if dims == (name,)}
    per_unit = {name: values for name, (dims, values) in data.coordinates.items() if dims == (UNITS,)}
    extra = {
        name: values if dims == (TIME, UNITS) else values.T
        for name, (dims, values) in data.coordinates.items()
        if set(dims) == {TIME, UNITS}
    }
    used = {REPEATS, STIMULI, TIME, *per_unit, *extra}
    left_out = [f"the coordinate {name} is left out" for name in data.coordinates if name not in used]
    rate, start = _time(labels.get(TIME)) if TIME in data.dims else (None, 0.0)
    shown = _shown_images(images, labels.get(STIMULI), responses.shape[1])
    return _Package(shown, _pixels(shown), responses, _neurons(per_unit), extra, rate, start, [source, *left_out])


def _shown_images(images: np.ndarray, frames: np.ndarray | None, n: int) -> np.ndarray:
    """The images in the order of the responses; frame_id counts them from 0."""
    if images.ndim != 3 or images.dtype.kind not in "iuf":
        raise ValueError(
            f"stimuli are {images.dtype} of shape {images.shape}, expected numbers (images, height, width)"
        )
    frames = np.arange(n) if frames is None else frames
    if frames.dtype.kind not in "iuf" or not np.isin(frames, np.arange(len(images))).all():
        raise ValueError(f"{STIMULI} holds {frames.min()} to {frames.max()}, expected 0 to {len(images) - 1}")
    order = frames.astype(int)
    return images if np.array_equal(order, np.arange(len(images))) else images[order]


def _pixels(images: np.ndarray) -> type[np.generic]:
    """The type that holds the images without loss: uint8 where all are whole numbers. Read one by one."""
    low, high = min(image.min() for image in images), max(image.max() for image in images)
    if not 0 <= low <= high <= 255:
        raise ValueError(f"stimuli hold values from {low} to {high}, expected 0 to 255")
    return np.uint8 if all((image == np.rint(image)).all() for image in images) else np.float32


def _time(seconds: np.ndarray | None) -> tuple[float, float]:
    """Bins per second, and where the first one begins in ms; the AllenSDK labels bins by their centres."""
    if seconds is None or len(seconds) < 2 or seconds.dtype.kind != "f":
        raise ValueError(f"{TIME} has no numbers, expected at least two centres of bins in s")
    step = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    if not step > 0 or not np.allclose(np.diff(seconds), step, rtol=1e-3):
        raise ValueError(
            f"{TIME} goes from {seconds[0]} to {seconds[-1]} s in unequal steps, expected bins of one width"
        )
    return round(1 / step, 6), round(1000 * (seconds[0] - step / 2), 6)


def _neurons(per_unit: dict[str, np.ndarray]) -> pd.DataFrame:
    columns = [next((name for name in names if name in per_unit), None) for names in (NEURON_ID, ANIMAL, AREA)]
    for names, column in zip((NEURON_ID, ANIMAL, AREA), columns, strict=True):
        if column is None:
            raise ValueError(f"{UNITS} lack {' or '.join(names)}; found {', '.join(per_unit)}")
    neurons = neuron_table(*(per_unit[column] for column in columns))
    twice = neurons.groupby(["animal", "neuron_id"]).cumcount()
    neurons["neuron_id"] = neurons["neuron_id"] + twice.map(lambda n: f" ({n + 1})" if n else "")
    for name, values in per_unit.items():
        if name in columns or (name in AREA and np.array_equal(values, per_unit[columns[2]])):
            continue
        neurons[f"{name}_of_source" if name in NEURON_COLUMNS else name] = values
    return neurons


def _begin(unfinished: Path, path: Path, package: _Package) -> int:
    """Makes the folder for a conversion, unless one is half done; returns how many repeats are in it."""
    progress = _progress(unfinished)
    if progress and progress["source"] == _identity(path):
        return progress["repeats"]
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    needed = 4 * (package.responses.size + package.images.size) + SPARE_BYTES
    free = shutil.disk_usage(unfinished.parent).free
    if free < needed:
        raise ValueError(
            f"{unfinished.parent}: {free / 2**30:.1f} GB are free, the conversion needs {needed / 2**30:.1f}"
        )
    unfinished.mkdir()
    np.lib.format.open_memmap(unfinished / "responses.npy", "w+", np.float32, package.responses.shape)
    _write_progress(unfinished, path, 0)
    return 0


def _write_responses(responses: np.ndarray, folder: Path, path: Path, done: int) -> None:
    """Fills `responses.npy` one repeat at a time."""
    for repeat in range(done, len(responses)):
        # Opened for each repeat, so that the pages of those before can leave the memory.
        stored = np.lib.format.open_memmap(folder / "responses.npy", "r+")
        stored[repeat] = responses[repeat]
        stored.flush()
        _write_progress(folder, path, repeat + 1)


def _write_rest(package: _Package, folder: Path) -> None:
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", package.pixels, package.images.shape)
    for row, image in enumerate(package.images):
        images[row] = image
    images.flush()
    for name, values in package.extra.items():
        np.save(folder / f"{EXTRA}{name}.npy", np.asarray(values))
    if package.sampling_rate_hz is not None:
        # Written, so that the reader need not look through all responses for their ends.
        np.save(folder / "frames.npy", np.full(package.responses.shape[:2], package.responses.shape[3]))
        np.save(folder / "sampling_rate_hz.npy", np.float64(package.sampling_rate_hz))
        np.save(folder / "response_start_ms.npy", np.float64(package.response_start_ms))
    package.neurons.to_csv(folder / "neurons.csv", index=False)
    (folder / NOTES_FILE).write_text("".join(f"{note}\n" for note in package.notes), encoding="utf-8")


def _identity(path: Path) -> list[str | int]:
    facts = path.stat()
    return [path.name, facts.st_size, facts.st_mtime_ns]


def _progress(folder: Path) -> dict | None:
    try:
        return json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_progress(folder: Path, path: Path, repeats: int) -> None:
    part = folder / f"{PROGRESS_FILE}.part"
    part.write_text(json.dumps({"source": _identity(path), "repeats": repeats}), encoding="utf-8")
    part.replace(folder / PROGRESS_FILE)


def _notes(folder: Path) -> list[str]:
    file = folder / NOTES_FILE
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
