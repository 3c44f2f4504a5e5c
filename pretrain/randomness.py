"""Seeds that follow from what they are for.

What comes in: the parts that a random draw depends on, for example the run's seed, the word "views" and the step. What
goes out: a seed of 63 bits. So no generator's state is saved, and a resumed run draws what it would have drawn.
"""

import random

import torch


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits that is a pure function of its parts, for example (seed, "views", step)."""
    return random.Random(" ".join(map(str, parts))).getrandbits(63)


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what modules draw on the CPU and on a device.

    `torch.manual_seed` does so for every kind of device that torch knows, which takes a hundred times as long.
    """
    if device.type in ("cpu", "cuda"):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.manual_seed(seed)
