"""The tables of a mouse in Sensorium's layout: whose neurons they are, where they lie, and what is said of each trial.

Comes in: a `SensoriumFolder`. Goes out: the animal's name, the neuron table, the columns of the trial table, and what
identifies the stimulus of a trial. What the source says in further arrays becomes further columns.
"""

import re
from typing import Any

import numpy as np
import pandas as pd

from neural_data.sensorium_folder import CLIP_ID, IMAGE_CLASS, IMAGE_ID, SensoriumFolder, TrialPart
from neural_data.tables import NEURON_COLUMNS, TRIAL_COLUMNS, neuron_table

# The classes of ViV1T's `stimulus_ids`.
CLIP_CLASSES = (
    "movie",
    "directional pink noise",
    "gaussian dots",
    "random-dot kinematogram",
    "drifting gabor",
    "flashed images",
)
OURS = {*NEURON_COLUMNS, *TRIAL_COLUMNS, "frames", "withheld", "stimulus_class", "trial_id", "start_s", "clip"}
# animal-session-scan in names such as static21067-10-18-GrayImageNet-94c6ff99 and dynamic29515-10-12-Video-9b4f6a1a.
KEY = re.compile(r"(?:static|dynamic)(?:(.+?)-(?:Gray|Color)ImageNet|(.+?)-Video|(\d+-\d+-\d+))(?:-|$)")


def animal_name(folder: SensoriumFolder, neurons: dict[str, np.ndarray]) -> str:
    """The data key of the official loader: animal-session-scan, from the folder's name, else from meta/neurons; the
    folder's name where neither says it. Folders named "...preproc..." have the older rule."""
    name = folder.files.name
    if "preproc" in name:
        return name.split("static")[-1].split(".")[0].replace("preproc", "").replace("_nobehavior", "")
    match = KEY.search(name)
    if match:
        return next(filter(None, match.groups()))
    parts = [neurons[key][0] for key in ("animal_ids", "sessions", "scan_idx") if len(neurons.get(key, ()))]
    return "-".join(map(str, parts)) if len(parts) == 3 else name


def read_neurons(folder: SensoriumFolder, responses: TrialPart | None) -> pd.DataFrame:
    """The neuron table in the order of the responses, with further arrays of meta/neurons as columns.

    Areas and layers are named as the source does ("V1", "L2/3"). Raises ValueError where ids are not unique, or as
    many as neurons."""
    n = _count(folder, responses)
    found = folder.table("neurons", n)
    ids = found.pop("unit_ids", None)
    if ids is None:
        folder.notes.append("no meta/neurons/unit_ids.npy: neurons are numbered from 0")
        ids = np.arange(n)
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < n:
        raise folder.files.wrong("meta/neurons/unit_ids.npy", f"{unique[counts > 1][0]} twice", "unique ids")
    place = _positions(folder, found.pop("cell_motor_coordinates", None), n)
    texts = {column: found.pop(column) for column in ("area", "layer") if column in found}
    animal = animal_name(folder, found)
    return _with_further(neuron_table(neuron_id=ids, animal=animal, **texts, **place), found)


def _count(folder: SensoriumFolder, responses: TrialPart | None) -> int:
    if responses is not None:
        return responses.shape[-1 if folder.kind == "images" else 0]
    for name in ("unit_ids", "cell_motor_coordinates"):
        if f"meta/neurons/{name}.npy" in folder.files.files:
            return folder.files.header(f"meta/neurons/{name}.npy").shape[0]
    raise folder.files.wrong("data/responses", "no files", "responses, or meta/neurons/unit_ids.npy")


def _positions(folder: SensoriumFolder, found: np.ndarray | None, n: int) -> dict[str, np.ndarray]:
    if found is None:
        return {}
    if found.shape != (n, 3) or found.dtype.kind not in "iuf":
        file = "meta/neurons/cell_motor_coordinates.npy"
        raise folder.files.wrong(file, f"{found.dtype} of shape {found.shape}", f"µm (neurons, 3) = ({n}, 3)")
    return dict(zip(("x_um", "y_um", "z_um"), found.T, strict=True))


def trial_columns(folder: SensoriumFolder) -> tuple[pd.DataFrame, np.ndarray | None]:
    """What meta/trials says: columns of the trial table, and what identifies the stimulus of each trial, integers or
    text (trials,), negative for a clip of its own; None where nothing does.

    The columns are `trial_id` (text: whole numbers, or hashed), `image_id`, `stimulus_class`, and all else by its name.
    """
    found = folder.table("trials", len(folder.tiers))
    found.pop("target_fps", None)
    columns = {"trial_id": _text(found.pop("trial_idx"))} if "trial_idx" in found else {}
    said, identity = (_images_shown if folder.kind == "images" else _clips_shown)(found)
    return _with_further(pd.DataFrame(columns | said, index=range(len(folder.tiers))), found), identity


def _first(found: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    return next((found.pop(name) for name in names if name in found), None)


def _images_shown(found: dict[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray | None]:
    """An image is identified by its class and its id together."""
    image_id, image_class = _first(found, IMAGE_ID), _first(found, IMAGE_CLASS)
    said = {} if image_class is None else {"stimulus_class": _text(image_class)}
    if image_id is None:
        return said, None
    named = _text(image_id)
    identity = named if image_class is None else said["stimulus_class"] + " " + named
    return said | {"image_id": image_id}, identity.to_numpy(object)


def _clips_shown(found: dict[str, np.ndarray]) -> tuple[dict[str, Any], np.ndarray | None]:
    classes, named = found.pop("stimulus_ids", None), dict(enumerate(CLIP_CLASSES))
    if classes is None:
        return {}, _first(found, CLIP_ID)
    return {"stimulus_class": _text([named.get(number, "") for number in classes.tolist()])}, _first(found, CLIP_ID)


def repeat_number(stimulus: np.ndarray) -> np.ndarray:
    """How many trials before each one showed its stimulus, int64 (trials,)."""
    return pd.Series(stimulus).groupby(stimulus).cumcount().to_numpy()


def frame_rate(folder: SensoriumFolder, usual_hz: float) -> float:
    """`meta/trials/target_fps.npy`, which is the same in all trials; `usual_hz` where it is not there."""
    file = "meta/trials/target_fps.npy"
    if file not in folder.files.files:
        return usual_hz
    rates = np.unique(folder.files.array(file))
    if len(rates) != 1 or rates.dtype.kind not in "iuf" or not rates[0] > 0:
        raise folder.files.wrong(file, ", ".join(map(str, rates[:4])), "one rate in Hz for all trials")
    return float(rates[0])


def _with_further(table: pd.DataFrame, found: dict[str, np.ndarray]) -> pd.DataFrame:
    """The table with further columns; names that mean something else to us get the prefix "source_"."""
    further = {
        f"source_{name}" if name in OURS else name: _text(values) if values.dtype.kind == "U" else values
        for name, values in found.items()
        if values.ndim == 1
    }
    return pd.concat([table, pd.DataFrame(further)], axis=1) if further else table


def _text(values: Any) -> pd.Series:
    return pd.Series([str(value) for value in np.asarray(values).tolist()], dtype="str")
