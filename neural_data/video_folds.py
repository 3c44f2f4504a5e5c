"""Folds of trials such that no clip is in two of them, found from what the clips look like.

Comes in: a recording of videos or images. Goes out: the fold of each trial, int64 (trials,). It is that of DwiseNeuro
(lRomul/sensorium, src/phash.py, 2023): five frames of each video are hashed perceptually, the five hashes are combined
by exclusive or, and the fold is what remains of that number modulo 7. Clips that look the same have the same hash, in
whatever mouse, so that a clip which several mice saw is left out of training for all of them at once.

The hash of a picture is `imagehash.phash` (https://github.com/JohannesBuchner/imagehash): grey levels cut to whole
ones, resized to 32 x 32 (Lanczos), a cosine transform along both axes, and one bit for each of the 8 x 8 lowest
frequencies, 1 where it is above their median, row by row, the first bit being the highest.

Hashes are kept in the user's cache folder, because of the published layout each costs reading a whole video, and
DwiseNeuro makes them again whenever a data set is opened. Repeats of a clip have the hash of the one video that the
recording has of it; grey levels that were rounded (`prepared.py`) may have another than those that are cut.
"""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import scipy.fft
from PIL import Image

from neural_data.recording import Recording

FORMAT = 1  # raised whenever the rule for hashes changes
FRAMES = 5
SIDE, LOWEST = 32, 8
# Stimuli of which one pixel over time tells whether a recording has changed.
SAMPLED = 8


def video_folds(recording: Recording, folds: int = 7, cache: str | Path | None = None) -> np.ndarray:
    """The fold, 0 to `folds` - 1, of each trial, int64 (trials,).

    `cache`: folder in which hashes are kept, by default that of murine in the user's cache folder; those of recordings
    without a source are not kept. Raises ValueError for fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"folds: found {folds}, expected 2 or more")
    hashes = video_hashes(recording, cache)
    return (hashes % np.uint64(folds)).astype(np.int64)[recording.trials["stimulus"].to_numpy()]


def video_hashes(recording: Recording, cache: str | Path | None = None) -> np.ndarray:
    """The hash of each stimulus, uint64 (stimuli,), 0 for one that no trial shows."""
    lengths = stimulus_frames(recording)
    if not recording.source:
        return _computed(recording, lengths)
    if cache is None:
        import pooch

        cache = pooch.os_cache("murine")
    file = Path(cache) / "video_hashes" / f"{recording.name}-{_fingerprint(recording, lengths)[:16]}.npy"
    kept = _kept(file, len(lengths))
    if kept is None:
        kept = _computed(recording, lengths)
        _keep(file, kept)
    return kept


def picture_hash(picture: np.ndarray) -> int:
    """The perceptual hash, 64 bits, of a grey picture uint8 (height, width)."""
    small = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    frequencies = scipy.fft.dctn(np.asarray(small, float), type=2)[:LOWEST, :LOWEST]
    bits = frequencies > np.median(frequencies)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def hashed_frames(length: int) -> np.ndarray:
    """Which frames of a video are hashed: five, in the middle of each fifth; all of a video of five or fewer."""
    if length <= FRAMES:
        return np.arange(length)
    step = length // FRAMES
    return step // 2 + step * np.arange(FRAMES)


def stimulus_frames(recording: Recording) -> np.ndarray:
    """Valid frames of each stimulus, int64 (stimuli,): those of the longest trial that shows it, 0 where none does.

    The video's own length counts where the recording has it, not that of what was recorded with it.
    """
    trials, longest = recording.trials, recording.stimuli.shape[1] if recording.video else 1
    of_trials = np.full(len(trials), longest)
    if recording.video and recording.dynamic:
        of_trials = trials["videos_frames"].to_numpy() if "videos_frames" in trials else recording.frames
    frames = np.zeros(len(recording.stimuli), np.int64)
    np.maximum.at(frames, trials["stimulus"].to_numpy(), np.minimum(of_trials, longest))
    return frames


def _computed(recording: Recording, lengths: np.ndarray) -> np.ndarray:
    hashes = np.zeros(len(lengths), np.uint64)
    for stimulus in np.flatnonzero(lengths):
        for frame in hashed_frames(int(lengths[stimulus])):
            hashes[stimulus] ^= np.uint64(picture_hash(_picture(recording, int(stimulus), int(frame))))
    return hashes


def _picture(recording: Recording, stimulus: int, frame: int) -> np.ndarray:
    """uint8 (height, width); of a colour picture the mean over its channels."""
    picture = np.asarray(recording.stimuli[stimulus, frame] if recording.video else recording.stimuli[stimulus])
    return (picture.mean(axis=-1) if picture.ndim == 3 else picture).astype(np.uint8)


def _fingerprint(recording: Recording, lengths: np.ndarray) -> str:
    """Of where a recording is from and, of a few stimuli, one pixel over time."""
    digest = hashlib.sha256(repr((FORMAT, str(recording.source), recording.stimuli.shape)).encode())
    digest.update(recording.trials[["stimulus", "tier"]].to_csv().encode() + lengths.tobytes())
    shown = np.flatnonzero(lengths)
    for stimulus in shown[:: max(1, len(shown) // SAMPLED)].tolist():
        values = recording.stimuli[stimulus]
        pixel = values[: lengths[stimulus], 0, 0] if recording.video else values[0]
        digest.update(np.ascontiguousarray(pixel, np.float32).tobytes())
    return digest.hexdigest()


def _kept(file: Path, stimuli: int) -> np.ndarray | None:
    """Hashes that were kept; None where there are none, or the file is damaged."""
    try:
        hashes = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return hashes if hashes.dtype == np.uint64 and hashes.shape == (stimuli,) else None


def _keep(file: Path, hashes: np.ndarray) -> None:
    """Written beside and renamed, so that the file is whole or absent; a cache that cannot be written is done without.

    Nothing else depends on it but time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=file.parent, suffix=".unfinished")
        with os.fdopen(handle, "wb") as stream:
            np.save(stream, hashes, allow_pickle=False)
        os.replace(unfinished, file)
    except OSError:
        return
