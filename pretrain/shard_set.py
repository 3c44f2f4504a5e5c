"""A folder of shards, opened for reading: which samples it should hold, and which of them are there.

What comes in: the folder or URL that `pretrain/shards.py` has written. What goes out: a `ShardSet`, a reader of its
samples, and the count of what is missing or damaged, which stops a run above a share of the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pretrain.order import Order
from pretrain.progress import say
from pretrain.shard_cache import ShardCache
from pretrain.shard_index import read_index
from pretrain.shard_reader import OpenShard, ShardReader
from pretrain.storage import is_url

DAMAGED_SHARE = 0.001
NAMED_AT_ONCE = 5
IMAGES, CLIPS = "images", "clips"


@dataclass(frozen=True)
class ShardSet:
    """Where the shards are, how many samples they should hold, and what each sample has.

    `labels` are those that occur, `class_names` the names of labels 0, 1, ..., or none.
    `counts`, `sizes` and `digests` are the samples, bytes and SHA-256 of each shard; `readable` those of its first
    samples that lie there, fewer where a shard is missing or cut short, as `problems` says. At most `damaged_share` of
    all may be missing or damaged. Shards behind URLs are read through the `cache`.
    """

    folder: Path | str
    urls: tuple[str, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    digests: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    kind: str = IMAGES
    depth: bool = False
    readable: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    damaged_share: float = DAMAGED_SHARE
    cache: ShardCache | None = None

    @property
    def name(self) -> str:
        """The last part of the folder's path or URL."""
        return str(self.folder).rsplit("/", 1)[-1]

    @property
    def samples(self) -> int:
        return sum(self.counts)

    @property
    def classes(self) -> int:
        """One more than the largest label; 0 without labels."""
        return max(self.labels) + 1 if self.labels else 0

    @cached_property
    def first(self) -> np.ndarray:
        """Global index of each shard's first sample."""
        return np.concatenate([[0], np.cumsum(self.counts)])[:-1]

    def order(self, seed: int, buffer: int) -> Order:
        """The order of the samples that are there."""
        return Order(self.readable or self.counts, self.first.tolist(), seed, buffer)

    def reader(self) -> ShardReader:
        """Opens the shards one by one, fetching those that are not here."""
        facts = zip(self.sizes, self.digests, strict=True)
        return ShardReader(partial(open_file, dict(zip(self.urls, facts, strict=True)), self.cache))

    def read(self, reader: ShardReader, index: int) -> dict[str, Any]:
        """The encoded sample with a global index, as webdataset gives it."""
        return reader.read(self.url_of(index), f"{index:09d}")

    def following(self, index: int) -> Iterator[int]:
        """The global indices that are there after this one, round the end."""
        there = np.concatenate([first + np.arange(n) for first, n in zip(self.first, self.readable, strict=True)])
        yield from np.roll(there, -int(np.searchsorted(there, index, side="right"))).tolist()

    def url_of(self, index: int) -> str:
        """The shard that holds a sample."""
        return self.urls[int(np.searchsorted(self.first, index, side="right")) - 1]


def open_file(facts: dict[str, tuple[int, str]], cache: ShardCache | None, url: str) -> BinaryIO:
    """A shard, open for reading; `facts` are the bytes and SHA-256 of each."""
    return cache.open(url, *facts[url]) if cache else Path(url).open("rb")


def open_shards(
    folder: Path | str | None,
    key: str = "data.shards",
    damaged_share: float = DAMAGED_SHARE,
    cache: ShardCache | None = None,
) -> ShardSet:
    """The shards of a folder or URL; missing shards and ones cut short are said and left out.

    Raises:
        ValueError, FileNotFoundError: one line, naming the config's `key`, where there are none, or more than
            `damaged_share` of the samples are missing; a URL without a `cache`.
    """
    if folder is None:
        raise ValueError(f"{key} is not set; make shards with `murine shards source=... out=...`")
    remote = is_url(folder)
    if remote and cache is None:
        raise ValueError(f"{key}={folder} is a URL, which is read through a cache, and there is none")
    folder = str(folder).rstrip("/") if remote else Path(folder).expanduser().resolve()
    index = read_index(folder)
    if remote:
        cache.require_writable()
    readable, problems = [], []
    for entry in index["shards"]:
        if Path(entry["file"]).name != entry["file"] or not entry["file"].endswith(".tar"):
            raise ValueError(f"the index of {folder} names {entry['file']!r}, which is not a shard beside it")
        # Asking a server for the size of every shard would take minutes; a download checks it.
        there, problem = (entry["samples"], "") if remote else readable_samples(folder / entry["file"], entry)
        readable.append(there)
        problems += [problem] if problem else []
    shards = ShardSet(
        folder,
        urls=tuple(f"{folder}/{entry['file']}" for entry in index["shards"]),
        counts=tuple(entry["samples"] for entry in index["shards"]),
        sizes=tuple(entry["bytes"] for entry in index["shards"]),
        digests=tuple(entry["sha256"] for entry in index["shards"]),
        labels=tuple(index["labels"]),
        class_names=tuple(index.get("classes") or ()),
        kind=index.get("kind", IMAGES),
        depth=index.get("depth", False),
        readable=tuple(readable),
        problems=tuple(problems),
        damaged_share=damaged_share,
        cache=cache if remote else None,
    )
    lost = shards.samples - sum(readable)
    if problems:
        require_few(lost, shards, problems)
        say(f"WARNING: {lost:,} of {shards.samples:,} samples of {folder} are left out: {listed(problems)}")
    return shards


def readable_samples(path: Path, entry: dict[str, Any]) -> tuple[int, str]:
    """How many samples of a shard can be read, and what is wrong with it, if anything."""
    size = path.stat().st_size if path.is_file() else None
    if size == entry["bytes"]:
        return entry["samples"], ""
    found = "nothing" if size is None else f"{size:,} bytes"
    problem = f"{path.name} should have {entry['bytes']:,} bytes, found {found}"
    if size is None or size > entry["bytes"]:
        return 0, problem
    with path.open("rb") as file:
        there = len(OpenShard(file).samples)
    # The last sample of a tar that is cut may have lost a member, so it is not counted on.
    return min(max(there - 1, 0), entry["samples"]), problem


def require_few(lost: int, shards: ShardSet, problems: list[str]) -> None:
    """Stop where more samples than the allowed share are missing or damaged, with the list."""
    if lost > shards.damaged_share * shards.samples:
        raise ValueError(
            f"{lost:,} of {shards.samples:,} samples of {shards.folder} are missing or damaged, more than "
            f"data.damaged_share={shards.damaged_share:g}: {listed(problems)}; find all damage with "
            f"`murine shards verify={shards.folder}`, remove those shards, and let the same `murine shards` write them "
            "again"
        )


def listed(problems: list[str]) -> str:
    """The first few problems and the number of the others."""
    others = len(problems) - NAMED_AT_ONCE
    return "; ".join(problems[:NAMED_AT_ONCE]) + (f"; and {others:,} more" if others > 0 else "")


@dataclass
class Damage:
    """Counts the samples of a set that could not be read, names each once, and stops above the allowed share.

    Its state belongs into checkpoints, or a run would begin to count anew when it goes on.
    """

    shards: ShardSet
    named: dict[str, None] = field(default_factory=dict)

    def note(self, problems: list[str]) -> None:
        """Raises ValueError with the list where they have become too many."""
        new = [problem for problem in problems if problem not in self.named]
        self.named |= dict.fromkeys(new)
        lost = self.shards.samples - sum(self.shards.readable) + len(self.named)
        require_few(lost, self.shards, [*self.shards.problems, *self.named])
        for problem in new:
            say(f"WARNING: left out: {problem}")

    def state(self) -> dict[str, Any]:
        return {"named": list(self.named)}

    def restore(self, state: dict[str, Any]) -> None:
        self.named |= dict.fromkeys(state["named"])
