"""One mouse in the layout that the Sensorium competitions use: which files there are, and what their headers say.

Comes in: a folder or a zip of Sensorium 2022 (Willeke et al., arXiv 2206.08666), of Franke et al. (Nature 610:128,
2022) or of Sensorium 2023 (Turishcheva et al., arXiv 2305.19654). Goes out: a `SensoriumFolder`. The layout:

    data/images/<i>.npy  or  data/videos/<i>.npy          trial i = 0, 1, ...; row i of every array in meta/trials
    data/responses, data/behavior, data/pupil_center      as many files each
    meta/trials/tiers.npy                                 (trials,) text; further arrays (trials,), each optional
    meta/neurons/*.npy                                    (neurons,), cell_motor_coordinates (neurons, 3), each optional
    meta/statistics/<images|videos|...>/<all|stimulus_frame>/<mean|std|median|min|max>.npy, optional

Nothing is ever written into it: no config.json, no cache.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neural_data.zip_folder import NpyFolder, ZipFolder, disk_folder, zip_members

STIMULI = ("images", "videos")
TIERS = "meta/trials/tiers.npy"
STATISTICS = "meta/statistics/"
# Names that mean something to us: a damaged one is an error, not a column less.
NEURON_NAMES = ("unit_ids", "cell_motor_coordinates", "area", "layer")
# Exports keep the same thing under one of these; the first that is there counts.
IMAGE_ID = ("image_id", "colorframeprojector_image_id", "frame_image_id")
IMAGE_CLASS = ("image_class", "colorframeprojector_image_class", "frame_image_class")
# `condition_hash` comes with exports of later years, `video_ids` where ViV1T's were copied beside the tiers.
CLIP_ID = ("condition_hash", "video_ids")
TRIAL_NAMES = ("trial_idx", "stimulus_ids", "target_fps", *IMAGE_ID, *IMAGE_CLASS, *CLIP_ID)


@dataclass(frozen=True, eq=False)
class TrialPart:
    """What was shown or recorded in each trial, such as the responses: a file per trial, "" where there is none."""

    folder: NpyFolder
    name: str
    files: tuple[str, ...]

    @property
    def present(self) -> np.ndarray:
        """bool (trials,): whether the trial has a file."""
        return np.array([bool(file) for file in self.files], bool)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the first trial that has a file."""
        return self.folder.header(next(filter(None, self.files))).shape

    def read(self, trial: int, scattered: bool = False) -> np.ndarray:
        """The array of a trial as it is on disk; see `NpyFolder.array`."""
        return self.folder.array(self.files[trial], scattered)

    def check_shapes(self, expected: str, fits: bool, time_last: bool) -> None:
        """Raises ValueError where the first shape is not as `expected` (`fits` says so), where another file has a
        shape of its own, but for a last axis of time, or where there is no number in a file."""
        first = self.shape
        for file in filter(None, self.files):
            header = self.folder.header(file)
            shape = header.shape[:-1] if time_last else header.shape
            if not fits or shape != (first[:-1] if time_last else first):
                wanted = expected if not fits else f"{expected} = {first}, as in the first trial"
                raise self.folder.wrong(file, f"shape {header.shape}", wanted)
            if header.dtype.kind not in "biuf" or not header.nbytes:
                raise self.folder.wrong(file, f"{header.dtype} of shape {header.shape}", "numbers")


class Statistics(Mapping[str, np.ndarray]):
    """The source's own statistics by name, such as "responses/all/std", read when they are asked for."""

    def __init__(self, folder: NpyFolder) -> None:
        self._folder = folder
        names = (file.removeprefix(STATISTICS) for file in folder.files if file.startswith(STATISTICS))
        self._names = tuple(name.removesuffix(".npy") for name in names)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._folder.array(f"{STATISTICS}{name}.npy")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SensoriumFolder:
    """One mouse: `kind` is "images" or "videos", `tiers` text (trials,), `notes` what had to be decided so far."""

    def __init__(self, files: NpyFolder) -> None:
        self.files = files
        self.notes: list[str] = []
        self.kind = self._kind()
        self.tiers = self._tiers()
        self.statistics = Statistics(files)

    def _kind(self) -> str:
        kinds = [kind for kind in STIMULI if any(file.startswith(f"data/{kind}/") for file in self.files.files)]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "neither images nor videos"
            raise self.files.wrong("data", found, "data/images/<trial>.npy or data/videos/<trial>.npy")
        return kinds[0]

    def _tiers(self) -> np.ndarray:
        if TIERS not in self.files.files:
            raise self.files.wrong(TIERS, "no such file", "the tier of each trial, as text")
        tiers = self.files.array(TIERS)
        if tiers.ndim != 1 or tiers.dtype.kind not in "SU" or not len(tiers):
            raise self.files.wrong(TIERS, f"{tiers.dtype} of shape {tiers.shape}", "text (trials,), one tier each")
        unusable = int((tiers.astype(str) == "none").sum())
        if unusable:
            self.notes.append(f'{unusable} trials are of tier "none": the source calls them unusable')
        return tiers.astype(str)

    def part(self, name: str) -> TrialPart | None:
        """The files of a modality, None if there are none. Raises ValueError for a file without a trial, and, but for
        responses, for a trial without a file."""
        below, n = f"data/{name}/", len(self.tiers)
        names = [file[len(below) : -4] for file in self.files.files if file.startswith(below)]
        odd = [stem for stem in names if not (stem.isascii() and stem.isdecimal() and str(int(stem)) == stem)]
        if odd:
            self.notes.append(f"passed over {len(odd)} files of {below} whose names are no trial, such as {odd[0]}.npy")
        numbers = {int(stem) for stem in set(names) - set(odd)}
        if not numbers:
            if name != "responses":
                self.notes.append(f"no {name}")
            return None
        expected = f"{n} files, one per trial of {TIERS}"
        if max(numbers) >= n:
            raise self.files.wrong(f"{below}{max(numbers)}.npy", f"{len(numbers)} files in {below}", expected)
        if name != "responses" and len(numbers) < n:
            absent = min(set(range(n)) - numbers)
            raise self.files.wrong(f"{below}{absent}.npy", f"no such file ({len(numbers)} are there)", expected)
        return TrialPart(self.files, name, tuple(f"{below}{i}.npy" if i in numbers else "" for i in range(n)))

    def unless_zero(self, part: TrialPart | None) -> TrialPart | None:
        """None, with a note, where a modality is zero in all trials: the behavior of mouse S0 of 2022, which is
        withheld."""
        if part is None:
            return None
        sample = range(0, len(part.files), max(1, len(part.files) // 8))
        if all(all_zero(part.read(trial)) for rows in (sample, range(len(part.files))) for trial in rows):
            self.notes.append(f"{part.name} holds nothing but zeros in all trials: taken as absent")
            return None
        return part

    def table(self, group: str, length: int) -> dict[str, np.ndarray]:
        """The arrays in `meta/<group>` that have one entry for each trial or neuron, by name; bytes become text.

        Others are passed over, and the notes say so; of those that mean something here a wrong one is a ValueError."""
        below, columns = f"meta/{group}/", {}
        for file in self.files.files:
            name = file.removeprefix(below).removesuffix(".npy")
            if not file.startswith(below) or "/" in name or file == TIERS:
                continue
            try:
                columns[name] = self._column(file, length)
            except ValueError as error:
                if name in NEURON_NAMES + TRIAL_NAMES:
                    raise
                self.notes.append(f"passed over {str(error).removeprefix(f'{self.files.path}: ')}")
        return columns

    def _column(self, file: str, length: int) -> np.ndarray:
        values = self.files.array(file)
        if values.shape[:1] != (length,):
            one = "trial" if file.startswith("meta/trials/") else "neuron"
            raise self.files.wrong(file, f"shape {values.shape}", f"{length} entries, one per {one}")
        return values.astype(str) if values.dtype.kind == "S" else values


def all_zero(values: np.ndarray) -> bool:
    """Whether there is no number but zero; NaN is none. Most arrays are told from their beginning."""
    return not (np.abs(values[:64]) > 0).any() and not (np.abs(values) > 0).any()


def find_mice(path: Path) -> list[NpyFolder]:
    """The mice that a path holds, by name: a mouse's folder, one that holds folders or zips of mice, or a zip.

    A mouse that is there as a folder and as a zip is given once, as the folder. Raises FileNotFoundError or ValueError
    where there is none."""
    if path.is_dir():
        found = _mice_below(path)
    elif path.is_file():
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path}: found a file that is no zip, expected a folder or a zip of a mouse")
        found = _mice_in_zip(path)
    else:
        raise FileNotFoundError(f"{path}: no such folder or zip")
    if not found:
        raise ValueError(f"{path}: found no mouse, expected data/images or data/videos, or folders or zips with these")
    return found


def _mice_below(folder: Path) -> list[NpyFolder]:
    if _is_mouse(folder):
        return [disk_folder(folder, ("data", "meta"))]
    mice: dict[str, NpyFolder] = {}
    children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    for child in filter(Path.is_dir, children):
        # Some programs unpack x.zip, which holds the folder x, into a folder x.
        inner = child if _is_mouse(child) else child / child.name
        if _is_mouse(inner):
            mice[child.name] = disk_folder(inner, ("data", "meta"))
    for child in children:
        if child.suffix == ".zip" and child.stem not in mice and zipfile.is_zipfile(child):
            mice |= {mouse.name: mouse for mouse in _mice_in_zip(child) if mouse.name not in mice}
    return [mice[name] for name in sorted(mice)]


def _is_mouse(folder: Path) -> bool:
    return any((folder / "data" / kind).is_dir() for kind in STIMULI)


def _mice_in_zip(archive: Path) -> list[NpyFolder]:
    members = zip_members(archive)
    found = (re.match(rf"(|.*?/)data/(?:{'|'.join(STIMULI)})/", name) for name in members)
    return [ZipFolder(archive, root, members) for root in sorted({match[1] for match in found if match})]
