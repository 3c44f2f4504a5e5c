"""Ways to divide repeats into two halves, and the mean responses of the halves.

Comes in: responses float (repeats, stimuli, neurons), NaN where a presentation is missing. Goes out: means of two
halves, float64 (halvings, stimuli, neurons) each.

A halving is an order of the repeats, the same for every stimulus and neuron: the first half of them makes half 1.
Orders are random as in mouse-vision (Nayebi, Kong et al., PLOS Comput Biol 19(10):e1011506, 2023), or all there are.
"""

import math
from itertools import combinations

import numpy as np


def halves(responses: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (stimuli, neurons) over two random halves of the repeats (repeats, stimuli, neurons).

    The valid repeats of a stimulus are those with a response of any neuron. They are taken in the order of
    the permutation `RandomState(seed).permutation(repeats)`: the first floor(k / 2) of k make half 1, the
    others half 2, so that no half is empty. Where no repeat is missing this is mouse-vision's halving. A
    neuron that has no response in any repeat of a half is NaN there.

    Raises ValueError where a stimulus has fewer than 2 valid repeats, or a response is infinite.
    """
    order = np.random.RandomState(seed).permutation(len(responses))
    half1, half2 = halves_in_order(responses, order[None])
    return half1[0], half2[0]


def halves_batch(responses: np.ndarray, halvings: int) -> tuple[np.ndarray, np.ndarray]:
    """`halves` for the seeds 0 to `halvings` - 1 at once: two float64 arrays (halvings, stimuli, neurons)."""
    return halves_in_order(responses, seeded_orders(halvings, len(responses))[0])


def seeded_orders(halvings: int, *repeats: int) -> tuple[np.ndarray, ...]:
    """Random orders, int64 (halvings, repeats) for each number of repeats; row i is drawn by `RandomState(i)`.

    Several numbers are drawn one after the other: mouse-vision halves the target's repeats first, then the source's.
    """
    _check_halvings(halvings)
    generators = [np.random.RandomState(seed) for seed in range(halvings)]
    return tuple(np.stack([generator.permutation(number) for generator in generators]) for number in repeats)


def one_generator_orders(halvings: int, repeats: int) -> np.ndarray:
    """Random orders, int64 (halvings, repeats), drawn one after the other by one `RandomState(0)`.

    This is mouse-vision's `parallelize_per_target_unit=True`, with which the published reliabilities were made.
    """
    _check_halvings(halvings)
    generator = np.random.RandomState(0)
    return np.stack([generator.permutation(repeats) for _ in range(halvings)])


def all_orders(repeats: int, at_most: int = 100_000) -> np.ndarray:
    """One order for each way to divide the repeats into floor(n / 2) and the others, int64 (halvings, repeats).

    Halves that only change places count once. Raises ValueError where there are more than `at_most`.
    """
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2 to be halved, found {repeats}")
    size, even = repeats // 2, repeats % 2 == 0
    number = math.comb(repeats, size) // (2 if even else 1)
    if number > at_most:
        raise ValueError(
            f"{repeats} repeats have {number:,} halvings, more than {at_most:,}; take a number of random ones instead"
        )
    # The first repeat stays in half 1 where the halves are equal, so that no halving comes again with them exchanged.
    if even:
        first = [(0, *others) for others in combinations(range(1, repeats), size - 1)]
    else:
        first = list(combinations(range(repeats), size))
    member = np.zeros((number, repeats), dtype=bool)
    np.put_along_axis(member, np.array(first), True, axis=1)
    return np.argsort(~member, axis=1, kind="stable")


def halves_in_order(
    responses: np.ndarray, orders: np.ndarray, *, balanced: bool = True, valid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Means over the two halves of each order: two float64 arrays (halvings, stimuli, neurons).

    `orders` int (halvings, repeats). `balanced`: the first half of a stimulus' valid repeats (see `halves`), so that
    the halves of every stimulus are equal; otherwise, as in mouse-vision, the first half of all repeat numbers,
    whatever is missing of them. `valid` bool (repeats, stimuli), where `responses` are some of an animal's neurons
    and its other neurons have a say in which repeats are valid. NaN where a neuron has no response in a half.

    Raises ValueError as `halves` does.
    """
    valid = valid_repeats(responses) if valid is None else valid
    if valid.all():
        valid = valid[:, :1]  # the halves are the same for every stimulus
    first = _first_half(valid, orders, balanced)
    present = ~np.isnan(responses)
    known = np.where(present, responses, 0.0).astype(np.float64).transpose(1, 0, 2)
    # A repeat is usually missing for all neurons or none; only otherwise must each neuron's repeats be counted.
    whole = bool((present == valid[:, :, None]).all())
    present = (valid[:, :, None] if whole else present).astype(np.float64).transpose(1, 0, 2)
    return _means(first, known, present), _means(valid & ~first, known, present)


def valid_repeats(responses: np.ndarray) -> np.ndarray:
    """bool (repeats, stimuli): whether any neuron has a response. Raises ValueError as `halves` says."""
    if responses.ndim != 3 or 0 in responses.shape:
        raise ValueError(
            f"responses must be (repeats, stimuli, neurons), none of them 0, found shape {responses.shape}"
        )
    # Repeat by repeat, so that a memory map is never read whole.
    infinite = sum(int(np.isinf(repeat).sum()) for repeat in responses)
    if infinite:
        raise ValueError(f"responses hold {infinite} infinite values; mark missing ones with NaN")
    valid = np.array([~np.isnan(repeat).all(axis=1) for repeat in responses]).reshape(responses.shape[:2])
    few = np.flatnonzero(valid.sum(axis=0) < 2)
    if len(few):
        shown = ", ".join(map(str, few[:5])) + (", ..." if len(few) > 5 else "")
        raise ValueError(f"stimuli {shown} ({len(few)} in all) have fewer than 2 repeats; leave them out")
    return valid


def _check_halvings(halvings: int) -> None:
    if halvings < 1:
        raise ValueError(f"halvings must be at least 1, found {halvings}")


def _first_half(valid: np.ndarray, orders: np.ndarray, balanced: bool) -> np.ndarray:
    """bool (halvings, repeats, stimuli): whether a valid repeat belongs to half 1."""
    if orders.ndim != 2 or orders.shape[1] != len(valid):
        raise ValueError(f"orders have shape {orders.shape}, expected (halvings, {len(valid)} repeats)")
    counted = valid if balanced else np.ones_like(valid)
    in_order = counted[orders]
    in_first = in_order & (np.cumsum(in_order, axis=1, dtype=np.int32) <= counted.sum(axis=0) // 2)
    member = np.zeros(in_first.shape, dtype=bool)
    np.put_along_axis(member, orders[:, :, None], in_first, axis=1)
    return member & valid


def _means(member: np.ndarray, known: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Means (halvings, stimuli, neurons) over the repeats of a half: one product of matrices per stimulus."""
    weights = member.transpose(2, 0, 1).astype(np.float64)  # (stimuli, halvings, repeats)
    total, number = weights @ known, weights @ present
    number = np.broadcast_to(number, total.shape)
    mean = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return np.ascontiguousarray(mean.transpose(1, 0, 2))
