"""The images and movies that an Allen session shows, out of its file or beside it.

Comes in: an open session file, or a path. Goes out: an array (images or frames, height, width). Scenes are read into
memory unless they are a file of their own, movies stay on disk.

Two-photon files hold them: NWB 1 as `stimulus/templates/<stimulus>_image_stack/data`, NWB 2 (DANDI 000728) movies as
`<stimulus>/data` and scenes as one image each in `natural_scenes_template`. Neuropixels files do not; the AllenSDK
keeps them beside: `natural_scene_<n>.tiff` in one folder, and `natural_movie_<n>` as an array.
"""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image, UnidentifiedImageError

from neural_data.trial_files import TrialFiles, npy_file

TEMPLATES = "stimulus/templates"
MOVIE, MOVIES = "natural_movie_", ("one", "two", "three")


def is_movie(stimulus: str) -> bool:
    """Whether the presentations of a stimulus are the frames of a movie, one after the other."""
    return stimulus.startswith(MOVIE) and "shuffled" not in stimulus


def movie_name(number: int) -> str:
    """What movie 1, 2, ... is called: natural_movie_one, _two and _three as at Allen, then natural_movie_4, ..."""
    return MOVIE + (MOVIES[number - 1] if number <= len(MOVIES) else str(number))


def movie_order(stimulus: str) -> tuple[int, str]:
    """What to sort the names of movies by, such that they come in the order of their numbers, others after them."""
    number = stimulus.removeprefix(MOVIE)
    if number in MOVIES:
        return MOVIES.index(number) + 1, stimulus
    return (int(number), stimulus) if number.isdigit() else (10**9, stimulus)


def images_of(file: h5py.File, stimulus: str, given: str | Path | None) -> np.ndarray:
    """The images of a stimulus, (images, height, width), uint8 where all values are whole.

    `given`: a `.npy` file or the AllenSDK's folder of TIFFs, in place of what the file holds. Raises ValueError where
    there are none, or they have another shape.
    """
    images = _read_given(Path(given)) if given is not None else _in_file(file, stimulus)
    where = given if given is not None else f"{file.filename}: {TEMPLATES}"
    return _as_uint8(_checked(images, where))


def movie_of(file: h5py.File, stimulus: str, given: str | Path | None) -> Any:
    """The one movie of a stimulus as videos (1, frames, height, width) that are read when asked for.

    `given`: a `.npy` file (frames, height, width), in place of what the file holds. Raises ValueError as above.
    """
    if given is not None:
        return _checked(_read_given(Path(given)), given)[None]
    stack = _checked(_in_file(file, stimulus), f"{file.filename}: {TEMPLATES}")
    if not isinstance(stack, h5py.Dataset):
        return stack[None]
    path, location = file.filename, stack.name
    return TrialFiles(lambda row: h5py.File(path, "r")[location], (1, *stack.shape), stack.dtype)


def _in_file(file: h5py.File, stimulus: str) -> Any:
    places = [f"{TEMPLATES}/{name}" for name in (f"{stimulus}_image_stack", stimulus, f"{stimulus}_template")]
    found = next((file[place] for place in places if place in file), None)
    if isinstance(found, h5py.Group) and "data" in found:
        return found["data"]
    if isinstance(found, h5py.Group):
        return _numbered({name: found[name][()] for name in found if isinstance(found[name], h5py.Dataset)}, found.name)
    raise ValueError(
        f"{file.filename}: {TEMPLATES}: holds no {stimulus}; give stimuli=, a .npy file (images or frames, height, "
        "width) or the AllenSDK's folder of natural_scene_<n>.tiff"
    )


def _read_given(path: Path) -> np.ndarray:
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in (".tif", ".tiff")]
        return _numbered({file.stem: _read_image(file) for file in files}, path)
    if path.suffix != ".npy":
        raise ValueError(f"{path}: is no .npy file and no folder of natural_scene_<n>.tiff")
    return npy_file(path)


def _read_image(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.asarray(image)
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as an image ({' '.join(str(error).split())})") from None


def _numbered(images: dict[str, np.ndarray], where: Any) -> np.ndarray:
    """Images whose names end in 0, 1, ..., stacked in that order."""
    numbers = {re.search(r"\d*$", name).group(): image for name, image in images.items()}
    if not images or set(numbers) != {str(n) for n in range(len(images))}:
        raise ValueError(f"{where}: found {len(images)} images, expected names that end in 0, 1, 2, ... without a gap")
    shapes = {image.shape for image in images.values()}
    if len(shapes) > 1:
        raise ValueError(f"{where}: found images of {', '.join(map(str, sorted(shapes)))}, expected one size")
    return np.stack([numbers[str(n)] for n in range(len(images))])


def _checked(stack: Any, where: Any) -> Any:
    if len(stack.shape) != 3 or not all(stack.shape) or stack.dtype.kind not in "iuf":
        raise ValueError(
            f"{where}: found {stack.dtype} of shape {stack.shape}, expected numbers (images or frames, height, width)"
        )
    return stack


def _as_uint8(stack: Any) -> np.ndarray:
    """The images as they are if they are uint8, else in memory, as uint8 if all are whole numbers; one by one."""
    if stack.dtype == np.uint8:
        return stack if isinstance(stack, np.ndarray) else stack[:]
    images = np.asarray(stack[:])
    whole = all((image == np.clip(np.rint(image), 0, 255)).all() for image in images)
    return images.astype(np.uint8) if whole else images
