"""The probe: kNN against plain and published implementations, ranks of known features, what is measured and when."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pretrain.config import PROBE_MEASURES, ProbeConfig
from pretrain.probe import FeaturesNotFinite, Probe, knn_accuracy, probe_is_due, rankme, relative_spread
from pretrain.probe_images import ProbeImages
from pretrain.shard_set import open_shards


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


def test_knn_equals_lightly():
    from lightly.utils.benchmarking import knn_predict

    bank, features = unit(3000, 16, 0), unit(1100, 16, 1)
    bank_labels, labels = torch.arange(3000) % 7, torch.arange(1100) % 7
    theirs = knn_predict(features, bank.T, bank_labels, num_classes=7, knn_k=200, knn_t=0.1)[:, 0]
    assert knn_accuracy(bank, bank_labels, features, labels, 200, 0.1) == int((theirs == labels).sum()) / 1100


def test_a_low_temperature_is_the_vote_of_the_nearest():
    bank, features = unit(50, 6, 0), unit(30, 6, 1)
    bank_labels, labels = torch.arange(50) % 3, torch.arange(30) % 3
    nearest = bank_labels[(features @ bank.T).argmax(1)]
    assert knn_accuracy(bank, bank_labels, features, labels, 20, 1e-3) == int((nearest == labels).sum()) / 30


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


def test_spread_equals_lightly():
    from lightly.utils.debug import std_of_l2_normalized

    features = unit(200, 16, 0) * torch.linspace(0.1, 1, 16)
    features = F.normalize(features, dim=1)
    assert relative_spread(features) == pytest.approx(float(std_of_l2_normalized(features)) * 4)


class Constant(nn.Module):
    """A collapsed backbone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 8) + 1e-4 * images.mean((2, 3)).repeat(1, 3)[:, :8]


class Pixels(nn.Module):
    """Features are the mean colours, which tell the classes of the tiny shards apart."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.was_training = self.training
        return images.mean((2, 3)) - images.mean((1, 2, 3))[:, None]


class Broken(nn.Module):
    """A backbone that overflows on the first image of each batch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) / (torch.arange(len(images)) > 0)[:, None]


def plain_view(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["images"].float() / 255


def mirrored_views(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The image and its negative, whose colours are opposite."""
    return torch.stack([plain_view(batch), 1 - plain_view(batch)])


def probe(shards, labelled=None, two_views=None, **keys) -> Probe:
    config = ProbeConfig(**({"k": 5} | keys))
    held_out = open_shards(labelled) if labelled else None
    return Probe(open_shards(shards), held_out, config, plain_view, two_views)


def test_measure_gives_all_figures_and_keeps_the_mode(tiny_shards, capsys):
    backbone = Pixels().train()
    notes = []
    measured = probe(tiny_shards, tiny_shards, mirrored_views).measure(backbone, notes.append)
    assert set(measured) == {
        "knn_accuracy", "linear_accuracy", "rankme", "feature_std", "uniformity", "alignment",
    }  # fmt: skip
    assert measured["knn_accuracy"] == measured["linear_accuracy"] == 1.0
    assert 1 < measured["rankme"] <= 3
    assert -4 < measured["uniformity"] < 0
    assert measured["alignment"] == pytest.approx(4)
    assert all(type(value) is float for value in measured.values())
    assert {"probe: 50 of 50 images of tiny", "probe: two views of 50 images", "probe: linear probe"} <= set(notes)
    assert backbone.training
    assert not backbone.was_training
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize("measure", PROBE_MEASURES)
def test_only_what_is_wanted_is_measured(tiny_shards, measure):
    one = probe(tiny_shards, tiny_shards, mirrored_views, measures=[measure])
    name = {"knn": "knn_accuracy", "linear": "linear_accuracy"}.get(measure, measure)
    everything = probe(tiny_shards, tiny_shards, mirrored_views).measure(Pixels())
    assert one.measure(Pixels()) == {name: everything[name]}


def test_without_labels_and_random_views_there_are_no_accuracies_and_no_alignment(tiny_shards):
    assert set(probe(tiny_shards).measure(Pixels())) == {"rankme", "feature_std", "uniformity"}


def test_statistics_of_a_mixed_precision_run_are_not_rounded(tiny_shards):
    one = probe(tiny_shards, tiny_shards, measures=["rankme", "uniformity", "knn", "linear"])
    bank = unit(400, 16, 0), torch.arange(400) % 3
    test = unit(400, 16, 1), torch.arange(400) % 3
    expected = one.shape_of(test[0]) | one.accuracies(bank, test)
    with torch.autocast("cpu", torch.bfloat16):
        assert one.shape_of(test[0]) | one.accuracies(bank, test) == expected


def test_only_so_many_images_are_measured(tiny_shards):
    notes = []
    images = ProbeImages(open_shards(tiny_shards), 10)
    features, labels = probe(tiny_shards).features(Pixels(), images, 7, notes.append)
    assert notes[-1].endswith("7 of 7 images of tiny")
    assert features.shape == (7, 3)
    assert labels.shape == (7,)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(7))


def test_features_that_are_no_numbers_are_one_line(tiny_shards):
    with pytest.raises(
        FeaturesNotFinite, match=r"features of 1 of 50 images of tiny are not finite numbers; lower opt"
    ):
        probe(tiny_shards).measure(Broken())


def test_collapse_is_warned_of_once_even_after_resuming(tiny_shards, capsys):
    one, resumed = probe(tiny_shards), probe(tiny_shards)
    assert one.measure(Constant())["feature_std"] < 0.01
    one.measure(Constant())
    resumed.restore(one.state())
    resumed.measure(Constant())
    said = capsys.readouterr().err
    assert said.count("WARNING: the features are collapsing: their spread is 0.0") == 1
    assert "RankMe 1." in said
    assert "lower optimizer.lr" in said


def rows_of_rank(rank: int, features: int) -> torch.Tensor:
    """Unit rows (400, features) in so many directions, far apart from each other."""
    return F.normalize(unit(400, rank, 0) @ unit(rank, features, 1), dim=1)


@pytest.mark.parametrize(
    ("rank", "features", "keys", "warned"),
    [
        (1, 300, {}, True),
        (2, 300, {}, True),
        (20, 300, {}, False),
        (2, 300, {"collapse_rank": 1.5}, False),
        (1, 300, {"collapse_rank": 0.0}, False),
        # Few features have a low rank without any collapse.
        (2, 60, {}, False),
    ],
)
def test_features_in_few_directions_are_warned_of_though_their_spread_is_large(
    tiny_shards, capsys, rank, features, keys, warned
):
    one, rows = probe(tiny_shards, **keys), rows_of_rank(rank, features)
    measured = one.shape_of(rows)
    assert measured["feature_std"] > 0.5
    for _ in range(2):
        one.warn_of_collapse(measured, min(rows.shape))
    said = capsys.readouterr().err
    assert said.count("WARNING: the features are collapsing") == warned
    assert (f"RankMe {measured['rankme']:.1f} of {features} (warned below 3.00)" in said) == warned


def test_time_is_counted_by_measure(tiny_shards):
    one = probe(tiny_shards, tiny_shards, mirrored_views)
    one.measure(Pixels())
    assert set(one.time.parts) == {"features", "shape", "alignment", "knn", "linear"}
    assert 0 < sum(one.time.parts.values()) <= one.time.probing


class Reddish(nn.Module):
    """An objective that knows the two classes of the tiny shards, green and red."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))[:, [1, 0]]


def test_classification_is_of_all_held_out_images(tiny_shards):
    notes = []
    objective = Reddish().train()
    one = probe(tiny_shards, tiny_shards, test_images=3)
    assert one.classification(objective, notes.append) == {"top1": 1.0, "top5": 1.0}
    assert notes[-1] == "classified 50 of 50 held-out images"
    assert objective.training


@given(
    every_epochs=st.integers(0, 3),
    every_steps=st.integers(0, 12),
    steps_per_epoch=st.integers(1, 7),
)
def test_probes_are_due_at_ends_of_epochs_and_after_steps(every_epochs, every_steps, steps_per_epoch):
    config = ProbeConfig(every_epochs=every_epochs, every_steps=every_steps)
    found = {step for step in range(60) if probe_is_due(config, step, steps_per_epoch)}
    by_epochs = set(range(0, 60, every_epochs * steps_per_epoch)) if every_epochs else set()
    by_steps = set(range(0, 60, every_steps)) if every_steps else set()
    assert found == (by_epochs | by_steps) - {0}
