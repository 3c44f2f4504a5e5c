"""Where images and clips come from, read lazily and in a fixed order.

What comes in: a path or a URL. What goes out: a `Source`, whose `items(start)` yields each image with its name, label,
depth image and signals, as encoded bytes, as a file, or as an array. What kind of source it is, is found by looking.
"""

import re
from collections import Counter
from pathlib import Path

from pretrain.archive_listing import Listing, archive_listing
from pretrain.config import ShardsConfig
from pretrain.files_source import files_source, is_there, with_depth
from pretrain.items import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Source, is_hidden, suffix_of, without_suffix
from pretrain.items import Item as Item
from pretrain.parquet_source import parquet_source
from pretrain.progress import say
from pretrain.stack_source import LABELS, stack_source
from pretrain.storage import RemoteFile, failures_as_os_errors, files_beside, is_url, list_files, locate, remote_file

PARQUET = (".parquet", ".pq")
ARCHIVES = (".tar", ".zip")
COMPRESSED_TAR = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst))$")
SYNSET_TAR = re.compile(r"n\d{8}\.tar")
OF_PARQUET = ("image_column", "label_column", "depth_column", "where")
ALL_KINDS = "an image folder, video, .parquet, .tar, .zip or .npy file, or a folder of them"


@failures_as_os_errors()
def open_source(config: ShardsConfig) -> Source:
    """What `config.source` names, a path or a URL; raises with one line where it is nothing that can be read."""
    if config.images != ShardsConfig.images:
        raise ValueError(f"images={config.images} is for source=simulated; a source has as many as lie in it")
    place = locate(config.source)
    if not is_url(place):
        if place.is_dir():
            return folder_source(place, config)
        if place.exists():
            return file_source(place, config)
    else:
        file = remote_file(place)
        if file is not None and suffix_of(file.name):
            return file_source(file, config)
        if list_files(place):
            return folder_source(place, config)
    raise FileNotFoundError(f"source {str(place)!r} does not exist ({ALL_KINDS}, or `simulated`)")


def file_source(file: Path | RemoteFile, config: ShardsConfig) -> Source:
    """One file that holds many images or clips, or one video."""
    place = str(file) if isinstance(file, Path) else file.url
    suffix = suffix_of(file.name)
    if suffix in PARQUET:
        return tables_source({file.name: file}, config)
    if suffix in ARCHIVES:
        return paired_source(archive_listing(file), config, place)
    if suffix == ".npy":
        return arrays_source({file.name: file} | beside(file), config, place)
    if suffix in VIDEO_SUFFIXES:
        return files_source({file.name: file} | beside(file), config, place)
    if COMPRESSED_TAR.search(file.name.lower()):
        raise ValueError(f"source {place!r} is compressed, and has no random order; decompress it to a .tar first")
    raise ValueError(f"source {place!r} is neither a folder nor a .parquet file, nor a .tar, .zip, .npy or video file")


def beside(file: Path | RemoteFile) -> dict[str, Path | RemoteFile]:
    """Arrays in the folder of a file that belong to it: its signals, which are named after it, and labels."""
    local = isinstance(file, Path)
    found = {path.name: path for path in file.parent.iterdir()} if local else files_beside(file.url)
    if found is None:
        say(f"what lies beside {file.url} is not listed there; its labels and signals, if it has any, are left out")
        return {}
    stem = without_suffix(file.name)
    names = [name for name in found if name != file.name and suffix_of(name) in (".npy", ".npz")]
    mine = {name: found[name] for name in names if name == LABELS or name.startswith(f"{stem}.")}
    return {name: other for name, other in mine.items() if is_there(other)}


def folder_source(folder: Path | str, config: ShardsConfig) -> Source:
    """Images of a folder; without any, whatever else lies in it: videos, then Parquet parts, archives and stacks."""
    listing, place = {name: file for name, file in list_files(folder).items() if not is_hidden(name)}, str(folder)
    counts = Counter(suffix_of(name) for name in listing)
    if any(counts[suffix] for suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES):
        tell_others(place, counts)
        return paired_source(listing, config, place)
    tables = {name: file for name, file in listing.items() if suffix_of(name) in PARQUET}
    if tables:
        return tables_source(tables, config)
    archives = {name: file for name, file in listing.items() if suffix_of(name) in ARCHIVES}
    if archives:
        return archives_source(archives, config, place)
    arrays = {name: file for name, file in listing.items() if suffix_of(name) == ".npy" and "/" not in name}
    if arrays:
        return arrays_source(arrays, config, place)
    return files_source(listing, config, place)


def tell_others(place: str, counts: Counter) -> None:
    """Data that nobody reads is not passed over in silence."""
    others = [f"{counts[suffix]:,} {suffix}" for suffix in (*PARQUET, *ARCHIVES) if counts[suffix]]
    if others:
        say(f"{place} holds images or videos; its {' and '.join(others)} files are left alone")


def tables_source(files: dict[str, Path | RemoteFile], config: ShardsConfig) -> Source:
    if config.depth is not None:
        raise ValueError("depth=<folder> is for folders of images; with a Parquet file say depth_column=<name>")
    if config.labels is not None:
        raise ValueError("labels is for folders and archives; with a Parquet file say label_column=<name>")
    require_images(config)
    return parquet_source(files, config)


def paired_source(listing: Listing, config: ShardsConfig, place: str, skipped: int = 0) -> Source:
    """Files of a listing, with the depth images of another folder."""
    require_no_parquet_keys(config, place)
    source = files_source(listing, config, place, skipped)
    return source if config.depth is None else with_depth(source, place, locate(config.depth))


def archives_source(files: dict[str, Path | RemoteFile], config: ShardsConfig, place: str) -> Source:
    """Archives of a folder: those named after synsets are classes, as in ImageNet; others are parts of one set."""
    by_class = all(SYNSET_TAR.fullmatch(file.name) for file in files.values())
    listing: Listing = {}
    for name, file in files.items():
        folder = file.name.removesuffix(".tar") if by_class else name.replace("/", "_")
        listing |= {f"{folder}/{member}": found for member, found in archive_listing(file).items()}
    return paired_source(listing, config, place, skipped=0 if by_class else 1)


def arrays_source(files: dict[str, Path | RemoteFile], config: ShardsConfig, place: str) -> Source:
    for key in ("depth", "labels"):
        if getattr(config, key) is not None:
            raise ValueError(f"{key} is not for .npy stacks; their labels lie beside them, in labels.npy")
    require_no_parquet_keys(config, place)
    if config.format == "encoded":
        raise ValueError("format=encoded keeps videos as they were; stacks have none, choose format=raw")
    return stack_source([file for file in files.values() if suffix_of(file.name) == ".npy"], config, place)


def require_no_parquet_keys(config: ShardsConfig, place: str) -> None:
    """Raises one line rather than pass over what somebody asked for."""
    for key in OF_PARQUET:
        if getattr(config, key) is not None:
            instead = {"label_column": "labels=<file>", "depth_column": "depth=<folder>"}.get(key)
            said = f"; with images in files say {instead}" if instead else ""
            raise ValueError(f"{key} is for Parquet files, and {place!r} is none{said}")


def require_images(config: ShardsConfig) -> None:
    if config.clip_frames or config.frame_rate_hz is not None or config.format == "encoded":
        raise ValueError("clip_frames, frame_rate_hz and format=encoded are for clips; Parquet files hold images")
