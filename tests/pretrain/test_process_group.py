"""Which process speaks, and which errors are those of another one. Two processes train in test_engine.py."""

import pytest

from pretrain.process_group import is_first_process, is_lost_process
from pretrain.progress import say


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False), ("3", False)])
def test_the_first_process_speaks(monkeypatch, capsys, rank, first):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert is_first_process() is first
    say("line")
    assert capsys.readouterr().err == ("line\n" if first else "")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("gloo"), False),
        (None, False),
    ],
)
def test_what_is_the_end_of_another_process(error, lost):
    assert is_lost_process(error) is lost
