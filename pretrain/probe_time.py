"""What share of the time of a run its probes take.

What comes in: the beginnings and ends of probes and of their parts. What goes out: one line, once, when probes have
taken more than 5 % of the time so far, after the first minute or at the end of training, with the figures and the
keys that change it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pretrain.progress import say

MOST_SHARE = 0.05
# Before, starting up and decoding the probes' images are most of all time, and shares say nothing.
FEWEST_SECONDS = 60.0


@dataclass
class ProbeTime:
    """Seconds within probes and, since this was made, outside of them; `parts` are those of each measure.

    The time when a run is interrupted counts as neither: its state goes into the checkpoint.
    """

    probing: float = 0.0
    training: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    told: bool = False
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.since = self.clock()

    @property
    def share(self) -> float:
        """Of all time so far."""
        return self.probing / max(self.probing + self.training, 1e-9)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the block as a probe. Work still queued on a GPU must be done before, or it counts as the probe's."""
        begun = self.clock()
        self.training += begun - self.since
        yield
        self.since = self.clock()
        self.probing += self.since - begun
        if self.probing + self.training >= FEWEST_SECONDS:
            self.tell_if_costly()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block, within a probe, as what one measure takes."""
        begun = self.clock()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + self.clock() - begun

    def tell_at_end(self) -> None:
        """At the end of training, say what is not said yet, however short it was."""
        now = self.clock()
        self.training, self.since = self.training + now - self.since, now
        self.tell_if_costly()

    def tell_if_costly(self) -> None:
        """Say once that probes take more than their share."""
        if self.told or self.share <= MOST_SHARE:
            return
        self.told = True
        dearest = max(self.parts, key=self.parts.get, default="")
        most = f", {self.parts[dearest]:.1f} s of them for {dearest}" if dearest else ""
        say(
            f"probes took {self.probing:.1f} s of the {self.probing + self.training:.1f} s so far ({self.share:.1%}, "
            f"more than {MOST_SHARE:.0%}){most}; raise probe.every_epochs or probe.every_steps, lower "
            "probe.bank_images and probe.test_images, or shorten probe.measures"
        )

    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {"probing": self.probing, "training": self.training, "parts": dict(self.parts), "told": self.told}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.probing, self.training, self.told = state["probing"], state["training"], state["told"]
        self.parts = dict(state["parts"])
