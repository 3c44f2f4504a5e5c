"""Every benchmark runs, and ends with its figures as one line of JSON. What the figures are is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIGURES = {
    "mapping.py": {"speedup", "ms_per_fit"},
    "clip_path.py": {"clips_per_s_per_core", "speedup_vs_torchvision", "decode_limit", "mib_a_batch"},
    "data_path.py": {
        "speedup_vs_lightly_jpeg",
        "speedup_vs_lightly_shards",
        "images_per_s_per_core",
        "decode_limit",
    },
    "encoder_step.py": {"dwiseneuro", "viv1t", "dynamic_vfm", "factorized3d", "gru_rotation_equivariant", "v1t"},
    "noise_ceilings.py": {"bias_at_50"},
    "objectives.py": {"random weights, seed 1", "autoencoding, seed 1", "depth_prediction, seed 1"},
    "predictivity.py": {"speedup", "max_score_difference", "seconds", "peak_gb"},
    "prediction.py": {"windows_per_s_ratio", "processor_time_ratio", "max_difference"},
    "readout_step.py": {"factorised_train", "viv1t_evaluate"},
    "neural_stream.py": {"windows_per_s_ratio", "peak_gb", "data_wait_share"},
    "memory.py": {"growth_mib", "murine_mib_at_10_shards"},
    "train_step.py": {"alexnet_bn, simclr, 32-true", "alexnet_bn, instance_recognition, 32-true"},
}


@pytest.mark.slow
@pytest.mark.parametrize("script", FIGURES)
def test_a_benchmark_prints_its_figures(script):
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script), "--quick"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.keys() >= FIGURES[script]
    if script == "train_step.py":
        for each in figures.values():
            assert each["images_per_s"] > 0
            assert each["share_of_model_only"] > 0
    if script == "encoder_step.py":
        for each in figures.values():
            assert each["time_ratio"] > 0
            assert each["memory_ratio"] > 0
            assert each["max_output_difference"] < 2e-5


def test_every_benchmark_is_run():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "def main" in path.read_text()}
    assert scripts == FIGURES.keys()
