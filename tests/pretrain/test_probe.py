"""The probe: kNN against a plain implementation, ranks of known features, and the warning of collapse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pretrain.config import ProbeConfig
from pretrain.probe import Probe, knn_accuracy, rankme, relative_spread
from pretrain.stream import open_shards


def unit(rows: int, columns: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)), dim=1)


def plain_knn(bank, bank_labels, features, labels, k, temperature) -> float:
    """Weighted vote of the k nearest, image by image."""
    right = 0
    for feature, label in zip(features.double(), labels.tolist(), strict=True):
        similarity = [float(row @ feature) for row in bank.double()]
        nearest = sorted(range(len(bank)), key=lambda row: -similarity[row])[:k]
        votes: dict[int, float] = {}
        for row in nearest:
            votes[int(bank_labels[row])] = votes.get(int(bank_labels[row]), 0) + math.exp(similarity[row] / temperature)
        right += max(votes, key=votes.get) == label
    return right / len(features)


@settings(deadline=None, max_examples=30)
@given(
    k=st.integers(1, 60),
    classes=st.integers(1, 6),
    temperature=st.sampled_from([0.07, 0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_knn_equals_the_plain_implementation(k, classes, temperature, seed):
    bank, features = unit(40, 6, seed), unit(25, 6, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    bank_labels, labels = (torch.randint(classes, (n,), generator=generator) for n in (40, 25))
    found = knn_accuracy(bank, bank_labels, features, labels, k, temperature)
    assert found == plain_knn(bank, bank_labels, features, labels, k, temperature)


def clusters(classes: int = 5, each: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(classes).repeat(each)
    noise = torch.randn(len(labels), 16, generator=torch.Generator().manual_seed(0))
    return F.normalize(10 * torch.eye(16)[labels] + noise, dim=1), labels


def test_knn_is_right_on_separated_clusters_and_at_chance_on_shuffled_labels():
    features, labels = clusters()
    assert knn_accuracy(features[:400], labels[:400], features[400:], labels[400:], 20, 0.1) == 1.0
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    chance = knn_accuracy(features[:400], shuffled[:400], features[400:], shuffled[400:], 20, 0.1)
    assert abs(chance - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 200)


def test_a_label_that_the_bank_lacks_counts_as_wrong():
    bank, features = unit(20, 4, 0), unit(10, 4, 1)
    assert knn_accuracy(bank, torch.zeros(20, dtype=torch.long), features, torch.full((10,), 7), 5, 0.1) == 0.0


@pytest.mark.parametrize("dimension", [4, 32])
@pytest.mark.parametrize("rows", [20, 3000])
def test_rankme_of_isotropic_features_is_nearly_their_dimension(dimension, rows):
    found = rankme(unit(rows, dimension, 0))
    most = min(dimension, rows)
    assert found <= most + 0.01
    assert found > (0.97 if rows > 10 * dimension else 0.75) * most


def test_rankme_of_few_directions():
    for rank in (1, 3):
        features = torch.randn(500, rank, dtype=torch.double) @ torch.randn(rank, 40, dtype=torch.double)
        assert rankme(features) == pytest.approx(rank, rel=0.25 if rank > 1 else 1e-3)


def test_rankme_is_the_exponential_of_the_entropy_of_singular_values():
    orthogonal = torch.linalg.qr(torch.randn(60, 8, dtype=torch.double))[0]
    singular = torch.tensor([8.0, 4, 2, 1, 0.5, 0.25, 0.125, 0.0625], dtype=torch.double)
    share = singular / singular.sum()
    expected = math.exp(-float((share * share.log()).sum()))
    assert rankme(orthogonal * singular) == pytest.approx(expected, rel=1e-4)
    assert rankme((orthogonal * singular).T) == pytest.approx(expected, rel=1e-4)


def test_spread_is_one_for_isotropic_features_and_zero_for_equal_ones():
    assert relative_spread(unit(5000, 64, 0)) == pytest.approx(1, abs=0.02)
    assert relative_spread(unit(1, 64, 0).expand(100, -1)) == pytest.approx(0, abs=1e-5)


class Constant(nn.Module):
    """A collapsed backbone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 8) + 1e-4 * images.mean((2, 3)).repeat(1, 3)[:, :8]


class Pixels(nn.Module):
    """Features are the mean colours, which tell the classes of the tiny shards apart."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.was_training = self.training
        return images.mean((2, 3)) - images.mean((1, 2, 3))[:, None]


def probe(shards, labelled=None, **keys: float) -> Probe:
    config = ProbeConfig(**({"k": 5} | keys))
    held_out = open_shards(labelled) if labelled else None
    return Probe(open_shards(shards), held_out, config, lambda batch: batch["images"].float() / 255)


def test_measure_gives_all_figures_and_keeps_the_mode(tiny_shards, capsys):
    backbone = Pixels().train()
    measured = probe(tiny_shards, tiny_shards).measure(backbone)
    assert measured["knn_accuracy"] == 1.0
    assert 1 < measured["rankme"] <= 3
    assert backbone.training
    assert not backbone.was_training
    assert "WARNING" not in capsys.readouterr().err


def test_without_labels_there_is_no_knn(tiny_shards):
    assert set(probe(tiny_shards).measure(Pixels())) == {"rankme", "feature_std"}


def test_only_so_many_images_are_measured(tiny_shards):
    notes = []
    features, labels = probe(tiny_shards).features(Pixels(), open_shards(tiny_shards), 7, notes.append)
    assert notes[-1].endswith("of 7 images of tiny")
    assert features.shape == (7, 3)
    assert labels.shape == (7,)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7))


def test_collapse_is_warned_of_once(tiny_shards, capsys):
    one = probe(tiny_shards)
    assert one.measure(Constant())["feature_std"] < 0.01
    one.measure(Constant())
    said = capsys.readouterr().err
    assert said.count("WARNING: the features are collapsing: their spread is 0.0") == 1
    assert "lower optimizer.lr" in said
