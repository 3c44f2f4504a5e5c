"""Fields of the metadata in an experanto folder, checked as they are asked for.

Comes in: `meta.yml`, `NNNNN.yml`. Goes out: `Meta`, whose every complaint is one line with the file, the field, what
was found and what was expected. Files are data: YAML with tags of Python is refused.
"""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# The same safe loader, in C where PyYAML was built with it: a recording has up to 20,000 files of one trial each.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Meta:
    """The fields of one file. A field that is absent or null has no default unless one is given."""

    path: Path
    fields: Mapping[str, Any]

    def number(self, name: str, default: float | None = None) -> float:
        """A number; also where YAML took it for text, as it does with 1e9."""
        return self._read(name, "a number", float, default)

    def whole(self, name: str, default: int | None = None) -> int:
        return self._read(name, "a whole number", _whole, default)

    def text(self, name: str, default: str | None = None) -> str:
        return self._read(name, "text", _text, default)

    def flag(self, name: str, default: bool | None = None) -> bool:
        return self._read(name, "true or false", _flag, default)

    def wholes(self, name: str, expected: str = "whole numbers") -> list[int]:
        return self._read(name, expected, lambda values: [_whole(value) for value in _list(values)], None)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, () where it is absent."""
        return self._read(name, "a list of texts", lambda values: tuple(_text(value) for value in _list(values)), ())

    def names(self, name: str) -> dict[str, str]:
        """A table from text to text, {} where it is absent."""
        return self._read(name, "names with a file each", lambda table: {str(k): _text(table[k]) for k in table}, {})

    def wrong(self, name: str, expected: str) -> ValueError:
        """The complaint about a field; long values are shortened."""
        found = f"found {reprlib.repr(self.fields[name])}" if self.fields.get(name) is not None else "not there"
        return ValueError(f"{self.path}: {name}: {found}, expected {expected}")

    def _read(self, name: str, expected: str, kind: Callable[[Any], Any], default: Any) -> Any:
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        try:
            return kind(value)
        except (ValueError, TypeError, KeyError):
            raise self.wrong(name, expected) from None


def read_meta(path: Path) -> Meta:
    """The fields in a YAML file. Raises FileNotFoundError, or ValueError naming the file."""
    try:
        with path.open("rb") as file:
            fields = yaml.load(file, Loader=LOADER)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (yaml.YAMLError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as plain YAML ({line})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: found {type(fields).__name__}, expected a table of fields")
    return Meta(path, fields)


def file_inside(folder: Path, name: str, meta: Meta) -> Path:
    """The file that a field names, which must lie in the folder: names come from strangers."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{meta.path}: {name}: lies outside of {folder}, expected a file in it")
    return path


def _whole(value: Any) -> int:
    number = float(value)
    if isinstance(value, bool) or not number.is_integer():
        raise ValueError
    return int(number)


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError
    return str(value)


def _flag(value: Any) -> bool:
    if value not in (True, False, 0, 1):
        raise ValueError
    return bool(value)


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError
    return values
