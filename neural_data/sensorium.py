"""Recordings in the layout of the Sensorium competitions: images of 2022, in colour of Franke et al., videos of 2023.

Comes in: a mouse's folder or zip, as it was published. Goes out: a `Recording` of one animal, whose large arrays stay
on disk. `sensorium_folder.py` has the layout, `trial_length.py` and `withheld_responses.py` what had to be decided.
"""

from pathlib import Path
from typing import Any

from neural_data.recording import Recording
from neural_data.sensorium_folder import SensoriumFolder, find_mice
from neural_data.sensorium_static import read_static
from neural_data.sensorium_video import read_video
from neural_data.zip_folder import NpyFolder


def read_sensorium(
    path: str | Path,
    cache: str | Path | None = None,
    trial_length: str = "all",
    max_frames: int | None = None,
    share_stimuli: bool = True,
) -> Recording:
    """The recording of one mouse, images or videos by what the folder holds.

    The animal is named animal-session-scan, the recording as the folder is. Trials are in the order of the files, and
    further columns of theirs are `withheld`, `trial_id` (text), `image_id`, `stimulus_class`, and of videos `frames`
    and the valid frames of each modality (`videos_frames`, `responses_frames`, ...). Opening reads headers, tables and
    of videos the first line of each file; a zip is read where it lies; nothing is written beside the data.

    `share_stimuli`: repeats of an image, or of a clip, are one stimulus with the file of one of them (of clips, of the
    longest; they are the same by the rule in `repeated_clips.py`, not in each pixel); False gives each trial a stimulus
    of its own, exactly as its file is. Of videos, `trial_length` is a rule of `trial_length.py` ("all", "statistics",
    "video" or "responses"), `max_frames` cuts trials (DwiseNeuro and ViV1T: 300), and which trials show the same clip
    is kept in the folder `cache`, by default the user's cache folder for murine.

    Raises FileNotFoundError, or ValueError with one line: the folder, the file, what was found, what was expected.
    """
    mice = find_mice(Path(path))
    if len(mice) > 1:
        names = ", ".join(mouse.name for mouse in mice[:4])
        raise ValueError(f"{path}: found {len(mice)} mice ({names}{', ...' * (len(mice) > 4)}), expected one")
    return _read(mice[0], cache, trial_length, max_frames, share_stimuli)


def read_sensorium_all(path: str | Path, **options: Any) -> list[Recording]:
    """The recordings of all mice in a folder that holds their folders or zips, by name; `options` of `read_sensorium`.

    Raises as `read_sensorium` does; a mouse that is there as folder and as zip is read from the folder."""
    defaults = {"cache": None, "trial_length": "all", "max_frames": None, "share_stimuli": True}
    return [_read(mouse, **(defaults | options)) for mouse in find_mice(Path(path))]


def _read(
    mouse: NpyFolder, cache: str | Path | None, trial_length: str, max_frames: int | None, share_stimuli: bool
) -> Recording:
    folder = SensoriumFolder(mouse)
    if folder.kind == "images":
        return read_static(folder, share_stimuli)
    if cache is None:
        import pooch

        cache = pooch.os_cache("murine")
    return read_video(folder, trial_length, max_frames, share_stimuli, Path(cache))
