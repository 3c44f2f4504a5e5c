"""The best epoch: by which measure, in which direction, and its file."""

import hashlib

import pytest

from pretrain.best import Best, keep_as_best
from pretrain.durable import is_intact, write_atomically


def best_epochs(measured: list[dict[str, float]], losses: list[float] | None = None) -> list[int]:
    """The epochs (from 1) that were the best when they ended."""
    best, found = Best(), []
    for epoch, values in enumerate(measured, 1):
        best.add_loss((losses or [1.0] * len(measured))[epoch - 1])
        if best.end_epoch(epoch, values):
            found.append(epoch)
    assert best.epoch == found[-1]
    return found


@pytest.mark.parametrize("measure", ["top1", "knn_accuracy"])
def test_the_higher_accuracy_is_better(measure):
    assert best_epochs([{measure: v} for v in (0.2, 0.1, 0.3, 0.3, 0.4)]) == [1, 3, 5]


def test_the_lower_loss_is_better_where_nothing_else_is_measured():
    assert best_epochs([{"rankme": 5.0}] * 4, [9.0, 9.5, 8.0, 8.0]) == [1, 3]


def test_the_objectives_own_accuracy_comes_first():
    assert best_epochs([{"top1": 0.1, "knn_accuracy": 0.9}, {"top1": 0.2, "knn_accuracy": 0.1}]) == [1, 2]


def test_epochs_without_a_probe_are_not_compared():
    assert best_epochs([{"knn_accuracy": 0.3}, {}, {"knn_accuracy": 0.2}, {"knn_accuracy": 0.4}]) == [1, 4]


def test_the_first_probe_takes_the_place_of_the_loss():
    assert best_epochs([{}, {"knn_accuracy": 0.3}, {}]) == [1, 2]


def test_the_state_goes_on_within_an_epoch():
    best = Best()
    best.add_loss(4.0)
    best = Best(**best.state())
    best.add_loss(2.0)
    assert best.end_epoch(1, {})
    assert best.value == 3.0


def test_the_best_file_outlives_the_one_that_it_was(tmp_path):
    for number, content in ((1, b"one"), (2, b"two")):
        path = tmp_path / f"step-{number}.pt"
        write_atomically(path, lambda file, content=content: file.write(content), checksum=True)
        for _ in range(2):  # as a run that is resumed does
            best = keep_as_best(path)
        assert keep_as_best(best) == best
        assert not list(tmp_path.glob(".*"))
        path.unlink()
        assert best.read_bytes() == content
        assert is_intact(best)
        assert (tmp_path / "best.pt.sha256").read_text().split()[0] == hashlib.sha256(content).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.pt",
        "best.pt.sha256",
        "step-1.pt.sha256",
        "step-2.pt.sha256",
    ]
