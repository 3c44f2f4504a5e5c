"""Seeds that follow from what they are for.

What comes in: the parts that a random draw depends on, for example the run's seed, the word "views" and the step. What
goes out: a seed of 63 bits. So no generator's state is saved, and a resumed run draws what it would have drawn.
"""

import random


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits that is a pure function of its parts, for example (seed, "views", step)."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)
