"""Allen Visual Coding recordings, whichever way they came.

Comes in: a session's `.nwb` file, Neuropixels or two-photon; several of them; or the folder that
`allen_packaged.convert_packaged` makes of mouse-vision's packaged `.pkl`. Goes out: a `Recording`.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py

from neural_data.allen_neuropixels import INTERVALS, read_neuropixels
from neural_data.allen_two_photon import read_two_photon
from neural_data.arrays import read_arrays
from neural_data.merge_sessions import merge_sessions
from neural_data.nwb_tables import open_nwb
from neural_data.recording import Recording
from neural_data.stimulus_templates import is_movie, movie_order
from neural_data.two_photon_session import OPHYS, PIPELINE


def read_allen(path: str | Path, **options: Any) -> Recording:
    """The recording at a path: a converted folder, or a session's file with the options of `read_nwb`.

    Raises FileNotFoundError, or ValueError naming the file, the field, what was found and what was expected.
    """
    path = Path(path)
    if path.is_dir():
        if options:
            raise ValueError(f"{path}: is a converted folder, which takes no {', '.join(options)}")
        return read_arrays(path)
    if path.suffix in (".pkl", ".pickle"):
        raise ValueError(f"{path}: is a pickle; convert it once: murine data convert {path} out=<folder>")
    return read_nwb(path, **options)


def read_nwb(path: str | Path, stimulus: str | None = None, **options: Any) -> Recording:
    """The recording of one session; `options` are those of `read_neuropixels` or `read_two_photon`, by what it is.

    `stimulus`: None for natural scenes, or, in a session that shows none, its first natural movie. Raises
    FileNotFoundError, or ValueError in one line, also for an option that this kind of session does not have.
    """
    with open_nwb(path) as file:
        if "units/spike_times" in file:
            read = read_neuropixels
        elif PIPELINE in file or OPHYS in file:
            read = read_two_photon
        else:
            raise ValueError(
                f"{path}: holds neither units/spike_times (Neuropixels) nor {PIPELINE} or {OPHYS} (two-photon)"
            )
        chosen, others = (stimulus, []) if stimulus else _first_stimulus(file)
    known = [name for name in inspect.signature(read).parameters if name not in ("path", "stimulus")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{path}: {read.__name__} has no option {unknown[0]!r}; options are {', '.join(known)}")
    recording = read(path, chosen, **options)
    if not others:
        return recording
    named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    note = f"{chosen} was read; the session shows {len(others)} more movies: {named}"
    return dataclasses.replace(recording, notes=(*recording.notes, note))


def _first_stimulus(file: h5py.File) -> tuple[str, list[str]]:
    """Natural scenes, if the session shows them or no movie, else its first movie, and the other movies."""
    intervals = [name.removesuffix("_presentations") for name in file.get(INTERVALS, ())]
    shown = {*intervals, *(name.removesuffix("_stimulus") for name in file.get("stimulus/presentation", ()))}
    movies = sorted((name for name in shown if is_movie(name)), key=movie_order)
    return ("natural_scenes", []) if "natural_scenes" in shown or not movies else (movies[0], movies[1:])


def read_sessions(
    paths: Sequence[str | Path], name: str, stimulus: str = "natural_scenes", **options: Any
) -> Recording:
    """Several sessions of one stimulus as one recording (`merge_sessions`); `options` as in `read_nwb`."""
    return merge_sessions((read_nwb(path, stimulus, **options) for path in paths), name)
