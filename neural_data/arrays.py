"""Recordings as plain arrays: one `.npz` file, or a folder of `.npy` files with the same names.

Comes in: a path. Goes out: a `Recording`; or the other way round. The layout:

    images      (stimuli, height, width) grey or (stimuli, height, width, 3) RGB; uint8, or numbers from 0 to 255;
                floats of which none is above 1 are taken to reach from 0 to 1 and are multiplied by 255
    responses   (repeats, stimuli, neurons), NaN where a neuron has no response to a repeat
    neuron_id, animal, area, layer      (neurons,) text, each optional
    x_um, y_um, z_um                    (neurons,) numbers, each optional
    tier        (stimuli,) text such as "train", optional
    truth_*     passed over: the truth of a simulation

Without `neuron_id` neurons are numbered from 0; without `animal` all belong to one, named after the file. In
a folder the seven arrays of neurons may instead be columns of `neurons.csv`. Animals that saw different
stimuli: every name carries the animal as a prefix (`m1_images`, `m1_responses`, `m1_area`, ...; no `animal`);
images that two animals share are stored once. A repeat of a stimulus that has no response of any neuron is
padding and becomes no trial.

Nothing is unpickled: arrays of Python objects are refused.
"""

import difflib
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from neural_data.recording import Recording
from neural_data.tables import NEURON_COLUMNS, POSITION_COLUMNS, neuron_table, trial_table

REQUIRED = ("images", "responses")
NAMES = (*REQUIRED, *NEURON_COLUMNS, "tier")
TRUTH_PREFIX = "truth_"
NEURON_FILE = "neurons.csv"


def read_arrays(path: str | Path) -> Recording:
    """The recording in an `.npz` file or a folder of `.npy` files, in the layout above.

    Trials are ordered by repeat, then stimulus. In a folder without prefixes `images` and `responses` stay on
    disk, unless they must be scaled or padding must be left out. Raises FileNotFoundError, or ValueError
    naming the file, the array, what was found and what was expected.
    """
    path = Path(path)
    arrays = _load_folder(path) if path.is_dir() else _load_file(path)
    groups = _by_animal(path, arrays)
    for prefix, group in groups.items():
        _check_group(path, prefix, group)
    if list(groups) == [""]:
        return _one_group(path, groups[""])
    return _merged(path, groups)


def write_arrays(recording: Recording, folder: str | Path) -> Path:
    """Writes the folder form without prefixes, such that `read_arrays` gives the recording back.

    Trials come back ordered by repeat and stimulus, with repeats numbered from 0, without those that have no response
    at all; name and source become those of the folder. Written beside the folder first and renamed, so that a folder
    of that name is always whole. Raises ValueError where the layout cannot hold the recording, or the folder exists
    and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists already; name a new or an empty folder")
    held = {"behavior", "pupil_center", "sampling_rate_hz"}
    extra = sorted(part for part in held if getattr(recording, part) is not None)
    extra += ["statistics"] if recording.statistics else []
    if extra:
        raise ValueError(f"{recording.name}: arrays hold no {', '.join(extra)}; dataclasses.replace them by None first")
    images = _scaled(Path(recording.name), "stimuli", recording.stimuli)
    tier = _tier_of_stimuli(recording)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        np.save(unfinished / "images.npy", images)
        np.save(unfinished / "tier.npy", np.array(tier))
        for column in NEURON_COLUMNS:
            dtype = float if column in POSITION_COLUMNS else np.str_
            np.save(unfinished / f"{column}.npy", recording.neurons[column].to_numpy(dtype=object).astype(dtype))
        _write_responses(recording, unfinished / "responses.npy")
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _load_file(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder; expected an .npz file or a folder of .npy files")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: is no .npz file; expected one written by numpy.savez, or a folder of .npy files")
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            if key.startswith(TRUTH_PREFIX):
                continue
            try:
                arrays[key] = archive[key]
            except (ValueError, zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"{path}: {key}: cannot be read as numbers or text ({_line(error)})") from None
            if not isinstance(arrays[key], np.ndarray):
                raise ValueError(f"{path}: {key}: found a file that is no array, expected .npy members only")
    return arrays


def _load_folder(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        if file.stem.startswith((TRUTH_PREFIX, ".")):
            continue
        try:
            arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{file}: cannot be read as numbers or text ({_line(error)})") from None
    table = path / NEURON_FILE
    if table.is_file():
        try:
            frame = pd.read_csv(table, dtype=str, keep_default_na=False)
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{table}: cannot be read as a table with a header ({_line(error)})") from None
        for column in frame.columns:
            _check_name(table, column, column, list(frame.columns), NEURON_COLUMNS)
            if column in arrays:
                raise ValueError(f"{table}: {column}: found also {column}.npy, expected one of the two")
            arrays[column] = _csv_column(table, column, frame[column])
    return arrays


def _csv_column(table: Path, column: str, texts: pd.Series) -> np.ndarray:
    if column not in POSITION_COLUMNS:
        return texts.to_numpy(dtype=object).astype(np.str_)
    numbers = pd.to_numeric(texts.where(texts != "", "nan"), errors="coerce")
    wrong = numbers.isna() & ~texts.str.lower().isin(["", "nan"])
    if wrong.any():
        raise ValueError(f"{table}: {column}: found {texts[wrong].iloc[0]!r}, expected numbers in µm")
    return numbers.to_numpy(dtype=float)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _by_animal(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by prefix, "" for none, each with its required names. Every name must be one of the layout's."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, values in arrays.items():
        name = next((name for name in NAMES if key == name or key.endswith(f"_{name}")), None)
        prefix = key.removesuffix(name).removesuffix("_") if name else ""
        _check_name(path, key, name or key, list(arrays), NAMES)
        groups.setdefault(prefix, {})[name] = values
    for prefix, group in groups.items() or {"": {}}.items():
        for name in REQUIRED:
            wanted = f"{prefix}_{name}" if prefix else name
            if name not in group:
                there = ", ".join(arrays) if arrays else "no arrays"
                raise ValueError(f"{path}: {wanted}: not there; found {there}{_nearest(wanted, list(arrays))}")
        if prefix and "animal" in group:
            raise ValueError(f"{path}: {prefix}_animal: found beside the prefix {prefix!r}, which is the animal's name")
    if "" in groups and len(groups) > 1:
        raise ValueError(
            f"{path}: found names without prefix ({', '.join(groups[''])}) and with "
            f"({', '.join(sorted(set(groups) - {''}))}), expected one or the other"
        )
    return groups


def _check_name(path: Path, key: str, name: str, there: list[str], allowed: tuple[str, ...]) -> None:
    if name in allowed:
        return
    # A misspelt required name is best told as the missing one, with the nearest of what is there.
    missing = [r for r in REQUIRED if r in allowed and not any(k == r or k.endswith(f"_{r}") for k in there)]
    if missing:
        found = f"{path}: {missing[0]}: not there; found {', '.join(there)}"
        raise ValueError(found + _nearest(missing[0], there))
    raise ValueError(
        f"{path}: {key}: is no name of this layout; expected {', '.join(allowed)}{_nearest(key, list(allowed))}"
    )


def _nearest(name: str, names: list[str]) -> str:
    # What follows an underscore is tried, too: it may be a misspelt name behind an animal's prefix.
    parts = name.split("_")
    tails = ["_".join(parts[i:]) for i in range(len(parts))]
    close = [match for tail in tails for match in difflib.get_close_matches(tail, names, n=1)]
    return f"; nearest: {close[0]}" if close else ""


def _check_group(path: Path, prefix: str, group: dict[str, np.ndarray]) -> None:
    """Shapes and kinds of one animal's arrays; replaces `images` by values from 0 to 255."""
    start = f"{path}: {prefix}_" if prefix else f"{path}: "
    images, responses = group["images"], group["responses"]
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        expected = "(stimuli, height, width) or (stimuli, height, width, 3)"
        raise ValueError(f"{start}images: found shape {images.shape}, expected {expected}")
    if responses.ndim != 3:
        hint = "; one value per stimulus and neuron needs a first axis of length 1" if responses.ndim == 2 else ""
        raise ValueError(f"{start}responses: found shape {responses.shape}, expected (repeats, stimuli, neurons){hint}")
    if responses.dtype.kind not in "iuf":
        raise ValueError(f"{start}responses: found {responses.dtype}, expected numbers")
    stimuli, neurons = responses.shape[1:]
    if len(images) != stimuli:
        raise ValueError(
            f"{start}responses: found {stimuli} stimuli (second axis), expected {len(images)} as in images"
        )
    if not responses.size or not images.size:
        raise ValueError(f"{start}responses: found shape {responses.shape}, expected no empty axis")
    for name in (*NEURON_COLUMNS, "tier"):
        if name not in group:
            continue
        values, n = group[name], stimuli if name == "tier" else neurons
        if values.shape != (n,):
            what = "stimulus" if name == "tier" else "neuron"
            raise ValueError(f"{start}{name}: found shape {values.shape}, expected ({n},), one per {what}")
        kinds = "iuf" if name in POSITION_COLUMNS else "Uiu"
        if values.dtype.kind not in kinds:
            expected = "numbers" if name in POSITION_COLUMNS else "text or whole numbers"
            raise ValueError(f"{start}{name}: found {values.dtype}, expected {expected}")
    group["images"] = _scaled(path, f"{start.removeprefix(f'{path}: ')}images", images)


def _scaled(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 255: uint8 untouched, other whole numbers as uint8, floats that end at 1 times 255."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {key}: found {images.dtype}, expected uint8 or floats")
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):
        raise ValueError(f"{path}: {key}: found values from {low} to {high}, expected 0 to 255 or 0 to 1")
    if images.dtype.kind in "iu":
        return np.asarray(images, dtype=np.uint8)
    return images if high > 1 else np.asarray(images) * images.dtype.type(255)


def _neurons(path: Path, animal: str, group: Mapping[str, np.ndarray], n: int) -> pd.DataFrame:
    """The neuron table of one group, with what the layout says of absent names."""
    columns = {name: group[name] for name in NEURON_COLUMNS if name in group}
    return neuron_table(**({"neuron_id": np.arange(n), "animal": animal} | columns))


def _presented(path: Path, responses: np.ndarray) -> np.ndarray:
    """bool (repeats, stimuli): whether any neuron has a response. Read one repeat at a time."""
    presented = np.empty(responses.shape[:2], dtype=bool)
    for repeat, block in enumerate(responses):
        if np.isinf(block).any():
            raise ValueError(f"{path}: responses: found infinite values, expected NaN where a response is missing")
        presented[repeat] = ~np.isnan(block).all(axis=1)
    return presented


def _one_group(path: Path, group: Mapping[str, np.ndarray]) -> Recording:
    stored = group["responses"]
    presented = _presented(path, stored)
    repeat, stimulus = np.nonzero(presented)
    responses = stored.reshape(-1, stored.shape[2])
    tier = np.asarray(group.get("tier", np.full(stored.shape[1], "")))
    return Recording(
        name=path.stem,
        stimuli=group["images"],
        trials=trial_table(stimulus, repeat, tier[stimulus]),
        responses=responses if presented.all() else responses[presented.ravel()],
        neurons=_neurons(path, path.stem, group, stored.shape[2]),
        source=path.name,
    )


def _merged(path: Path, groups: Mapping[str, Mapping[str, np.ndarray]]) -> Recording:
    """One recording of animals with stimuli of their own; they share trials where they share stimuli."""
    place = _shared_images(path, groups)
    images = np.concatenate([group["images"][place[animal][0]] for animal, group in groups.items()])
    tier = np.full(len(images), "", dtype=object)
    n_repeats = max(len(group["responses"]) for group in groups.values())
    n_neurons = [group["responses"].shape[2] for group in groups.values()]
    dtype = np.result_type(np.float32, *(group["responses"].dtype for group in groups.values()))
    grid = np.full((n_repeats, len(images), sum(n_neurons)), np.nan, dtype=dtype)
    last = np.cumsum(n_neurons)
    for (animal, group), n, end in zip(groups.items(), n_neurons, last, strict=True):
        rows = place[animal][1]
        grid[: len(group["responses"]), rows, end - n : end] = group["responses"]
        own = np.array(group.get("tier", np.full(len(rows), "")), dtype=object).astype(str)
        conflict = np.flatnonzero((tier[rows] != "") & (own != "") & (tier[rows] != own))
        if len(conflict):
            i = conflict[0]
            raise ValueError(
                f"{path}: {animal}_tier: found {str(own[i])!r} for stimulus {i}, "
                f"expected {tier[rows[i]]!r} as in another animal"
            )
        tier[rows] = np.where(own == "", tier[rows], own)
    presented = _presented(path, grid)
    repeat, stimulus = np.nonzero(presented)
    tables = [_neurons(path, a, g, n) for (a, g), n in zip(groups.items(), n_neurons, strict=True)]
    return Recording(
        name=path.stem,
        stimuli=images,
        trials=trial_table(stimulus, repeat, tier[stimulus]),
        responses=grid[presented],
        neurons=pd.concat(tables, ignore_index=True),
        source=path.name,
    )


def _shared_images(
    path: Path, groups: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per animal: which of its images are new, and the row of each of its images among all that are stored
    once.

    An image that one animal has twice stays two stimuli: only images of different animals are the same
    stimulus.
    """
    (first, reference), *others = ((animal, group["images"]) for animal, group in groups.items())
    rows: dict[tuple[bytes, int], int] = {}
    place = {}
    for animal, images in [(first, reference), *others]:
        if images.shape[1:] != reference.shape[1:] or images.dtype != reference.dtype:
            raise ValueError(
                f"{path}: {animal}_images: found {images.dtype} images of shape {images.shape[1:]}, expected "
                f"{reference.dtype} of {reference.shape[1:]} as in {first}_images"
            )
        seen: dict[bytes, int] = {}
        new, own = [], []
        for i, image in enumerate(images):
            pixels = image.tobytes()
            seen[pixels] = seen.get(pixels, -1) + 1
            key = (pixels, seen[pixels])
            if key not in rows:
                rows[key] = len(rows)
                new.append(i)
            own.append(rows[key])
        place[animal] = (np.array(new, dtype=np.int64), np.array(own))
    return place


def _tier_of_stimuli(recording: Recording) -> np.ndarray:
    tiers = recording.trials.groupby("stimulus")["tier"]
    several = np.flatnonzero(tiers.nunique().to_numpy() > 1)
    if len(several):
        stimulus = tiers.nunique().index[several[0]]
        raise ValueError(f"{recording.name}: stimulus {stimulus} has trials of several tiers; arrays hold one each")
    per_stimulus = tiers.first().reindex(range(len(recording.stimuli)), fill_value="")
    return per_stimulus.to_numpy(dtype=object).astype(np.str_)


def _write_responses(recording: Recording, file: Path) -> None:
    """Fills (repeats, stimuli, neurons) on disk, one repeat at a time."""
    numbers, repeat = np.unique(recording.trials["repeat"].to_numpy(), return_inverse=True)
    stimulus = recording.trials["stimulus"].to_numpy()
    shape = (len(numbers), len(recording.stimuli), len(recording.neurons))
    dtype = np.result_type(np.float32, recording.responses.dtype)
    stored = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    for r in range(len(numbers)):
        plane = np.full(shape[1:], np.nan, dtype=dtype)
        rows = np.flatnonzero(repeat == r)
        # Animals may each have a row of their own for the same presentation: such rows fill each other's
        # gaps.
        turn = pd.Series(stimulus[rows]).groupby(stimulus[rows]).cumcount().to_numpy()
        for nth in range(turn.max() + 1):
            own = rows[turn == nth]
            there, values = plane[stimulus[own]], np.asarray(recording.responses[own], dtype=dtype)
            if (~np.isnan(there) & ~np.isnan(values)).any():
                raise ValueError(
                    f"{recording.name}: a neuron has two responses to one repeat {numbers[r]} of a stimulus"
                )
            plane[stimulus[own]] = np.where(np.isnan(there), values, there)
        stored[r] = plane
    stored.flush()
