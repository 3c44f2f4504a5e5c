"""Videos behind URLs, whose decoder would pass a failing network off as a damaged video.

What comes in: the videos of a listing, and the clips that `pretrain/video_source.py` makes of them. What goes out: the
same, but that storage that goes on failing raises `StorageFailed`. FFmpeg reads through callbacks, which pass no such
exception on, so for the decoder the video ends there, and the exception is raised once it is done.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from pretrain.items import ClipFrames, Item, StoredFile
from pretrain.storage import PatientFile, RemoteFile, StorageFailed


@dataclass
class RemoteVideo:
    """A video behind a URL, and how its storage has failed, if it has."""

    file: RemoteFile
    failure: str = ""

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def size(self) -> int:
        return self.file.size

    def read_bytes(self) -> bytes:
        return self.file.read_bytes()

    def open(self) -> BinaryIO:
        return EndingFile(self)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Raises StorageFailed in the place of whatever a decoder has made of it."""
        try:
            yield
        finally:
            if self.failure:
                raise StorageFailed(self.failure)


class EndingFile(PatientFile):
    """A video, open for reading, that ends where its storage fails."""

    def __init__(self, video: RemoteVideo) -> None:
        super().__init__(video.file.url, StorageFailed)
        self.video = video

    def read(self, size: int = -1) -> bytes:
        try:
            return b"" if self.video.failure else super().read(size)
        except StorageFailed as error:
            self.video.failure = str(error)
            return b""


@dataclass(frozen=True)
class RemoteClip:
    """Frames of a video behind a URL."""

    clip: ClipFrames
    file: RemoteVideo

    @property
    def count(self) -> int:
        return self.clip.count

    @property
    def frame_rate_hz(self) -> float:
        return self.clip.frame_rate_hz

    @property
    def first(self) -> int:
        return self.clip.first

    def frames(self) -> Iterator[np.ndarray]:
        with self.file.stopping():
            yield from self.clip.frames()

    def encoded(self) -> tuple[str, bytes]:
        return self.clip.encoded()


def watched(files: Mapping[str, StoredFile]) -> dict[str, StoredFile]:
    """The same files, those behind URLs as videos that note how their storage fails."""
    return {name: RemoteVideo(file) if isinstance(file, RemoteFile) else file for name, file in files.items()}


def with_watched_clips(items: list[Item]) -> list[Item]:
    """Items of watched videos; raises StorageFailed where it failed when the videos were looked into."""
    found = []
    for item in items:
        file = item.clip.file
        if isinstance(file, RemoteVideo):
            with file.stopping():
                item = replace(item, clip=RemoteClip(item.clip, file))
        found.append(item)
    return found
