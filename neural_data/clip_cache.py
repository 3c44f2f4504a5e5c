"""Which trials show the same clip, found once for each mouse and then read from a cache folder.

Comes in: a `SensoriumFolder` with videos. Goes out: its `RepeatedClips`. They are kept in a small JSON file, named by a
fingerprint of the data, in a folder that is never the data's own. A damaged file is made again, and the notes say so.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from neural_data.repeated_clips import Read, RepeatedClips, repeated_clips
from neural_data.sensorium_folder import SensoriumFolder

FORMAT = 1  # raised whenever the rule for clips changes


def known_clips(
    folder: SensoriumFolder, read: Read, frames: np.ndarray, lines: list[np.ndarray], cache: Path
) -> RepeatedClips:
    """As `repeated_clips`, found once and then read from `cache`; `lines`: first line of pixels of each video."""
    fingerprint = _fingerprint(folder, lines)
    file = cache / "repeated_clips" / f"{folder.files.name}-{fingerprint[:16]}.json"
    kept, note = _read_cache(file, fingerprint, len(folder.tiers))
    notes = [note] if note else []
    if kept is None:
        kept = repeated_clips(read, frames, folder.tiers)
        notes += _write_cache(file, fingerprint, kept)
    return RepeatedClips(kept.clip, kept.agreement, [*notes, *_described(kept)])


def _described(found: RepeatedClips) -> list[str]:
    _, counts = np.unique(found.clip[found.clip >= 0], return_counts=True)
    several = counts[counts > 1]
    if not len(several):
        return ["no clip is shown twice, by comparing videos"]
    inexact = found.agreement[found.agreement < 1]
    often = str(several.min()) if several.min() == several.max() else f"{several.min()} to {several.max()}"
    shown = f"{len(several)} of {len(counts)} clips are shown {often} times, by comparing videos"
    if not len(inexact):
        return [shown]
    return [shown, f"{len(inexact)} trials agree with the first of their clip in {inexact.min():.0%} of frames or more"]


def _fingerprint(folder: SensoriumFolder, lines: list[np.ndarray]) -> str:
    """Of what decides the result: tiers, and of each video its size and one pixel over time. Not of where it lies."""
    digest = hashlib.sha256(repr((FORMAT, folder.tiers.tolist())).encode())
    for trial, line in enumerate(lines):
        digest.update(repr((line.dtype.str, folder.files.header(f"data/videos/{trial}.npy").shape)).encode())
        digest.update(np.ascontiguousarray(line).tobytes())
    return digest.hexdigest()


def _checksum(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _read_cache(file: Path, fingerprint: str, n: int) -> tuple[RepeatedClips | None, str]:
    """What is kept, and a note if that is damaged."""
    if not file.exists():
        return None, ""
    try:
        entries = json.loads(file.read_text())
        checksum = entries.pop("checksum")
        sound = checksum == _checksum(entries) and entries["fingerprint"] == fingerprint and len(entries["clip"]) == n
        if sound:
            agreement = [np.nan if share is None else share for share in entries["agreement"]]
            return RepeatedClips(np.array(entries["clip"], np.int64), np.array(agreement, float)), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None, f"{file} was damaged: clips were compared again"


def _write_cache(file: Path, fingerprint: str, found: RepeatedClips) -> list[str]:
    """Written beside and renamed, so that the file is whole or absent; a note where it cannot be written."""
    agreement = [None if np.isnan(share) else share for share in found.agreement.tolist()]
    entries = {"fingerprint": fingerprint, "clip": found.clip.tolist(), "agreement": agreement}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=file.parent, suffix=".unfinished")
        with os.fdopen(handle, "w") as stream:
            json.dump(entries | {"checksum": _checksum(entries)}, stream)
        os.replace(unfinished, file)
    except OSError as error:
        return [f"repeated clips are not kept for next time: {file.parent} cannot be written ({error.strerror})"]
    return []
