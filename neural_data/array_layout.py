"""The names of the arrays layout: which array belongs to which animal, and what must be there.

Comes in: arrays by the names that they have in a file. Goes out: arrays by animal and name; every name is one of the
layout's, or there is a ValueError of one line with the nearest name. `arrays.py` says what each array holds.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neural_data.tables import NEURON_COLUMNS

STIMULI = ("images", "videos")
TRIAL_TEXTS = ("tier", "stimulus_class", "trial_id")
TRIAL_NAMES = (*TRIAL_TEXTS, "frames", "withheld", "start_s")
OF_ONE_ANIMAL = ("behavior", "behavior_names", "pupil_center")
ANIMAL_NAMES = (*STIMULI, "responses", *NEURON_COLUMNS, *TRIAL_NAMES, *OF_ONE_ANIMAL)
NUMBERS = ("sampling_rate_hz", "response_start_ms")
RECORDING_NAMES = (*NUMBERS, "notes")
NEURONS, TRIALS, EXTRA = "neurons_", "trials_", "extra_"
NAMES = (*ANIMAL_NAMES, *RECORDING_NAMES)
CLOSE = 0.7


def by_animal(path: Path, arrays: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Arrays by prefix ("" for none) and name, each with what is required, and those of the recording as a whole."""
    groups: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    animals = [key.removesuffix("_responses") for key in arrays if key.endswith("_responses") and not _is_open(key)]
    for key, values in arrays.items():
        if key in RECORDING_NAMES or key.startswith(EXTRA):
            whole[key] = values
            continue
        prefix, name = _parted(key, animals)
        if not name:
            raise ValueError(_unknown(path, key, list(arrays)))
        groups.setdefault(prefix, {})[name] = values
    _check_required(path, groups or {"": {}}, list(arrays))
    return groups, whole


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`; nearest: <the name that is most like it>`, "" where none is."""
    # What follows an underscore is tried, too: it may be a misspelt name behind an animal's prefix.
    parts = name.split("_")
    tails = ["_".join(parts[i:]) for i in range(len(parts))]
    close = [match for tail in tails for match in difflib.get_close_matches(tail, list(names), n=1, cutoff=cutoff)]
    return f"; nearest: {close[0]}" if close else ""


def misspelt_columns(names: Iterable[str]) -> list[str]:
    """A line for each further column of the neuron table whose name is close to one of the layout's that is absent."""
    names = set(names)
    absent = [name for name in NEURON_COLUMNS if name not in names]
    extra = sorted(name.removeprefix(NEURONS) for name in names if name.startswith(NEURONS))
    close = {column: difflib.get_close_matches(column, absent, n=1, cutoff=CLOSE) for column in extra}
    return [f"neurons: {column} is kept as it is; is {match[0]} meant?" for column, match in close.items() if match]


def _is_open(key: str) -> bool:
    """Whether what follows the prefix may be any name."""
    return key.startswith((NEURONS, TRIALS, EXTRA))


def _parted(key: str, animals: list[str]) -> tuple[str, str]:
    """The animal's prefix and the name of the layout; no name where it has none of these."""
    if key in ANIMAL_NAMES or _is_open(key):
        return "", key
    for animal in sorted(animals, key=len, reverse=True):
        rest = key.removeprefix(f"{animal}_")
        if rest != key and (rest in ANIMAL_NAMES or rest.startswith((NEURONS, TRIALS))):
            return animal, rest
    name = max((name for name in ANIMAL_NAMES if key.endswith(f"_{name}")), key=len, default="")
    return key.removesuffix(f"_{name}") if name else "", name


def _unknown(path: Path, key: str, there: list[str]) -> str:
    # A misspelt name of what is required is best told as the missing one, with the nearest of what is there.
    for name, others in (("images", STIMULI), ("responses", ("responses",))):
        if not any(k == other or k.endswith(f"_{other}") for k in there for other in others):
            return f"{path}: {name}: not there; found {', '.join(there)}{nearest(name, there)}"
    expected = f"{', '.join(NAMES)}, {NEURONS}*, {TRIALS}* or {EXTRA}*"
    return f"{path}: {key}: is no name of this layout; expected {expected}{nearest(key, NAMES)}"


def _check_required(path: Path, groups: Mapping[str, Mapping[str, Any]], there: list[str]) -> None:
    for prefix, group in groups.items():
        start = f"{prefix}_" if prefix else ""
        for name, others in (("images", STIMULI), ("responses", ("responses",))):
            if not any(other in group for other in others):
                found = ", ".join(there) if there else "no arrays"
                raise ValueError(f"{path}: {start}{name}: not there; found {found}{nearest(f'{start}{name}', there)}")
        if all(name in group for name in STIMULI):
            raise ValueError(f"{path}: {start}videos: found beside {start}images, expected one of the two")
        if prefix and "animal" in group:
            raise ValueError(f"{path}: {prefix}_animal: found beside the prefix {prefix!r}, which is the animal's name")
    if "" in groups and len(groups) > 1:
        raise ValueError(
            f"{path}: found names without prefix ({', '.join(groups[''])}) and with "
            f"({', '.join(sorted(set(groups) - {''}))}), expected one or the other"
        )
