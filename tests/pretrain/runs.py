"""What tests of whole runs share: what a run leaves, ways to crash it, and the command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pretrain.checkpoint import newest_checkpoint, read_checkpoint
from pretrain.config import PretrainConfig
from pretrain.loop import Training
from pretrain.run import pretrain
from ray_jobs.config import to_yaml

STEPS, STEPS_PER_EPOCH = 12, 6
COMMAND = "import sys\nfrom ray_jobs.cli import main\nsys.exit(main())\n"
ROOT = Path(__file__).resolve().parents[2]


class Crash(Exception):
    """Stands for a kill: nothing of ours handles it."""


def tensors(value: object, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor in a nested checkpoint, by its path."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: dict[str, torch.Tensor] = {}
    for key, part in parts:
        found |= tensors(part, f"{name}/{key}")
    return found


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    state = read_checkpoint(newest_checkpoint(folder / "checkpoints"))
    assert state["step"] == STEPS
    return tensors(state)


def metrics(folder: Path) -> pd.DataFrame:
    """All that was logged but the speed."""
    table = pd.read_csv(folder / "metrics.csv")
    return table.drop(columns=["images_per_s", *table.filter(regex="_ms$").columns])


def require_same_run(folder: Path, other: Path) -> None:
    """Weights, momentum, bank and metrics are equal bit for bit."""
    one, two = final_state(folder), final_state(other)
    assert one.keys() == two.keys()
    assert any("bank" in name for name in one)
    assert any("momentum_buffer" in name for name in one)
    for name in one:
        assert torch.equal(one[name], two[name]), name
    pd.testing.assert_frame_equal(metrics(folder), metrics(other), check_exact=True)


def saving_at_each_step(config: PretrainConfig) -> PretrainConfig:
    config.checkpoint.every_minutes = 1e-9
    return config


def crash_at(monkeypatch: pytest.MonkeyPatch, method: str, calls: set[int], before: bool = False) -> None:
    """Let the given calls of a method of the training, counted over all runs, crash before or after their work."""
    original, count = getattr(Training, method), [0]

    def crashing(self: Training, *arguments: object) -> object:
        count[0] += 1
        if before and count[0] in calls:
            raise Crash
        result = original(self, *arguments)
        if count[0] in calls:
            raise Crash
        return result

    monkeypatch.setattr(Training, method, crashing)


def run_until_finished(config: PretrainConfig, stops: type[BaseException] = Crash) -> int:
    """Run again and again; returns how often it was stopped."""
    for stopped in range(20):
        try:
            pretrain(config)
        except stops:
            continue
        return stopped
    raise AssertionError("the run is never finished")


def start(config: Any, folder: Path, verb: str = "pretrain") -> subprocess.Popen:
    """The command, in a process of its own, whose session holds all processes that it starts."""
    recipe = folder / f"{Path(config.out).name}.yaml"
    recipe.write_text(to_yaml(config))
    # A file, because several processes start by running it again.
    (folder / "murine.py").write_text(COMMAND)
    command = [sys.executable, str(folder / "murine.py"), verb, f"recipe={recipe}"]
    # Sums over another number of threads round otherwise; processes that train together have one each.
    threads = torch.get_num_threads() if getattr(config, "devices", 1) == 1 else 1
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
