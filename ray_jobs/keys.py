"""The keys of a stage's config and the check of values given for them.

What comes in: a config dataclass whose fields carry `meaning`, `unit`, `low`, `high` and `choices` in their
metadata (see `pretrain/config.py`), and nested dicts of values from YAML, the command line or a notebook.
What goes out: `Key` rows, from which help is made, and the same dicts with each value in its declared type;
or a `ConfigError` of one line that names the key, what was given, what is allowed and what is nearest.

The checks are stricter than OmegaConf's own, which turns 1 into True and 1000.0 into "1000.0" unasked.
"""

import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import SequenceMatcher
from typing import Any

NEAR = 0.5  # share of characters in common from which a name is suggested: `bf16` has 0.57 of `bf16-mixed`
LAST_PART_WEIGHT = 0.9  # a full match of `lr` with the end of `optimizer.lr` ranks just below a full path's
SHOWN_CHARACTERS = 80  # of a wrong value, so that the message stays one readable line


class ConfigError(ValueError):
    """A mistake in a config: one line that names the key, what was given and what is allowed."""


@dataclass(frozen=True)
class Key:
    """One key of a config: its dotted path, declared type, default and notes."""

    path: str
    kind: Any
    optional: bool
    default: Any
    meaning: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] | None = None
    words: tuple[tuple[str, Any], ...] = ()

    @property
    def is_group(self) -> bool:
        """Whether further keys lie below this one."""
        return is_dataclass(self.kind)

    @property
    def type_name(self) -> str:
        """The declared type in words, such as `list of integers` or `text or null`."""
        words = "".join(f" or {word}" for word, _ in self.words)
        return kind_name(self.kind) + words + (" or null" if self.optional else "")

    @property
    def allowed(self) -> str:
        """Range or choices with the unit, such as `8 to 4096 pixels`; empty where the type says it all."""
        if self.choices is not None:
            return " | ".join(map(str, self.choices))
        if self.low is not None and self.high is not None:
            limits = f"{self.low:g} to {self.high:g}"
        elif self.low is not None:
            limits = f"{self.low:g} or more"
        elif self.high is not None:
            limits = f"at most {self.high:g}"
        else:
            limits = ""
        return f"{limits} {self.unit}".strip()


def level_keys(cls: type, path: str = "") -> dict[str, Key]:
    """The keys of one level of a config dataclass by name; `path` is the dotted path of that level."""
    hints = typing.get_type_hints(cls)
    keys = {}
    for entry in fields(cls):
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        kind, optional = _without_none(hints[entry.name])
        notes = dict(entry.metadata)
        if notes.get("choices") is not None:
            notes["choices"] = tuple(notes["choices"])
        notes["words"] = tuple((notes.get("words") or {}).items())
        keys[entry.name] = Key(_below(path, entry.name), kind, optional, default, **notes)
    return keys


def all_keys(cls: type, path: str = "") -> Iterator[Key]:
    """Every key of a config dataclass with those of its groups, a group before its keys."""
    for key in level_keys(cls, path).values():
        yield key
        if key.is_group:
            yield from all_keys(key.kind, key.path)


def kind_at(cls: type, path: str) -> Any:
    """The declared type at a dotted path; `Any` below a mapping and where no such key exists."""
    name, _, rest = path.partition(".")
    key = level_keys(cls).get(name)
    if key is None or (rest and not key.is_group):
        return Any
    return kind_at(key.kind, rest) if rest else key.kind


def kind_name(kind: Any) -> str:
    """A declared type in words."""
    names = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "anything"}
    plurals = {int: "integers", float: "numbers", bool: "true or false", str: "texts"}
    if typing.get_origin(kind) is list:
        return f"list of {plurals[typing.get_args(kind)[0]]}"
    if typing.get_origin(kind) is dict:
        return "mapping"
    return "group of keys" if is_dataclass(kind) else names[kind]


def checked(cls: type, values: Mapping[str, Any], path: str = "", root: type | None = None) -> dict[str, Any]:
    """The nested `values` in the types that `cls` declares; keys that are not given stay absent.

    `path` is the dotted path of this level below the config `root`. Whole numbers are taken where a number is
    declared, and text that spells a number, true or false where one of these is.

    Raises:
        ConfigError: an unknown key, a wrong type, or a value out of range or not among the choices.
    """
    root = root or cls
    keys = level_keys(cls, path)
    result = {}
    for name, value in values.items():
        if name not in keys:
            raise ConfigError(_unknown_key(root, cls, path, name, value))
        result[name] = _checked_value(keys[name], value, root)
    return result


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, as a whole or in its part after the last dot; None if none is near."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, name, candidate).ratio()
        last = SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, LAST_PART_WEIGHT * last)

    best = max(candidates, key=likeness, default=None)
    return best if best is not None and likeness(best) >= NEAR else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """`: did you mean '...'?` with the candidate nearest to `name`, or nothing where none is near."""
    near = nearest(name, candidates)
    return "" if near is None else f": did you mean '{near}'?"


def shown(value: Any) -> str:
    """A given value as it appears in a message: as in YAML where it is short, cut where it is long."""
    text = (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
        if len(kinds) != 1:
            raise TypeError(f"a key of a config has one type, or one type or None, not {annotation}")
        return kinds[0], True
    return annotation, False


def _unknown_key(root: type, cls: type, path: str, name: Any, value: Any) -> str:
    full = _below(path, str(name))
    # a misspelt group on the command line arrives as {'optimiser': {'lr': ...}}: name all that the user typed
    while isinstance(value, Mapping) and len(value) == 1:
        name, value = next(iter(value.items()))
        full = _below(full, str(name))
    level = f"keys of {path}" if path else "keys"
    suggestion = did_you_mean(full, [key.path for key in all_keys(root)])
    return f"unknown key '{full}'{suggestion} ({level}: {', '.join(level_keys(cls))})"


def _checked_value(key: Key, value: Any, root: type) -> Any:
    if value is None and key.optional:
        return None
    if key.is_group:
        if not isinstance(value, Mapping):
            first = next(iter(level_keys(key.kind)))
            raise ConfigError(
                f"key '{key.path}' is a group of keys, set as '{key.path}.{first}=...', given {shown(value)} "
                f"(keys of {key.path}: {', '.join(level_keys(key.kind))})"
            )
        return checked(key.kind, value, key.path, root)
    origin = typing.get_origin(key.kind)
    if origin is dict:
        return _checked_mapping(key, value)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong_type(key, key.path, value, "written as [a,b]")
        entry = typing.get_args(key.kind)[0]
        return [_checked_scalar(key, f"{key.path}[{place}]", entry, each) for place, each in enumerate(value)]
    return _checked_scalar(key, key.path, key.kind, value)


def _checked_mapping(key: Key, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong_type(key, key.path, value, f"set as '{key.path}.<name>=...'")
    for name in value:
        if not isinstance(name, str):
            raise ConfigError(f"key '{key.path}': names below it are text, given {shown(name)}")
    return dict(value)


def _checked_scalar(key: Key, path: str, kind: type, value: Any) -> Any:
    for word, meant in key.words:
        if value in (word, meant, str(meant)):
            return meant
    try:
        value = _READERS[kind](value)
    except (ValueError, TypeError, OverflowError) as error:
        hint = "put it in quotes" if kind is str and isinstance(value, int | float) else ""
        raise _wrong_type(key, path, value, hint, kind) from error
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"key '{path}': '${{' is only for references such as ${{seed}}, given {shown(value)}")
    if key.choices is not None and value not in key.choices:
        near = did_you_mean(str(value), map(str, key.choices))
        raise ConfigError(f"key '{path}': {shown(value)} is not one of {', '.join(map(str, key.choices))}{near}")
    _check_range(key, path, value)
    return value


def _check_range(key: Key, path: str, value: Any) -> None:
    if key.low is None and key.high is None:
        return
    low = -math.inf if key.low is None else key.low
    high = math.inf if key.high is None else key.high
    if not (low <= value <= high and abs(value) != math.inf):
        raise ConfigError(f"key '{path}': {shown(value)} is out of range, allowed is {key.allowed}")


def _wrong_type(key: Key, path: str, value: Any, hint: str = "", kind: Any = None) -> ConfigError:
    expected = key.type_name if kind is None or kind is key.kind else kind_name(kind)
    expected += f" ({key.allowed})" if key.allowed else ""
    return ConfigError(f"key '{path}': expected {expected}, given {shown(value)}" + (f" ({hint})" if hint else ""))


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


def _truth(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    # a shell leaves the `~` of `data.shards=~/photos` as it is, and no folder is called `~`
    return os.path.expanduser(value) if value.startswith("~/") else value


_READERS: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: _number,
    bool: _truth,
    str: _text,
    Any: lambda value: value,
}
