"""A small set of images that lives decoded: read once, kept as uint8, and gathered from there batch by batch.

What comes in: a `ShardSet`, and how much memory it may take. What goes out: batches equal to those of
`pretrain/stream.py`, bit for bit and in the same order, from the device's memory or from RAM.

Images keep their sizes: the pixels of all lie one after the other in one tensor. So a set takes height x width x 3
bytes for each image and nothing for padding; ImageNet at 96 pixels on the short side is about 46 GB, cut to squares 35.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.progress import progress
from pretrain.samples import Sample, decode, shared_signals
from pretrain.shard_set import CLIPS, Damage, ShardSet
from pretrain.stream import UNREADABLE, EpochBatches, load_batches, substitutes

READ_AT_ONCE = 256
SAMPLED_SHARDS, SAMPLED_OF_EACH = 16, 32
# A sample of images does not tell the size of a set exactly.
ESTIMATE_MARGIN = 1.05
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class Pixels:
    """Arrays (height, width, channels) of many sizes, one after the other in one tensor with room for `room` values."""

    def __init__(self, channels: int, dtype: torch.dtype, room: int, device: torch.device, pin: bool) -> None:
        self.channels, self.pin = channels, pin
        self.values = torch.empty(room, dtype=dtype, device=device, pin_memory=pin)
        self.filled = 0

    def add(self, values: Tensor) -> None:
        """Append the values (values,) of some arrays."""
        end = self.filled + len(values)
        if end > len(self.values):
            self.grow(end)
        self.values[self.filled : end] = values.to(self.values.device)
        self.filled = end

    def grow(self, needed: int) -> None:
        values = self.values
        self.values = torch.empty(
            int(needed * ESTIMATE_MARGIN), dtype=values.dtype, device=values.device, pin_memory=self.pin
        )
        self.values[: self.filled] = values[: self.filled]

    def gather(self, starts: Tensor, sizes: Tensor) -> Tensor:
        """Arrays (batch, height, width, channels), padded with zeros to the largest, on the tensor's device.

        `starts` (batch,) are places of their first values, `sizes` (batch, 2) heights and widths; both on the CPU.
        """
        height, width = sizes.amax(0).tolist()
        same = bool((sizes == sizes[0]).all())
        if self.values.device.type == "cpu":
            return self.copied(starts.tolist(), sizes.tolist(), height, width, same)
        return self.evenly(starts, height, width) if same else self.indexed(starts, sizes, height, width)

    def copied(self, starts: list[int], sizes: list[list[int]], height: int, width: int, same: bool) -> Tensor:
        shape = (len(starts), height, width, self.channels)
        whole = (torch.empty if same else torch.zeros)(shape, dtype=self.values.dtype, pin_memory=self.pin)
        for place, start, (tall, wide) in zip(whole, starts, sizes, strict=True):
            array = self.values[start : start + tall * wide * self.channels]
            place[:tall, :wide] = array.view(tall, wide, self.channels)
        return whole

    def evenly(self, starts: Tensor, height: int, width: int) -> Tensor:
        """Arrays of one size, all at once."""
        device = self.values.device
        place = torch.arange(height * width * self.channels, device=device)
        picked = self.values[starts.to(device, non_blocking=True)[:, None] + place]
        return picked.unflatten(1, (height, width, self.channels))

    def indexed(self, starts: Tensor, sizes: Tensor, height: int, width: int) -> Tensor:
        """Arrays of many sizes, all at once; what lies outside of one reads its first value and is then made zero."""
        device = self.values.device
        packed = torch.cat([starts[:, None], sizes], 1).to(device, non_blocking=True)
        start, tall, wide = packed[:, :, None, None, None].unbind(1)
        row = torch.arange(height, device=device)[:, None, None]
        column = torch.arange(width, device=device)[:, None]
        channel = torch.arange(self.channels, device=device)
        inside = (row < tall) & (column < wide)
        place = torch.where(inside, (row * wide + column) * self.channels + channel, 0) + start
        return self.values[place].masked_fill_(~inside, 0)


@dataclass
class ResidentSet:
    """All samples of a set, decoded; row n is the sample with the global index n.

    `sizes` (samples, 2) and `starts` (samples,), counted in pixels, lie on the CPU, and so do labels, signals by row,
    and `deep` (samples,), which tells the depth maps of 16 bits. A row with height 0 could not be read.
    """

    shards: ShardSet
    pixels: Pixels
    depth: Pixels | None
    starts: Tensor
    sizes: Tensor
    labels: Tensor | None
    deep: Tensor
    signals: dict[int, dict[str, Tensor]]

    def batches(self, wanted: EpochBatches) -> Iterator[dict[str, Tensor]]:
        """The batches that `wanted` would read, gathered from memory."""
        for numbers in wanted.numbers():
            yield self.batch(numbers)

    def batch(self, numbers: np.ndarray) -> dict[str, Tensor]:
        rows = self.readable_rows(torch.from_numpy(np.ascontiguousarray(numbers)))
        starts, sizes = self.starts[rows], self.sizes[rows]
        batch = {"images": self.pixels.gather(starts * 3, sizes).permute(0, 3, 1, 2), "sizes": sizes, "index": rows}
        if self.labels is not None:
            batch["label"] = self.labels[rows]
        if self.depth is not None:
            depth = self.depth.gather(starts, sizes).permute(0, 3, 1, 2)
            batch["depth"] = depth if bool(self.deep[rows].any()) else depth.byte()
        if self.signals:
            batch = shared_signals([self.signals.get(row, {}) for row in rows.tolist()]) | batch
        return batch

    def readable_rows(self, rows: Tensor) -> Tensor:
        """The rows of a batch, with others in the place of those that could not be read, as the reader does it."""
        good = substitutes((self.sizes[rows, 0] > 0).tolist())
        if good is not None:
            return rows[good]
        other = next((row for row in self.shards.following(int(rows[-1])) if self.sizes[row, 0] > 0), None)
        if other is None:
            raise ValueError(
                f"no sample of {self.shards.folder} could be read; remove the shards, and let the same `murine shards` "
                "write them again"
            )
        return torch.full_like(rows, other)


def open_resident(
    shards: ShardSet,
    device: torch.device,
    device_share: float,
    memory_share: float,
    workers: int,
    damage: Damage,
    processes: int = 1,
) -> ResidentSet | None:
    """The set, decoded on the device if it fits into a share of its free memory, or in free RAM if there, or None.

    Args:
        shards: what to read.
        device: the training device.
        device_share, memory_share: of the memory that is free now.
        workers: processes that decode.
        damage: counts what cannot be read.
        processes: how many of this machine train, each with a set of its own; they share the RAM.
    """
    if shards.kind == CLIPS:
        return None  # decoded clips are many times larger than their files
    pixels = estimated_pixels(shards)
    if bytes_on_device(shards, device, device_share):
        return read_all(shards, pixels, device, workers, damage)
    if bytes_of(shards, pixels) <= memory_share * free_memory_bytes() / processes:
        return read_all(shards, pixels, torch.device("cpu"), workers, damage, pin=device.type == "cuda")
    return None


def bytes_on_device(shards: ShardSet, device: torch.device, device_share: float) -> int:
    """How much of a GPU's memory the set takes where it fits into that share of what is free now; 0 where it lives
    elsewhere."""
    if device.type != "cuda" or shards.kind == CLIPS:
        return 0
    needed = bytes_of(shards, estimated_pixels(shards))
    return needed if needed <= device_share * torch.cuda.mem_get_info(device)[0] else 0


def bytes_of(shards: ShardSet, pixels: int) -> int:
    """Colours take a byte each, depths four."""
    return pixels * (7 if shards.depth else 3)


def estimated_pixels(shards: ShardSet) -> int:
    """About how many pixels all images have, from the sizes of some of them in shards spread over all."""
    reader, areas = shards.reader(), []
    for shard in np.unique(np.linspace(0, len(shards.urls) - 1, SAMPLED_SHARDS).astype(int)).tolist():
        first = int(shards.first[shard])
        for index in range(first, first + min(SAMPLED_OF_EACH, shards.readable[shard])):
            try:
                sample = decode(shards.read(reader, index))
            except UNREADABLE:
                continue  # counted and named when the whole set is read
            areas.append(sample.pixels.shape[0] * sample.pixels.shape[1])
    return round(np.mean(areas) * shards.samples) if areas else 0


def read_all(
    shards: ShardSet, pixels: int, device: torch.device, workers: int, damage: Damage, pin: bool = False
) -> ResidentSet:
    """Decode every sample into one tensor with room for about `pixels` pixels."""
    room = int(pixels * ESTIMATE_MARGIN)
    images = Pixels(3, torch.uint8, room * 3, device, pin)
    depth = Pixels(1, torch.int32, room, device, pin) if shards.depth else None
    sizes, labels = torch.zeros(shards.samples, 2, dtype=torch.long), torch.full((shards.samples,), -1)
    deep, signals = torch.zeros(shards.samples, dtype=torch.bool), {}
    where = "the device" if device.type != "cpu" else "memory"
    wanted = EpochBatches(shards, READ_AT_ONCE, epoch=None, drop_last=False, collate=end_to_end)
    with progress(f"decoding into {where}", shards.samples) as meter:
        for batch in load_batches(wanted, workers, damage=damage):
            images.add(batch["pixels"])
            if depth is not None:
                depth.add(batch["depth"].int())
                deep[batch["index"]] = batch["deep"]
            signals |= batch["signals"]
            sizes[batch["index"]] = batch["sizes"]
            if "label" in batch:
                labels[batch["index"]] = batch["label"]
            meter.advance(len(batch["index"]))
    areas = sizes.prod(1)
    starts = areas.cumsum(0) - areas
    known = labels if bool((labels[areas > 0] >= 0).all()) else None
    return ResidentSet(shards, images, depth, starts, sizes, known, deep, signals)


def end_to_end(samples: list[Sample]) -> dict[str, Tensor]:
    """Samples of a batch with all their pixels in one row, `pixels` and `depth` (values,); signals by global index."""
    batch = {
        "pixels": torch.cat([sample.pixels.reshape(-1) for sample in samples]),
        "sizes": torch.tensor([sample.pixels.shape[:2] for sample in samples]),
        "index": torch.tensor([sample.index for sample in samples]),
        "signals": {sample.index: sample.signals for sample in samples if sample.signals},
    }
    if all(sample.label is not None for sample in samples):
        batch["label"] = torch.tensor([sample.label for sample in samples])
    if all(sample.depth is not None for sample in samples):
        batch["depth"] = torch.cat([sample.depth.reshape(-1) for sample in samples])
        batch["deep"] = torch.tensor([sample.depth.dtype == torch.int32 for sample in samples])
    return batch


def free_memory_bytes() -> int:
    """RAM that a process may still take: what is available, or what is left of its group's limit (Linux cgroups)."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if MEMINFO.exists():
        available = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        free.append(int(available.split()[1]) * 1024)
    limit = CGROUP / "memory.max"
    if limit.exists() and limit.read_text().strip() != "max":
        free.append(int(limit.read_text()) - int((CGROUP / "memory.current").read_text()))
    return min(free)
