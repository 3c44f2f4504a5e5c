"""Write WebDataset shards of small images, or of clips.

What comes in: a `Source` of images of any size, or of clips. What goes out: a folder, local or behind a URL, of
`shard-000000.tar`, ... and `index.json` (`pretrain/shard_index.py` says what it holds). A sample's files share the key
`<global index, nine digits>`:

- an image: `.jpg` (or `.npy`, raw uint8 (height, width, 3)), with its depth map, of the same height and width, in
  `.depth.png` (grey, 8 or 16 bit, in the source's own values);
- a clip: `.clip.npy`, raw uint8 (frames, height, width) or (frames, height, width, 3), or the encoded video as it was
  (`.mp4`, ...), with `.clip.json`: `frames`, `height`, `width`, `frame_rate_hz`;
- either: its label in `.cls`, and each of its signals in `.<name>.signal.npy`, float32 (channels,) of an image, or
  (channels, frames) of a clip.

Format of the tars: WebDataset (Aizman et al. 2019, https://arxiv.org/abs/2001.01858). Images are encoded in threads,
as Pillow and PyAV let others work meanwhile; the bytes do not depend on how many there are.
"""

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice

import webdataset as wds

from pretrain.config import ShardsConfig
from pretrain.durable import NO_SPACE
from pretrain.encode import DEPTH as DEPTH
from pretrain.encode import Encoded, encode, wants_depth
from pretrain.items import Item, Source
from pretrain.progress import Meter, progress, say
from pretrain.shard_folder import LocalFolder, RemoteFolder, open_folder
from pretrain.shard_index import FORMAT, FORMAT_OF_CLIPS, INDEX, JOURNAL, read_index
from pretrain.shard_index import verify_shards as verify_shards
from pretrain.storage import failures_as_os_errors

ShardFolder = LocalFolder | RemoteFolder
IN_FLIGHT = 4  # items for each thread that are read and encoded ahead of the one that is written
TRIED = {"images": 32, "clips": 2}  # items whose sizes tell how much room the shards will need


@failures_as_os_errors()
def write_shards(source: Source, config: ShardsConfig) -> dict:
    """Write the source's images or clips as shards and return the index.

    Interrupted, it goes on with the first shard that is not complete; of complete ones, it writes again what has gone
    missing since. Unreadable images are left out, and listed in the index.

    Raises:
        FileExistsError: the folder holds shards made from something else.
        ValueError: more unreadable images than `config.max_unreadable` allows.
        OSError: there is no room for the shards, or a server goes on failing.
    """
    require_whole_videos(source, config)
    folder = open_folder(config.out)
    plan = shard_plan(source, config)
    if folder.size(INDEX) is not None:
        return finished_index(folder, plan, source, config)
    open_journal(folder, plan)
    folder.tidy()
    shards = range(0, source.count, config.shard_samples)
    entries = completed_entries(folder, len(shards))
    start = min(len(entries) * config.shard_samples, source.count)
    if entries:
        say(f"going on after {len(entries)} of {len(shards)} shards in {folder}")
    shown = progress("shards", source.count, start)
    with ThreadPoolExecutor(threads(config)) as pool, stopping(pool), shown as meter:
        items = source.items(start)
        for number in range(len(shards)):
            if number >= len(entries):
                samples = encoded_in_order(islice(items, config.shard_samples), pool, config)
                if number == start // config.shard_samples:
                    samples = with_room(folder, samples, source, source.count - start, config)
                with one_line_when_full(folder, number):
                    entries.append(write_shard(folder, number, samples_in(entries), samples, meter))
            check_unreadable(entries[: number + 1], source, config.max_unreadable)
    return finish(folder, plan, entries, source)


def require_whole_videos(source: Source, config: ShardsConfig) -> None:
    if config.format == "encoded" and (source.kind != "clips" or config.clip_frames):
        raise ValueError(
            "format=encoded keeps whole videos as they were; leave clip_frames=0, and images have format=jpeg or raw"
        )
    if source.kind == "clips" and wants_depth(config):
        raise ValueError("depth is for images; clips have none")


@contextmanager
def stopping(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Items that wait for a thread are given up when writing stops."""
    try:
        yield
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def samples_in(entries: list[dict]) -> int:
    return sum(entry["samples"] for entry in entries)


def threads(config: ShardsConfig) -> int:
    """How many threads encode."""
    return config.workers or os.cpu_count() or 1


def encoded_in_order(
    items: Iterator[Item], pool: ThreadPoolExecutor, config: ShardsConfig
) -> Iterator[tuple[Item, Encoded]]:
    """Items with what became of them, in their order; few are held at a time."""
    waiting: deque[tuple[Item, Future[Encoded]]] = deque()
    ahead = IN_FLIGHT * threads(config)
    for item in items:
        waiting.append((item, pool.submit(encode, item, config)))
        if len(waiting) >= ahead:
            item, future = waiting.popleft()
            yield item, future.result()
    while waiting:
        item, future = waiting.popleft()
        yield item, future.result()


def with_room(
    folder: ShardFolder, samples: Iterator[tuple[Item, Encoded]], source: Source, left: int, config: ShardsConfig
) -> Iterator[tuple[Item, Encoded]]:
    """The same samples; raises OSError where the disk has no room for `left` of them, by the sizes of the first few."""
    first = list(islice(samples, TRIED[source.kind]))
    each = sum(tar_bytes(encoded) for _, encoded in first) / max(len(first), 1)
    needed, free, where = folder.free_bytes(int(each * left), int(each * min(left, config.shard_samples)))
    if needed > free:
        raise OSError(
            f"the shards need about {needed / 1e6:,.1f} MB in {str(where)!r}, {free / 1e6:,.1f} MB are free; free "
            "some, or choose another out= or a smaller size="
        )
    return chain(first, samples)


def tar_bytes(encoded: Encoded) -> int:
    """Bytes of a sample in a tar: a header for each file, and the file in whole blocks of 512 bytes."""
    files = [*encoded.files().values(), b"label"]
    return 0 if encoded.problem else sum(512 + -(-len(data) // 512) * 512 for data in files)


@contextmanager
def one_line_when_full(folder: ShardFolder, number: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise OSError(
            f"no space left for {shard_name(number)} of {folder}; the {number} shards before it are complete: free "
            "some space and run the same command again"
        ) from error


def shard_plan(source: Source, config: ShardsConfig) -> dict:
    """What the shards are made of; two runs with the same plan write the same bytes."""
    jpeg = config.format == "jpeg" and source.kind == "images"
    plan = {
        "format": FORMAT_OF_CLIPS if source.kind == "clips" or source.signals else FORMAT,
        # None and not False, so that shards written before there were depth maps have the same plan.
        "depth": wants_depth(config) or None,
        "source": hashlib.sha256(source.fingerprint.encode()).hexdigest(),
        "images": source.count,
        "size": config.size,
        "encoding": config.format if source.kind == "images" or config.format == "encoded" else "raw",
        "quality": config.quality if jpeg else None,
        "shard_samples": config.shard_samples,
        "classes": list(source.classes) if source.classes else None,
    }
    if source.kind == "clips":
        plan |= {"kind": source.kind, "clip_frames": config.clip_frames}
    return plan | ({"signals": list(source.signals)} if source.signals else {})


def finished_index(folder: ShardFolder, plan: dict, source: Source, config: ShardsConfig) -> dict:
    """The index of shards that were complete before; those that are no longer there are written again."""
    index = read_index(str(folder))
    require_same_plan(folder, index["plan"], plan)
    sizes = folder.sizes([entry["file"] for entry in index["shards"]])
    missing = [n for n, entry in enumerate(index["shards"]) if sizes[entry["file"]] != entry["bytes"]]
    if missing:
        write_again(folder, index["shards"], missing, source, config)
    else:
        kind = index.get("kind", "images")
        say(f"{folder} is complete already: {index['samples']:,} {kind} in {len(index['shards'])} shards")
    return index


def write_again(
    folder: ShardFolder, entries: list[dict], missing: list[int], source: Source, config: ShardsConfig
) -> None:
    """Write shards of an index that are missing, or have not its size; they must become what they were.

    Raises:
        ValueError: one has other bytes than before.
    """
    say(f"writing {len(missing)} of {len(entries)} shards of {folder} again, which are missing or cut short")
    shown = progress("shards", len(missing) * config.shard_samples)
    with ThreadPoolExecutor(threads(config)) as pool, stopping(pool), shown as meter:
        for number in missing:
            block = islice(source.items(number * config.shard_samples), config.shard_samples)
            samples = encoded_in_order(block, pool, config)
            with one_line_when_full(folder, number):
                entry = write_shard(folder, number, samples_in(entries[:number]), samples, meter)
            folder.remove(JOURNAL)
            if entry["sha256"] != entries[number]["sha256"]:
                folder.remove(entry["file"])
                raise ValueError(
                    f"{entry['file']} of {folder} does not become what the index says it was; the source's files have "
                    "changed, or this is another version of Pillow: write all shards, with another out="
                )


def require_same_plan(folder: ShardFolder, found: dict, wanted: dict) -> None:
    """One line where shards are not those that are asked for."""
    for key in wanted:
        if found.get(key) != wanted[key]:
            what = f"{key}={found.get(key)!r}, not {wanted[key]!r}"
            if key == "source":
                what = "another source, or its files have changed since"
            raise FileExistsError(f"{folder} holds shards with {what}; choose another out=")


def open_journal(folder: ShardFolder, plan: dict) -> None:
    """Make the folder, or check that the shards that an interrupted run left in it have the same plan."""
    plan_file = f"{JOURNAL}/plan.json"
    begun = folder.size(plan_file) is not None
    if begun and folder.size(f"{JOURNAL}/{shard_name(0)}.json") is not None:
        require_same_plan(folder, json.loads(folder.read(plan_file)), plan)
        return
    if folder.names() and not begun:
        raise FileExistsError(f"{folder} is not empty and holds no shards; choose another out=")
    folder.write(plan_file, lambda file: file.write(json.dumps(plan, indent=1).encode()))


def completed_entries(folder: ShardFolder, shards: int) -> list[dict]:
    """Journal entries of the leading shards that lie complete in the folder."""
    entries = []
    for number in range(shards):
        entry_file = f"{JOURNAL}/{shard_name(number)}.json"
        if folder.size(entry_file) is None:
            break
        entry = json.loads(folder.read(entry_file))
        if folder.size(entry["file"]) != entry["bytes"]:
            break
        entries.append(entry)
    return entries


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def write_shard(
    folder: ShardFolder, number: int, first_index: int, block: Iterator[tuple[Item, Encoded]], meter: Meter
) -> dict:
    """Write one shard and its journal entry."""
    name = shard_name(number)
    contents = Contents(first_index)
    digest = folder.write(name, lambda file: contents.write(file, block, meter))
    entry = {
        "file": name,
        "samples": contents.samples,
        "bytes": contents.bytes,
        "sha256": digest,
        "labels": sorted(contents.labels),
        "unreadable": contents.unreadable,
        "signals": {signal: sorted(channels) for signal, channels in sorted(contents.channels.items())},
        "frame_rates_hz": sorted(contents.frame_rates_hz),
    }
    folder.write(f"{JOURNAL}/{name}.json", lambda file: file.write(json.dumps(entry).encode()))
    return entry


class Contents:
    """What a shard comes to hold while it is written; its first sample has the global index `first_index`."""

    def __init__(self, first_index: int) -> None:
        self.first_index, self.samples, self.bytes = first_index, 0, 0
        self.labels: set[int] = set()
        self.unreadable: list[str] = []
        self.channels: dict[str, set[int]] = {}
        self.frame_rates_hz: set[float] = set()

    def write(self, file: io.RawIOBase, block: Iterator[tuple[Item, Encoded]], meter: Meter) -> None:
        with wds.TarWriter(file, mtime=0) as tar:
            for item, encoded in block:
                self.add(tar, item, encoded)
                meter.advance()
        self.bytes = file.tell()

    def add(self, tar: wds.TarWriter, item: Item, encoded: Encoded) -> None:
        if encoded.problem:
            self.unreadable.append(f"{item.name}: {encoded.problem}")
            return
        sample = {"__key__": f"{self.first_index + self.samples:09d}", **encoded.files()}
        if item.label is not None:
            sample["cls"] = str(item.label).encode()
            self.labels.add(item.label)
        tar.write(sample)
        self.samples += 1
        for signal, channels in encoded.channels.items():
            self.channels.setdefault(signal, set()).add(channels)
        if encoded.frame_rate_hz is not None:
            self.frame_rates_hz.add(encoded.frame_rate_hz)


def check_unreadable(entries: list[dict], source: Source, allowed: float) -> None:
    unreadable = [line for entry in entries for line in entry["unreadable"]]
    if len(unreadable) > allowed * source.count:
        raise ValueError(
            f"{len(unreadable):,} of {source.count:,} {source.kind} cannot be read, more than {allowed:.1%}; the "
            f"first: {'; '.join(unreadable[:3])}; run again with max_unreadable=<share> to leave them out"
        )


def finish(folder: ShardFolder, plan: dict, entries: list[dict], source: Source) -> dict:
    """Write the index and remove the journal."""
    unreadable = [line for entry in entries for line in entry["unreadable"]]
    index = {
        "format": plan["format"],
        "samples": samples_in(entries),
        "kind": source.kind,
        "labels": sorted({label for entry in entries for label in entry["labels"]}),
        "classes": plan["classes"],
        "depth": plan["depth"] is True,
        "signals": channels_of_signals(entries),
        "frame_rates_hz": sorted({rate for entry in entries for rate in entry.get("frame_rates_hz", ())}),
        "frames_left_out": source.frames_left_out,
        "shards": [{key: entry[key] for key in ("file", "samples", "bytes", "sha256")} for entry in entries],
        "unreadable": unreadable,
        "plan": plan,
    }
    if not index["samples"]:
        raise ValueError(f"none of the {plan['images']:,} {source.kind} could be read; the first: {unreadable[0]}")
    folder.write(INDEX, lambda file: file.write(json.dumps(index, indent=1).encode()))
    folder.remove(JOURNAL)
    if unreadable:
        say(
            f"{len(unreadable):,} unreadable {source.kind} left out, listed in {folder}/{INDEX}; first: {unreadable[0]}"
        )
    return index


def channels_of_signals(entries: list[dict]) -> dict[str, int]:
    """How many channels each signal has; raises one line where that differs from sample to sample."""
    found: dict[str, set[int]] = {}
    for entry in entries:
        for signal, channels in entry.get("signals", {}).items():
            found.setdefault(signal, set()).update(channels)
    for signal, channels in found.items():
        if len(channels) > 1:
            counts = " and ".join(map(str, sorted(channels)))
            raise ValueError(f"signal {signal!r} has {counts} channels; it needs as many in all samples")
    return {signal: channels.pop() for signal, channels in sorted(found.items())}
