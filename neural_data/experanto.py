"""Recordings in experanto's format, the community's newer one: devices on one clock, trials on the screen.

Comes in: a folder (see `experanto_folder.py`). Goes out: a `Recording`. Videos become a recording resolved in time,
with one sample of responses, pupil and running per frame; images one with a single response each, the average over a
window after their onset. Large arrays stay in the folder's files until a trial is asked for; nothing is written there.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Listed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neural_data.experanto_devices import INTERPOLATIONS, Sequence, Spikes
from neural_data.experanto_folder import ExperantoFolder, open_experanto
from neural_data.experanto_meta import file_inside, read_meta
from neural_data.experanto_screen import Screen
from neural_data.experanto_signals import DEVICES, open_signals
from neural_data.experanto_trials import ResponsesAt, image_parts, sample_videos, video_parts
from neural_data.recording import Recording
from neural_data.tables import neuron_table
from neural_data.trial_files import npy_file

KINDS = {"videos": "video", "images": "image"}
# Deconvolved responses to images of 500 ms are summed from 50 to 550 ms after onset in Lurz et al., ICLR 2021, whose
# recordings and processing the Sensorium scans share (Willeke et al., arXiv 2206.08666).
IMAGE_WINDOW_MS = (50.0, 550.0)
RESPONSES = ("responses", "spikes")
NEURON_COLUMNS = {"unit_ids": "neuron_id", "area": "area", "layer": "layer"}
POSITIONS = "cell_motor_coordinates"


def read_experanto(
    folder: str | Path,
    kind: str | None = None,
    rate_hz: float | None = None,
    interpolation: str = "nearest",
    image_window_ms: tuple[float, float] = IMAGE_WINDOW_MS,
    response_start_ms: float = 0.0,
    signal_names: Mapping[str, Listed[str]] | None = None,
) -> Recording:
    """The recording in a folder of experanto's format, of one animal, named animal-session-scan where that is known.

    `kind`: "videos" or "images", by default the one that was shown. `rate_hz`: samples per second of videos, by default
    the frame rate of the fastest. `interpolation`: "nearest" takes the last sample at or before each time, which is
    experanto's own default: each value was measured, and a NaN spoils one sample; "linear" blends it with the next one,
    without the steps of slow signals. `response_start_ms`: how much later than each frame its responses are taken
    (experanto's default configuration has 100). `image_window_ms`: from onset, over which responses and signals to
    images are averaged, and spikes counted. `signal_names`: by device, such as those of an eye tracker with other than
    the four published signals; `pupil_x` and `pupil_y` become the pupil's centre, all others behavior.

    Trials have `tier`, `start_s` (from the first frame on the screen), `trial_id` and, where the files have them,
    `valid_trial`, `withheld`, `stimulus_name`, `condition_hash` and `stimulus_class` (the field `stim_type`). Blank and
    invalid trials, the other kind, and trials during which responses were not recorded are left out and counted in
    `notes`. Raises FileNotFoundError, or ValueError of one line with the file, the field, what was found and expected.
    """
    _check_arguments(interpolation, rate_hz, image_window_ms)
    source = open_experanto(folder, only={"screen", *RESPONSES, *DEVICES})
    screen, (device_name, responses) = _screen(source), _responses(source)
    signals = open_signals(source, signal_names or {})
    kind = _kind(source, screen, kind)
    shown = [trial for trial in screen.trials if trial.modality == KINDS[kind]]
    neurons, notes = _neurons(source, device_name, responses)
    if kind == "videos":
        videos, rate, more = sample_videos(screen, shown, rate_hz)
        at = ResponsesAt(responses, rate, interpolation)
        parts = video_parts(screen, at, signals, videos, response_start_ms / 1000)
        notes += more
    else:
        parts = image_parts(screen, responses, signals, shown, tuple(ms / 1000 for ms in image_window_ms))
    name = source.path.resolve().name
    unread = sorted(set(source.names) - {"screen", device_name, *DEVICES})
    return Recording(
        name=name,
        neurons=neurons,
        statistics=_statistics(source),
        source=f"experanto folder {name}",
        notes=(*_left_out(screen, kind, parts["trials"]), *notes, *_named("devices not read", unread)),
        **parts,
    )


def _check_arguments(interpolation: str, rate_hz: float | None, image_window_ms: tuple[float, float]) -> None:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation: found {interpolation!r}, expected {' or '.join(INTERPOLATIONS)}")
    if rate_hz is not None and not 0 < rate_hz < np.inf:
        raise ValueError(f"rate_hz: found {rate_hz}, expected samples per second, more than 0")
    if len(image_window_ms) != 2 or not image_window_ms[0] < image_window_ms[1]:
        raise ValueError(f"image_window_ms: found {image_window_ms}, expected start and a later stop, from onset")


def _screen(source: ExperantoFolder) -> Screen:
    screen = source.devices.get("screen")
    if not isinstance(screen, Screen):
        raise ValueError(f"{source.path}: screen: found {_devices(source)}, expected a device of modality screen")
    return screen


def _responses(source: ExperantoFolder) -> tuple[str, Sequence | Spikes]:
    """The device `responses`, or that of `spikes` in recordings of electrodes."""
    for name in RESPONSES:
        device = source.devices.get(name)
        if isinstance(device, Sequence | Spikes):
            return name, device
    raise ValueError(f"{source.path}: responses: found {_devices(source)}, expected a device of sequence or spikes")


def _devices(source: ExperantoFolder) -> str:
    opened = {name: f" ({type(device).__name__})" for name, device in source.devices.items()}
    return ", ".join(name + opened.get(name, "") for name in source.names)


def _kind(source: ExperantoFolder, screen: Screen, kind: str | None) -> str:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: found {kind!r}, expected {' or '.join(KINDS)}")
    modalities = pd.Series([trial.modality for trial in screen.trials]).value_counts()
    counts = {name: int(modalities.get(modality, 0)) for name, modality in KINDS.items()}
    there = [name for name in KINDS if counts[name]]
    found = ", ".join(f"{counts[name]} {name}" for name in KINDS)
    if not there or (kind and kind not in there):
        raise ValueError(f"{source.path / 'screen'}: found {found} on the screen, expected {kind or 'either'}")
    if kind is None and len(there) > 1:
        raise ValueError(f"{source.path / 'screen'}: found {found}, expected one kind; say kind='videos' or 'images'")
    return kind or there[0]


def _neurons(source: ExperantoFolder, device: str, responses: Sequence | Spikes) -> tuple[pd.DataFrame, list[str]]:
    """The neuron table, from the properties that the device's `meta.yml` lists or the folder `meta` holds; notes."""
    folder, n = source.path / device, responses.shape[1]
    meta = read_meta(folder / "meta.yml")
    files = {file.stem: file for file in sorted((folder / "meta").glob("*.npy"))}
    files |= {name: file_inside(folder, path, meta) for name, path in meta.names("neuron_properties").items()}
    columns: dict[str, Any] = {"neuron_id": np.arange(n)}
    for name, column in NEURON_COLUMNS.items():
        if name in files:
            columns[column] = _property(files[name], (n,), "UiufS").astype(str)
    if POSITIONS in files:
        xyz = _property(files[POSITIONS], (n, None), "iuf")
        columns |= dict(zip(("x_um", "y_um", "z_um"), xyz.T, strict=False))
    unread = sorted(set(files) - {*NEURON_COLUMNS, POSITIONS, "means", "stds", "phase_shifts"})
    return neuron_table(animal=source.animal, **columns), _named("neuron properties not read", unread)


def _property(path: Path, shape: tuple[int | None, ...], kinds: str) -> np.ndarray:
    values = npy_file(path)
    fits = len(values.shape) == len(shape) and all(n in (None, m) for n, m in zip(shape, values.shape, strict=True))
    if not fits or values.dtype.kind not in kinds:
        expected = ", ".join("2 or 3" if n is None else str(n) for n in shape)
        raise ValueError(f"{path}: found {values.dtype} of shape {values.shape}, expected ({expected}), one per neuron")
    return values


def _statistics(source: ExperantoFolder) -> dict[str, dict[str, np.ndarray]]:
    """The source's own, by device: `mean` and `std`, one per signal (of the screen, as they are)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for device in source.devices:
        for name, stem in (("mean", "means"), ("std", "stds")):
            path = source.path / device / "meta" / f"{stem}.npy"
            if path.is_file():
                found.setdefault(device, {})[name] = np.array(npy_file(path)).squeeze()
    return found


def _left_out(screen: Screen, kind: str, trials: pd.DataFrame) -> list[str]:
    modalities = pd.Series([trial.modality for trial in screen.trials])
    others = modalities[modalities != KINDS[kind]].value_counts(sort=False)
    notes = [f"left out {', '.join(f'{n} {modality}' for modality, n in others.items())} trials"] if len(others) else []
    unrecorded = (modalities == KINDS[kind]).sum() - len(trials)
    notes += [f"left out {unrecorded} {kind} shown while responses were not recorded"] if unrecorded else []
    if "valid_trial" in trials and not trials["valid_trial"].all():
        notes.append(f"{(~trials['valid_trial']).sum()} trials are marked as not valid, see valid_trial")
    return notes


def _named(what: str, names: list[str]) -> list[str]:
    return [f"{what}: {', '.join(names)}"] if names else []
