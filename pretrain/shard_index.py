"""The index of a folder of shards: read, and checked against the shards.

What comes in: a local folder or a URL. What goes out: the index as a dictionary, or one line for each shard that is not
as the index says.

`index.json` has `format`, `samples`, `kind` (images or clips), `labels` that occur, `classes` (names or null), `depth`,
`signals` (channels by name), `frame_rates_hz` of clips, `frames_left_out`, `unreadable`, `plan` (what the shards were
made of), and `shards`: `file`, `samples`, `bytes`, `sha256` of each, in the order of the global indices. Older shards
have no `depth`, or no `kind`, `signals`, `frame_rates_hz` and `frames_left_out`: they hold images alone.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pretrain.progress import progress
from pretrain.shard_folder import LocalFolder, RemoteFolder, open_folder
from pretrain.storage import is_url

INDEX = "index.json"
JOURNAL = "journal"
FORMAT = "murine-shards-1"
# Clips and signals; a version of murine from before them refuses these shards by the format.
FORMAT_OF_CLIPS = "murine-shards-2"
CHUNK_BYTES = 2**22


def read_index(folder: Path | str) -> dict:
    """The index of a local or remote folder of shards; one line where there is none or it is not ours."""
    place = open_folder(folder)
    if place.size(INDEX) is None:
        raise no_index(folder, place)
    try:
        index = json.loads(place.read(INDEX))
    except ValueError as error:
        raise ValueError(f"{place}/{INDEX} is not JSON: {error}") from error
    if not isinstance(index, dict) or index.get("format") not in (FORMAT, FORMAT_OF_CLIPS):
        raise ValueError(f"{place}/{INDEX} has no format {FORMAT!r}; it was not written by `murine shards`")
    return index


def no_index(folder: Path | str, place: LocalFolder | RemoteFolder) -> FileNotFoundError:
    if not is_url(folder) and not place.exists():
        return FileNotFoundError(f"folder of shards {str(folder)!r} does not exist; make it with `murine shards`")
    interrupted = place.size(f"{JOURNAL}/plan.json") is not None
    reason = "their writing was interrupted; run it again" if interrupted else "make shards with `murine shards`"
    return FileNotFoundError(f"no {INDEX} in {str(folder)!r}: {reason}")


def verify_shards(folder: Path | str) -> list[str]:
    """Check that every shard of the index is there with its size and checksum; returns one line per problem."""
    place, index = open_folder(folder), read_index(folder)
    problems = list(unlisted_shards(place, index))
    with progress("verify", len(index["shards"])) as meter:
        for entry in index["shards"]:
            problems += shard_problems(place, entry)
            meter.advance()
    return problems


def unlisted_shards(folder: LocalFolder | RemoteFolder, index: dict) -> Iterator[str]:
    listed = {entry["file"] for entry in index["shards"]}
    for name in folder.names():
        if name.endswith(".tar") and name not in listed:
            yield f"{name}: not in the index"


def shard_problems(folder: LocalFolder | RemoteFolder, entry: dict) -> list[str]:
    name, size = entry["file"], folder.size(entry["file"])
    if size is None:
        return [f"{name}: missing"]
    if size != entry["bytes"]:
        return [f"{name}: {size:,} bytes, the index says {entry['bytes']:,}"]
    digest = hashlib.sha256()
    with folder.open(name) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != entry["sha256"]:
        return [f"{name}: SHA-256 {digest.hexdigest()[:12]}…, the index says {entry['sha256'][:12]}…"]
    return []
