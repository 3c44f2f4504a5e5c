"""Recordings of any format, found by looking at what lies at a path.

Comes in: a file or folder. Goes out: its recordings, each from the reader of its format. A folder that is no recording
itself but holds some gives all of them, in the order of their names.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path

from neural_data.recording import Recording
from neural_data.zarr_arrays import is_zarr

ARRAY_FILES = (".npz", ".mat", ".h5", ".hdf5", ".zarr")
FORMATS = {
    "arrays": "your own arrays: .npz, .mat, .h5, .zarr, or a folder of .npy files with images and responses",
    "sensorium": "a folder or .zip of Sensorium 2022, 2023 or Franke 2022, with data/ and meta/",
    "experanto": "a folder of devices with screen/meta.yml",
    "prepared": "a folder that `murine data prepare` has written, with prepared.json",
    "nwb": "a session of the Allen Brain Observatory, .nwb",
}


def read_recordings(path: str | Path) -> list[Recording]:
    """The recordings at a path; large arrays stay on disk.

    Raises FileNotFoundError where there is nothing, ValueError where it is of no format that is known, or where a
    reader finds something wrong: one line with the file, what was found and what was expected.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    name = format_of(path)
    if name is not None:
        return [reader(name)(path)]
    inside = [child for child in sorted(path.iterdir()) if format_of(child)] if path.is_dir() else []
    if not inside:
        raise ValueError(f"{path}: {reason_of(path)}; expected {'; or '.join(FORMATS.values())}")
    return [reader(format_of(child))(child) for child in inside]


def format_of(path: Path) -> str | None:
    """The format of a file or folder, by what is in it; None where it is none that is known."""
    if path.suffix == ".nwb" and path.is_file():
        return "nwb"
    if path.suffix == ".zip" and path.is_file() and is_sensorium_zip(path):
        return "sensorium"
    if path.suffix in ARRAY_FILES or is_zarr(path):
        return "arrays"
    if not path.is_dir():
        return None
    if (path / "prepared.json").is_file():
        return "prepared"
    if any((path / "data" / kind).is_dir() for kind in ("images", "videos")):
        return "sensorium"
    if (path / "screen" / "meta.yml").is_file():
        return "experanto"
    return "arrays" if any(path.glob("*.npy")) else None


def is_sensorium_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise ValueError(f"{path}: is no zip file that can be read; was its download cut short?") from None
    return any(f"data/{kind}/" in name for name in names for kind in ("images", "videos"))


def reason_of(path: Path) -> str:
    if path.suffix in (".pkl", ".pickle"):
        return f"is a pickle, which could run code; convert it once: murine data convert {path} out=<folder>"
    return "is empty" if path.is_dir() and not any(path.iterdir()) else "is no recording of a known format"


def reader(name: str) -> Callable[[Path], Recording]:
    """The reader of a format; imported here, so that only what is needed is."""
    if name == "nwb":
        from neural_data.allen import read_nwb as read
    elif name == "sensorium":
        from neural_data.sensorium import read_sensorium as read
    elif name == "prepared":
        from neural_data.prepared import read_prepared as read
    elif name == "experanto":
        from neural_data.experanto import read_experanto as read
    else:
        from neural_data.arrays import read_arrays as read
    return read
