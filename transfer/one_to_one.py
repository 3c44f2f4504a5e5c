"""From features to neurons by correlation: the one best feature of each neuron, or a regression on its best ones.

What comes in: features X (stimuli, features), an array or a memory map, and responses Y (stimuli, neurons). What goes
out: predicted responses. Source: the maps `corr` and `identity` of mouse-vision (Nayebi, Kong et al., PLOS Comput Biol
19(10):e1011506, 2023). Correlations are signed: a feature that falls where a neuron rises is no match. A feature that
is the same for all train stimuli correlates with nothing; a neuron that always responds alike, and so correlates with
no feature, has the last of them, as there.
"""

import numpy as np
from sklearn.base import RegressorMixin, clone
from sklearn.linear_model import Ridge

from transfer.mapping import check_shapes
from transfer.sample_space import check_finite, feature_blocks

# Correlations held at a time.
BLOCK_BYTES = 64 * 2**20


class OneToOneMapping:
    """Predicts a neuron by the feature that correlates most with it on the train stimuli, as that feature is."""

    rotation_invariant = False

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "OneToOneMapping":
        """Fit X (stimuli, features) to Y (stimuli, neurons); keeps `feature_` (neurons,), the first of equal ones."""
        check_shapes(X, np.asarray(Y))
        self.feature_ = best_features(X, np.asarray(Y, np.float64))
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The features (stimuli, neurons) of X (stimuli, features)."""
        return np.asarray(X[:, self.feature_], np.float64)

    def fit_predict_many(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """Fit X (stimuli, features) to each Y (sets, stimuli, neurons); predict X_test: (sets, tests, neurons).

        Keeps `feature_` (sets, neurons).
        """
        Y = np.asarray(Y, np.float64)
        check_shapes(X, Y, X_test)
        sets, stimuli, neurons = Y.shape
        columns = Y.transpose(1, 0, 2).reshape(stimuli, sets * neurons)
        feature = best_features(X, columns)
        self.feature_ = feature.reshape(sets, neurons)
        # Each feature is read once, however many neurons have it.
        used, place = np.unique(feature, return_inverse=True)
        predicted = np.asarray(X_test[:, used], np.float64)[:, place]
        check_finite(predicted)
        return predicted.reshape(len(X_test), sets, neurons).transpose(1, 0, 2)


class BestFeaturesMapping:
    """Predicts a neuron by a regression on the features whose correlation is at or above a percentile of all.

    Args:
        percentile: of the correlations of all features with the neuron; 100 is the one best, 0 is all.
        regression: any regressor of scikit-learn, such as `Ridge`, `Lasso` or `ElasticNet`; fitted anew per neuron.
    """

    rotation_invariant = False

    def __init__(self, percentile: float = 100, regression: RegressorMixin | None = None) -> None:
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile must be from 0 to 100, found {percentile}")
        self.percentile = percentile
        self.regression = regression

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "BestFeaturesMapping":
        """Fit X (stimuli, features) to Y (stimuli, neurons).

        Keeps `features_`, the chosen ones of each neuron, and `regressions_`, those that were fitted.
        """
        X, Y = np.asarray(X, np.float64), np.asarray(Y, np.float64)
        check_shapes(X, Y)
        check_finite(X, Y)
        correlation = unit_columns(X).T @ unit_columns(Y)
        self.features_ = [chosen_features(of_neuron, self.percentile) for of_neuron in correlation.T]
        regression = Ridge() if self.regression is None else self.regression
        self.regressions_ = [
            clone(regression).fit(X[:, chosen], y) for chosen, y in zip(self.features_, Y.T, strict=True)
        ]
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Predicted responses (stimuli, neurons) for X (stimuli, features)."""
        X = np.asarray(X, np.float64)
        pairs = zip(self.features_, self.regressions_, strict=True)
        return np.column_stack([regression.predict(X[:, chosen]) for chosen, regression in pairs])

    def fit_predict_many(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """Fit X (stimuli, features) to each Y (sets, stimuli, neurons), one by one; predict X_test."""
        check_shapes(X, np.asarray(Y), X_test)
        return np.stack([self.fit(X, one).predict(X_test) for one in Y])


class IdentityMapping:
    """The features themselves, for scores that compare populations, such as RSA."""

    rotation_invariant = False

    def fit(self, X: np.ndarray, Y: np.ndarray) -> "IdentityMapping":
        """Learns nothing."""
        check_shapes(X, np.asarray(Y))
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """X (stimuli, features) in float64."""
        return np.asarray(X, np.float64)

    def fit_predict_many(self, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
        """X_test for each set: (sets, tests, features), a view of one copy."""
        check_shapes(X, np.asarray(Y), X_test)
        return np.broadcast_to(np.asarray(X_test, np.float64), (len(Y), *X_test.shape))


def best_features(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Column int64 (neurons,) of X (stimuli, features) with the largest Pearson r with each of Y (stimuli, neurons)."""
    check_finite(Y)
    targets = unit_columns(Y)
    largest = np.full(Y.shape[1], -np.inf)
    feature = np.full(Y.shape[1], X.shape[1] - 1)
    size = max(1, BLOCK_BYTES // (8 * max(Y.shape)))
    for number, block in enumerate(feature_blocks(X, size)):
        correlation = unit_columns(block).T @ targets
        np.copyto(correlation, -np.inf, where=np.isnan(correlation))
        best = correlation.argmax(0)
        reached = correlation[best, np.arange(len(best))]
        better = reached > largest
        feature[better], largest[better] = number * size + best[better], reached[better]
    return feature


def chosen_features(correlation: np.ndarray, percentile: float) -> np.ndarray:
    """bool (features,): whose correlation (features,) with a neuron is at or above the percentile."""
    if np.isnan(correlation).all():
        correlation = np.arange(len(correlation))
    return correlation >= np.nanpercentile(correlation, percentile)


def unit_columns(values: np.ndarray) -> np.ndarray:
    """Columns of (stimuli, n) minus their mean, of length 1; NaN where they do not vary."""
    # Compared before centring: the mean of equal numbers need not be that number, to the last bit.
    varies = values.max(0) > values.min(0)
    centred = values - values.mean(0)
    length = np.linalg.norm(centred, axis=0)
    return np.divide(centred, length, out=np.full(values.shape, np.nan), where=varies & (length > 0))
