"""The table of models: every one has a row in the committed file, and rows made anew are those."""

from pathlib import Path

import pytest

from pretrain.models import list_models
from pretrain.models.cores import list_cores
from ray_jobs.models_table import HEADER, row, write_table

TABLE = Path(__file__).parents[2] / "docs" / "models.md"


def test_every_model_has_a_row():
    lines = TABLE.read_text().split("\n")
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == [*list_models(), *list_cores()]
    assert TABLE.read_text().startswith(HEADER)


@pytest.mark.parametrize("name", ["alexnet_bn", "dual_stream", "backbone", "factorized3d", "stacked2d"])
def test_rows_are_those_of_the_file(name):
    assert row(name) in TABLE.read_text().split("\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["viv1t", "dynamic_vfm", "gru_stacked2d"])
def test_rows_of_large_models_are_those_of_the_file(name):
    assert row(name) in TABLE.read_text().split("\n")


def test_a_table_of_some_models(tmp_path):
    write_table(tmp_path / "some.md", ["stacked2d"])
    *_, rule, line = (tmp_path / "some.md").read_text().splitlines()
    assert rule.count("---") == line.count(" | ") + 1
    assert "27 x 27" in line
