"""Images and videos that are files: of a folder, of class folders, or of archives.

What comes in: a listing of files by name, and another folder of depth images where there are any. What goes out: a
`Source` of the images, or of clips of the videos, each with the label of its class folder, of its WebDataset sample, or
of a list of labels, with its depth image, and with the signals that lie beside it under its name.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pretrain.archive_listing import Listing, member_labels, sample_key
from pretrain.config import ShardsConfig
from pretrain.items import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Item,
    Source,
    StoredFile,
    byte_count,
    is_hidden,
    listing_fingerprint,
    shuffled,
    suffix_of,
    without_suffix,
)
from pretrain.label_list import GROUND_TRUTH, number_labels, read_label_list
from pretrain.progress import say
from pretrain.remote_video import watched, with_watched_clips
from pretrain.signals import SignalFile, paired_signals
from pretrain.storage import RemoteFile, list_files, locate, url_name
from pretrain.video_source import video_items

KINDS = {"images": IMAGE_SUFFIXES, "clips": VIDEO_SUFFIXES}


def files_source(listing: Listing, config: ShardsConfig, place: str, skipped: int = 0) -> Source:
    """Images, or clips where there are no images, of a listing.

    Those of a flat folder have no labels; of class folders, the sorted names are the labels 0, 1, ... The first
    `skipped` folders of each name are no classes. Files of other kinds are left alone.
    """
    kind, files = media(listing, place)
    labels = find_labels(listing, files, config, skipped)
    files = labels.files
    signals = completed(paired_signals(listing, files) if has_arrays(listing) else {}, files)
    names = tuple(sorted({name for paired in signals.values() for name in paired}))
    extra = labels.fingerprint + signals_fingerprint(signals)
    if kind == "images":
        if config.clip_frames or config.format == "encoded":
            raise ValueError(f"clip_frames and format=encoded are for videos; {place!r} holds images")
        if config.frame_rate_hz is not None:
            raise ValueError(f"frame_rate_hz is for .npy stacks of clips; {place!r} holds images")
        items = [
            Item(name, file, labels.of.get(name), signals=signals.get(without_suffix(name), {}))
            for name, file in files.items()
        ]
        order = shuffled(items, config)
        return Source(len(items), order, listing_fingerprint(items) + extra, labels.classes, signals=names)
    if config.frame_rate_hz is not None:
        raise ValueError("frame_rate_hz is for .npy stacks; videos say their own frame rate")
    items, left_out = video_items(watched(files), labels.of, signals, config.clip_frames)
    items = with_watched_clips(items)
    if not items:
        raise ValueError(f"no video in {place!r} has clip_frames={config.clip_frames} frames; choose fewer")
    order = shuffled(items, config)
    fingerprint = "\n".join(f"{item.name}:{byte_count(item.clip.file)}" for item in items) + extra
    return Source(len(items), order, fingerprint, labels.classes, "clips", names, left_out)


def media(listing: Listing, place: str) -> tuple[str, dict[str, StoredFile]]:
    """The kind of items, and the images or videos of a listing; raises one line where it has neither."""
    counts = Counter(kind for name in listing for kind, suffixes in KINDS.items() if suffix_of(name) in suffixes)
    for kind, suffixes in KINDS.items():
        files = {name: file for name, file in listing.items() if suffix_of(name) in suffixes and is_there(file)}
        if files:
            if kind == "images" and counts["clips"]:
                say(f"{place} holds images; its {counts['clips']:,} videos are left alone")
            return kind, files
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    raise ValueError(
        f"no images in {place!r}, neither in it nor in class folders below it ({suffixes}); and nothing else to make "
        "shards of: videos, .parquet, .tar or .zip files, .npy stacks"
    )


def is_there(file: StoredFile) -> bool:
    """Links that lead nowhere, and what is no file, are left alone."""
    return not isinstance(file, Path) or file.is_file()


def has_arrays(listing: Listing) -> bool:
    return any(suffix_of(name) in (".npy", ".npz") for name in listing)


@dataclass(frozen=True)
class Labels:
    """The files that count, the label of each by its name, and the classes' names, where there are any."""

    files: dict[str, StoredFile]
    of: Mapping[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    fingerprint: str = ""


def find_labels(listing: Listing, files: dict[str, StoredFile], config: ShardsConfig, skipped: int) -> Labels:
    """Labels from a list, from WebDataset's samples or from class folders, whichever there is first."""
    if config.labels is not None:
        given = given_labels(locate(config.labels), files)
        return numbered(files, given, f"in {config.labels}")
    of_samples = member_labels(listing)
    if of_samples:
        files = {name: file for name, file in files.items() if "." not in sample_rest(name)}
        missing = [name for name in files if sample_key(name) not in of_samples]
        if missing:
            raise ValueError(f"{len(missing):,} of {len(files):,} samples have no .cls or .json; first: {missing[0]!r}")
        return numbered(files, {name: of_samples[sample_key(name)] for name in files}, "in .cls or .json files")
    flat = {name: file for name, file in files.items() if name.count("/") == skipped}
    if flat:
        if len(flat) < len(files):
            say(f"the files lie flat; {len(files) - len(flat):,} others in folders below are left alone")
        return Labels(flat)
    folders = {name: name.split("/")[skipped] for name in files}
    classes = tuple(sorted(set(folders.values())))
    number = {folder: place for place, folder in enumerate(classes)}
    return Labels(files, {name: number[folder] for name, folder in folders.items()}, classes)


def given_labels(place: Path | str, names: Collection[str]) -> dict[str, int | str]:
    """The label of each image by a list at a path or URL."""
    if isinstance(place, Path):
        return read_label_list(place, names)
    if url_name(place) == GROUND_TRUTH:
        raise ValueError(f"labels {place!r} need the meta.mat beside them; download both first")
    with tempfile.TemporaryDirectory(prefix="murine-") as folder:
        path = Path(folder) / url_name(place)
        path.write_bytes(RemoteFile(place, 0).read_bytes())
        return read_label_list(path, names)


def numbered(files: dict[str, StoredFile], given: Mapping[str, int | str], where: str) -> Labels:
    numbers, classes = number_labels(given.values(), where)
    labels = {name: numbers[label] for name, label in given.items()}
    listed = "\n".join(f"{name}:{label}" for name, label in sorted(labels.items()))
    return Labels(files, labels, classes, f"\nlabels {hashlib.sha256(listed.encode()).hexdigest()}")


def sample_rest(name: str) -> str:
    """A file's extension in WebDataset's sense: all behind the first dot of its name."""
    return name.rsplit("/", 1)[-1].partition(".")[2]


def completed(
    signals: Mapping[str, Mapping[str, SignalFile]], files: Collection[str]
) -> dict[str, dict[str, SignalFile | None]]:
    """Signals of each file; None for one that it lacks and others have, so that it counts as unreadable."""
    names = sorted({name for paired in signals.values() for name in paired})
    if not names:
        return {}
    stems = (without_suffix(name) for name in files)
    return {stem: {name: signals.get(stem, {}).get(name) for name in names} for stem in stems}


def signals_fingerprint(signals: Mapping[str, Mapping[str, SignalFile | None]]) -> str:
    return "".join(
        f"\n{stem}.{name}:{byte_count(signal.file)}"
        for stem, paired in sorted(signals.items())
        for name, signal in paired.items()
        if signal
    )


def with_depth(source: Source, images: str, folder: Path | str) -> Source:
    """A folder's images with those of a depth folder that lie at the same place under the same name.

    Suffixes may differ. An image without a partner keeps none, and counts as unreadable when shards are written.
    """
    found = depth_images(folder)
    items = [replace(item, depth=found.get(without_suffix(item.name))) for item in source.items(0)]
    paired = [item for item in items if item.depth is not None]
    if not paired:
        raise ValueError(
            f"no depth image in {str(folder)!r} is named as an image of {images!r}, such as "
            f"{without_suffix(items[0].name)!r}; the first depth image is {min(found)!r}"
        )
    sizes = "\n".join(f"{item.name}:{byte_count(item.depth)}" for item in paired)
    fingerprint = f"{source.fingerprint}\ndepth\n{sizes}"
    return replace(source, items=lambda start: iter(items[start:]), fingerprint=fingerprint)


def depth_images(folder: Path | str) -> dict[str, StoredFile]:
    """Images below a folder or URL by their place in it, without suffix."""
    if isinstance(folder, Path) and not folder.is_dir():
        raise FileNotFoundError(
            f"depth {str(folder)!r} does not exist (a folder of depth images, or `simulated` with source=simulated)"
        )
    found: dict[str, StoredFile] = {}
    for name, file in list_files(folder).items():
        if suffix_of(name) not in IMAGE_SUFFIXES or is_hidden(name) or not is_there(file):
            continue
        other = found.setdefault(without_suffix(name), file)
        if other is not file:
            raise ValueError(f"depth images {other.name!r} and {name!r} in {str(folder)!r} have one name; keep one")
    if not found:
        raise ValueError(f"no images in the depth folder {str(folder)!r} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return found
