"""The profiler: a trace and a table of real steps, and a line where training was too short."""

import gzip
import json

import torch

from pretrain.profiler import profile_steps


def train(profiler: torch.profiler.profile, steps: int) -> None:
    layer = torch.nn.Linear(8, 8)
    for _ in range(steps):
        with torch.profiler.record_function("forward_backward"):
            layer(torch.ones(4, 8)).sum().backward()
        profiler.step()


def test_a_few_steps_become_a_trace_and_a_table(tmp_path, capsys):
    with profile_steps(tmp_path, wait=2, warmup=1, active=3) as profiler:
        train(profiler, 10)
    with gzip.open(tmp_path / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    spans = [
        event
        for event in events
        if event.get("name") == "forward_backward" and event.get("cat") != "gpu_user_annotation"
    ]
    assert len(spans) == 3
    table = (tmp_path / "profile.txt").read_text()
    assert "aten::addmm" in table
    assert "Self CPU time total" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile.txt", "trace.json.gz"]
    assert "trace.json.gz (open in https://ui.perfetto.dev)" in capsys.readouterr().err


def test_the_table_has_the_costliest_operations(tmp_path):
    with profile_steps(tmp_path, wait=0, warmup=1, active=2) as profiler:
        train(profiler, 4)
    rows = [line for line in (tmp_path / "profile.txt").read_text().splitlines() if "aten::" in line]
    assert 3 < len(rows) <= 20


def test_a_training_that_ends_while_recording_leaves_what_there_is(tmp_path):
    with profile_steps(tmp_path, wait=1, warmup=1, active=100) as profiler:
        train(profiler, 5)
    assert (tmp_path / "trace.json.gz").is_file()


def test_a_training_that_ends_before_says_so(tmp_path, capsys):
    with profile_steps(tmp_path, wait=2, warmup=2, active=2) as profiler:
        train(profiler, 2)
    assert list(tmp_path.iterdir()) == []
    assert "no profile: training ended within the first 4 steps" in capsys.readouterr().err
