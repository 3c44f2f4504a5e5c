"""How reliable a neuron's responses are: correlation between two halves of its repeats.

Comes in: responses float (repeats, stimuli, neurons), NaN where a presentation is missing. Goes out: half
means (stimuli, neurons) and one reliability per neuron, all float64.

Source: Spearman-Brown corrected split-half correlation (Spearman 1910; Brown 1910, British J. Psychology 3),
with the halvings of mouse-vision (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023): halving i
permutes the repeats with the legacy generator seeded i, the same permutation for every stimulus and neuron.
"""

from collections.abc import Sequence

import numpy as np

# Half means held at a time by split_half_reliability; Pearson needs about three times as much again.
BLOCK_BYTES = 64 * 2**20


def halves(responses: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (stimuli, neurons) over two random halves of the repeats (repeats, stimuli, neurons).

    The valid repeats of a stimulus are those with a response of any neuron. They are taken in the order of
    the permutation `RandomState(seed).permutation(repeats)`: the first floor(k / 2) of k make half 1, the
    others half 2, so that no half is empty. Where no repeat is missing this is mouse-vision's halving. A
    neuron that has no response in any repeat of a half is NaN there.

    Raises ValueError where a stimulus has fewer than 2 valid repeats, or a response is infinite.
    """
    half1, half2 = _halves_by_seed(responses, [seed], _valid_repeats(responses))
    return half1[0], half2[0]


def halves_batch(responses: np.ndarray, halvings: int) -> tuple[np.ndarray, np.ndarray]:
    """`halves` for the seeds 0 to `halvings` - 1 at once: two float64 arrays (halvings, stimuli, neurons)."""
    _check_halvings(halvings)
    return _halves_by_seed(responses, range(halvings), _valid_repeats(responses))


def split_half_reliability(responses: np.ndarray, halvings: int = 100) -> np.ndarray:
    """Spearman-Brown corrected split-half correlation over stimuli, float64 (neurons,), mean over the
    halvings.

    Halving i is `halves(responses, seed=i)`. Halvings whose correlation is undefined are left out of the mean; a neuron
    for which all are undefined (it never varies) is NaN. Raises ValueError as `halves` does.
    """
    _check_halvings(halvings)
    valid = _valid_repeats(responses)
    n_stimuli, n_neurons = responses.shape[1:]
    in_block = max(1, BLOCK_BYTES // (2 * 8 * halvings * n_stimuli))
    reliability = np.full(n_neurons, np.nan)
    for first in range(0, n_neurons, in_block):
        block = responses[:, :, first : first + in_block]
        half1, half2 = _halves_by_seed(block, range(halvings), valid)
        corrected = spearman_brown(pearson(half1, half2, axis=1))
        defined = ~np.isnan(corrected)
        total = np.where(defined, corrected, 0.0).sum(axis=0)
        np.divide(total, defined.sum(axis=0), out=reliability[first : first + in_block], where=defined.any(axis=0))
    return reliability


def spearman_brown(r: np.ndarray | float) -> np.ndarray:
    """Reliability of twice as many repeats, 2 r / (1 + r); NaN at r <= -1, where it is undefined. Any shape."""
    r = np.asarray(r, dtype=np.float64)
    return np.divide(2 * r, 1 + r, out=np.full(r.shape, np.nan), where=r > -1)


def pearson(a: np.ndarray, b: np.ndarray, axis: int = 0) -> np.ndarray:
    """Pearson correlation along `axis`, float64, of two arrays whose other axes broadcast.

    NaN where either does not vary or holds a NaN. Raises ValueError where the lengths along `axis` differ.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape[axis] != b.shape[axis] or not a.shape[axis]:
        raise ValueError(f"pearson needs equal lengths, at least 1, found {a.shape[axis]} and {b.shape[axis]}")
    a_unit, b_unit = _unit_length(a, axis), _unit_length(b, axis)
    return np.clip((a_unit * b_unit).sum(axis=axis), -1.0, 1.0)


def _unit_length(values: np.ndarray, axis: int) -> np.ndarray:
    """Values minus their mean along `axis`, divided by their length; NaN where they do not vary."""
    # Compared before centring: the mean of equal numbers need not be that number, to the last bit.
    varies = values.max(axis=axis, keepdims=True) > values.min(axis=axis, keepdims=True)
    centred = values - values.mean(axis=axis, keepdims=True)
    # Scaled first, so that squares of very small or large numbers neither vanish nor overflow.
    scale = np.abs(centred).max(axis=axis, keepdims=True)
    np.divide(centred, scale, out=centred, where=varies)
    length = np.sqrt((centred**2).sum(axis=axis, keepdims=True))
    return np.divide(centred, length, out=np.full(values.shape, np.nan), where=varies)


def _check_halvings(halvings: int) -> None:
    if halvings < 1:
        raise ValueError(f"halvings must be at least 1, found {halvings}")


def _valid_repeats(responses: np.ndarray) -> np.ndarray:
    """bool (repeats, stimuli): whether any neuron has a response. Raises ValueError as `halves` says."""
    if responses.ndim != 3:
        raise ValueError(f"responses must be (repeats, stimuli, neurons), found shape {responses.shape}")
    infinite = int(np.isinf(responses).sum())
    if infinite:
        raise ValueError(f"responses hold {infinite} infinite values; mark missing ones with NaN")
    valid = ~np.isnan(responses).all(axis=2)
    few = np.flatnonzero(valid.sum(axis=0) < 2)
    if len(few):
        shown = ", ".join(map(str, few[:5])) + (", ..." if len(few) > 5 else "")
        raise ValueError(f"stimuli {shown} ({len(few)} in all) have fewer than 2 repeats; leave them out")
    return valid


def _first_half(valid: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """bool (halvings, repeats, stimuli): whether a valid repeat belongs to half 1."""
    member = np.zeros((len(seeds), *valid.shape), dtype=bool)
    for h, seed in enumerate(seeds):
        order = np.random.RandomState(seed).permutation(len(valid))
        rank = np.cumsum(valid[order], axis=0)
        member[h, order] = valid[order] & (rank <= valid.sum(axis=0) // 2)
    return member


def _halves_by_seed(responses: np.ndarray, seeds: Sequence[int], valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two float64 (halvings, stimuli, neurons): a matrix product of half membership and responses per
    stimulus."""
    present = ~np.isnan(responses)
    known = np.where(present, responses, 0.0).astype(np.float64).transpose(1, 0, 2)
    # A repeat is usually missing for all neurons or none; only otherwise must each neuron's repeats be
    # counted.
    whole = np.array_equal(present, np.broadcast_to(valid[:, :, None], present.shape))
    present = (valid[:, :, None] if whole else present).astype(np.float64).transpose(1, 0, 2)
    first = _first_half(valid, seeds)
    means = []
    for member in (first, valid & ~first):
        weights = member.transpose(2, 0, 1).astype(np.float64)  # (stimuli, halvings, repeats)
        total, number = weights @ known, weights @ present
        number = np.broadcast_to(number, total.shape)
        mean = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
        means.append(np.ascontiguousarray(mean.transpose(1, 0, 2)))
    return means[0], means[1]
