"""The folder that a run leaves: `config.yaml`, `status.json`, `metrics.csv`, and what the stage adds.

What comes in: a config dataclass. What goes out: a folder that belongs to exactly this config. The same config opens
the same folder again, to resume; another config never overwrites it.
"""

import csv
import dataclasses
import hashlib
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pretrain.durable import remove_leftovers, write_atomically

VERSIONS_OF = ("murine", "torch", "torchvision", "timm", "lightly", "webdataset", "numpy", "scikit-learn")
HASH_LENGTH = 8
# Keys that may differ when a run is resumed.
FREE_KEYS = ("out", "profile", "logging")


class RunFolder:
    """An open run folder; `status(...)` keeps `status.json` up to date."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.facts: dict[str, Any] = {
            "kind": kind,
            "state": "running",
            "started": now(),
            "versions": {name: version(name) for name in VERSIONS_OF} | {"python": platform.python_version()},
        }
        if (path / "status.json").exists():
            earlier = json.loads((path / "status.json").read_text())
            # Why it stopped before is no fact of the run that goes on.
            earlier.pop("message", None)
            self.facts = earlier | self.facts | {"started": earlier["started"]}

    def status(self, **facts: Any) -> None:
        """Add facts to `status.json`, for example state="finished"."""
        self.facts |= facts | {"updated": now()}
        text = json.dumps(self.facts, indent=1) + "\n"
        write_atomically(self.path / "status.json", lambda file: file.write(text.encode()))


def open_run(config: Any, kind: str, name: str) -> RunFolder:
    """The run folder `config.out`, or `runs/<name>-<hash of the config>`; created, or found with the same config.

    Raises:
        FileExistsError: the folder belongs to another config (the line names the first key that differs), or is
            something else.
    """
    keys = config_keys(config)
    digest = hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:HASH_LENGTH]
    path = Path(config.out or Path("runs") / f"{name.replace('/', '-')}-{digest}").expanduser().resolve()
    config_file = path / "config.yaml"
    if config_file.exists():
        # Keys that are younger than the run had the value that is now their default.
        defaults = flatten(config_keys(type(config)()))
        require_same_config(path, defaults | flatten(yaml.safe_load(config_file.read_text())), flatten(keys))
        return RunFolder(path, kind)
    if path.is_dir():
        # A kill while the config was written leaves a folder that is as good as empty.
        remove_leftovers(path, f".{config_file.name}.*.tmp")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not a run folder; choose another out=")
    path.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
    write_atomically(config_file, lambda file: file.write(text.encode()))
    return RunFolder(path, kind)


def config_keys(config: Any) -> dict[str, Any]:
    """All keys of a config but those that change nothing of what is computed, such as where it goes."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE_KEYS}


def flatten(keys: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def require_same_config(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in sorted(found.keys() | wanted.keys()):
        if key.partition(".")[0] not in FREE_KEYS and found.get(key) != wanted.get(key):
            raise FileExistsError(
                f"{path} is a run with {key}={found.get(key)!r}, not {wanted.get(key)!r}; "
                "choose another out=, or the same config to resume it"
            )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class MetricsFile:
    """`metrics.csv`: one row per record, columns in order of appearance, empty where not measured.

    Opened at a step, it forgets later rows, which a resumed run writes again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                # A kill can cut the last line short; a row counts when its last cell is there.
                rows = [row for row in reader if None not in row.values() and int(row["step"]) <= step]
                self.columns = list(reader.fieldnames or [])
            self.rewrite(rows)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; a column that is new is added to the whole table."""
        if new := [key for key in row if key not in self.columns]:
            rows = list(csv.DictReader(self.path.open(newline=""))) if self.path.exists() else []
            self.columns += new
            self.rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)
