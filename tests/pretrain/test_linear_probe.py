"""The linear probe: the minimum that scikit-learn finds, the known best accuracy, and the choice of the penalty."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from pretrain import linear_probe
from pretrain.linear_probe import LinearProbe, cross_entropy, fit_linear_probe, leading_directions, minimise


def correlated(images: int, columns: int, classes: int, seed: int, floor: float = 1e-2) -> tuple[torch.Tensor, ...]:
    """Standardised features (images, columns) in double precision, as correlated as a network's, and classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    labels[:classes] = torch.arange(classes)
    centres = torch.randn(classes, columns, generator=generator, dtype=torch.double)
    noise = torch.randn(images, columns, generator=generator, dtype=torch.double)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.double)
    mix *= torch.logspace(0, math.log10(floor), columns, dtype=torch.double)[:, None]
    features = (centres[labels] + 2 * noise) @ mix
    return (features - features.mean(0)) / features.std(0), labels


def of_scikit_learn(features: torch.Tensor, labels: torch.Tensor, penalty: float) -> LogisticRegression:
    solver = LogisticRegression(C=1 / (penalty * len(features)), tol=1e-8, max_iter=10_000)
    return solver.fit(features.numpy(), labels.numpy())


@settings(deadline=None, max_examples=10)
@given(
    images=st.integers(20, 120),
    columns=st.integers(1, 30),
    classes=st.integers(3, 6),  # of two, scikit-learn fits one difference, which is penalised half as much
    seed=st.integers(0, 99),
)
def test_the_minimum_is_that_of_scikit_learn_for_every_penalty(images, columns, classes, seed):
    features, labels = correlated(images, columns, classes, seed)
    penalties = [1e-3, 1e-2, 1.0]
    weights, bias = minimise(features, labels, classes, penalties, steps=2000)
    losses = cross_entropy(features, labels, weights, bias)
    for number, penalty in enumerate(penalties):
        theirs = of_scikit_learn(features, labels, penalty)
        logits = torch.tensor(theirs.decision_function(features.numpy()))
        expected = torch.nn.functional.cross_entropy(logits, labels) + penalty / 2 * float((theirs.coef_**2).sum())
        found = losses[number] + penalty / 2 * weights[:, number].square().sum()
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
        torch.testing.assert_close(
            (features @ weights[:, number] + bias[number]).softmax(1), logits.softmax(1), rtol=0, atol=5e-3
        )


def test_few_directions_find_the_same_minimum(monkeypatch):
    features, labels = correlated(200, 40, 4, 0)
    exact = minimise(features, labels, 4, [1e-2])[0]
    monkeypatch.setattr(linear_probe, "DIRECTIONS", 5)
    torch.testing.assert_close(minimise(features, labels, 4, [1e-2])[0], exact, rtol=0, atol=2e-3)


def test_the_minimum_of_badly_conditioned_features_is_reached_in_single_precision():
    features, labels = correlated(2000, 60, 5, 1, floor=1e-3)
    weights, bias = minimise(features.float(), labels, 5, [1e-4])
    theirs = of_scikit_learn(features, labels, 1e-4)
    logits = torch.tensor(theirs.decision_function(features.numpy()))
    expected = float(torch.nn.functional.cross_entropy(logits, labels)) + 5e-5 * float((theirs.coef_**2).sum())
    found = float(cross_entropy(features.float(), labels, weights, bias)[0]) + 5e-5 * float(weights.square().sum())
    assert found == pytest.approx(expected, rel=1e-4)
    assert LinearProbe(weights[:, 0], bias[0], torch.zeros(60), torch.ones(60), torch.arange(5), 1e-4).accuracy(
        features.float(), labels
    ) == pytest.approx(theirs.score(features.numpy(), labels.numpy()), abs=2e-3)


def gaussians(images: int, distance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes of unit variance whose centres are so far apart in the first of eight features."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 2
    features = torch.randn(images, 8, generator=generator)
    features[:, 0] += distance * (labels - 0.5)
    return features, labels


def test_the_accuracy_on_two_gaussians_is_the_best_there_is():
    distance, images = 2.0, 4000
    probe = fit_linear_probe(*gaussians(images, distance, 0))
    found = probe.accuracy(*gaussians(images, distance, 1))
    best = 0.5 * (1 + math.erf(distance / 2 / math.sqrt(2)))
    assert abs(found - best) < 4 * math.sqrt(best * (1 - best) / images)


def test_separable_classes_are_told_apart_without_error():
    probe = fit_linear_probe(*gaussians(400, 20.0, 0))
    assert probe.accuracy(*gaussians(400, 20.0, 1)) == 1.0


def test_the_penalty_is_large_where_there_is_nothing_to_learn_and_small_where_there_is():
    features = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(2, (200,), generator=torch.Generator().manual_seed(1))
    assert fit_linear_probe(features, labels).penalty == max(linear_probe.PENALTIES)
    assert fit_linear_probe(*gaussians(400, 20.0, 0)).penalty == min(linear_probe.PENALTIES)


def test_the_held_out_images_have_all_classes_where_shards_are_in_their_order():
    features, labels = gaussians(400, 4.0, 0)
    order = labels.argsort(stable=True)
    assert fit_linear_probe(features[order], labels[order]).accuracy(*gaussians(400, 4.0, 1)) > 0.95


def test_the_scale_of_features_and_constant_ones_make_no_difference():
    features, labels = gaussians(300, 2.0, 0)
    scaled = torch.cat([features * torch.logspace(-3, 3, 8) + 5, torch.full((300, 1), 7.0)], 1)
    one, other = fit_linear_probe(features, labels), fit_linear_probe(scaled, labels)
    assert one.penalty == other.penalty
    torch.testing.assert_close(other.logits(scaled), one.logits(features), rtol=0, atol=0.02)


def test_labels_need_not_be_dense_and_unknown_ones_count_as_wrong():
    features, labels = gaussians(400, 20.0, 0)
    probe = fit_linear_probe(features, labels * 30 + 7)
    assert probe.labels.tolist() == [7, 37]
    assert probe.accuracy(features, labels * 30 + 7) == 1.0
    assert probe.accuracy(features, labels) == 0.0


def test_too_few_images_are_one_line():
    with pytest.raises(ValueError, match=r"needs 10 or more, found 9; raise probe\.bank_images, or leave `linear` out"):
        fit_linear_probe(torch.randn(9, 2), torch.arange(9) % 2)


def test_fitting_leaves_the_random_numbers_of_training_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.no_grad():
        first = fit_linear_probe(*gaussians(100, 2.0, 0))
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    assert not first.weights.requires_grad
    assert torch.equal(first.weights, fit_linear_probe(*gaussians(100, 2.0, 0)).weights)


def test_leading_directions_are_those_of_most_variance():
    features, _ = correlated(300, 20, 3, 0)
    variance = torch.linalg.eigvalsh(features.T @ features / 300)
    axes, found = leading_directions(features, 256)
    torch.testing.assert_close(found, variance)
    torch.testing.assert_close(axes.T @ axes, torch.eye(20, dtype=torch.double))
    assert leading_directions(features, 4)[1][-1] == pytest.approx(float(variance[-1]), rel=0.01)
