"""Files that are whole or absent: written beside their place, and moved there when all went well."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file becomes `path` at the end of the block, and vanishes if the block fails.

    Raises ValueError where `path` exists already.
    """
    require_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished.{path.name}")
    try:
        yield unfinished
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def require_absent(path: Path) -> None:
    """Raises ValueError where something is at the path."""
    if path.exists():
        raise ValueError(f"{path}: exists already; name a new file")
