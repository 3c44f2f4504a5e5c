"""CutMix: a box of another clip of the same animal is pasted into a clip, and the responses are mixed as the areas are.

What comes in: a step's batch, by animal (see `transfer.fit_objective`), and the number of the step. What goes out: a
batch of the same form. The box has a share of the picture's area that is drawn from a Beta distribution, the picture's
proportions, and a random centre; what reaches over the edge is cut off, and the responses are mixed by what is left.
Which samples are mixed, and how, follows from the seed, the step and the animal.

Sources: Yun et al. 2019 (https://arxiv.org/abs/1905.04899); the winner of Sensorium 2023
(https://github.com/lRomul/sensorium, `src/mixers.py`), who pastes in all channels of the input and all frames, so that
behaviour, which fills planes of DwiseNeuro's input, is pasted too (`planes`). There the other clip is drawn anew; here
it is the animal's next one in the batch, unless it is given, so that a sample that has no other is not mixed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pretrain.randomness import derived_seed
from transfer.fit_objective import STIMULI, AnimalBatch, StepBatch

SIGNALS = ("behavior", "pupil_center")


@dataclass(frozen=True)
class CutMix:
    """Mixes clips, or images, of one animal.

    Args:
        probability: share of the samples that are mixed.
        alpha: of the Beta distribution, with itself, of the box's share of the area.
        seed: of the fit.
        planes: `planes(video, behavior, pupil_center)` of a core that makes planes of signals, such as
            `DwiseNeuro.planes`; the batch then has them as its video, and no signals. Without it signals are mixed as
            responses are.
    """

    probability: float = 0.5
    alpha: float = 1.0
    seed: int = 0
    planes: Callable[..., Tensor] | None = None

    def __call__(self, batch: StepBatch, step: int, partners: StepBatch | None = None) -> dict[str, AnimalBatch]:
        """The batch of a step, mixed; `partners` has as many other samples of the same animals."""
        return {
            animal: self.mixed(trials, animal, step, None if partners is None else partners[animal])
            for animal, trials in batch.items()
        }

    def mixed(self, trials: AnimalBatch, animal: str, step: int, partners: AnimalBatch | None) -> AnimalBatch:
        """One animal's samples."""
        own = self.with_planes(trials)
        if partners is None:
            other = {name: value.roll(-1, 0) for name, value in own.items()}
        else:
            other = self.with_planes(partners)
        name = next(name for name in STIMULI if name in own)
        stimuli = own[name]
        inside, share = self.boxes(len(stimuli), *stimuli.shape[-2:], animal, step)
        inside = inside.to(stimuli.device).reshape(len(stimuli), *[1] * (stimuli.ndim - 3), *stimuli.shape[-2:])
        found = own | {name: torch.where(inside, other[name], stimuli)}
        for name in ("responses", *SIGNALS):
            if name in own:
                found[name] = own[name].lerp(other[name], share.to(own[name]).view(-1, *[1] * (own[name].ndim - 1)))
        if "valid" in own:
            # A frame counts where both clips have it; the box of a clip that ends before has nothing in it.
            found["valid"] = own["valid"] & (other["valid"] | (share == 0).to(own["valid"].device)[:, None])
        return found

    def with_planes(self, trials: AnimalBatch) -> dict[str, Tensor]:
        """The samples, with their signals as planes of the video where the core makes them."""
        if self.planes is None:
            return dict(trials)
        planes = self.planes(trials["video"], trials.get("behavior"), trials.get("pupil_center"))
        return {name: value for name, value in trials.items() if name not in SIGNALS} | {"video": planes}

    def boxes(self, count: int, height: int, width: int, animal: str, step: int) -> tuple[Tensor, Tensor]:
        """Where other clips are seen (count, height, width), and their share of the area (count,), 0 for most."""
        random = np.random.default_rng(derived_seed(self.seed, "cutmix", step, animal))
        used = random.random(count) < self.probability
        areas = random.beta(self.alpha, self.alpha, count) * used
        edges = box(areas, random.integers(height, size=count), random.integers(width, size=count), height, width)
        rows, columns = np.arange(height), np.arange(width)
        first_row, last_row, first_column, last_column = (edge[:, None] for edge in edges)
        in_rows = (rows >= first_row) & (rows < last_row)
        in_columns = (columns >= first_column) & (columns < last_column)
        inside = in_rows[:, :, None] & in_columns[:, None]
        return torch.from_numpy(inside), torch.from_numpy(inside.mean((1, 2)))


def box(
    areas: np.ndarray, rows: np.ndarray, columns: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First and past-the-last row, first and past-the-last column, of boxes around centres, cut off at the edges.

    Half a side is rounded down, so that sides are even until they are cut off.
    """
    half_height, half_width = ((side * np.sqrt(areas)).astype(int) // 2 for side in (height, width))
    return (
        (rows - half_height).clip(0, height),
        (rows + half_height).clip(0, height),
        (columns - half_width).clip(0, width),
        (columns + half_width).clip(0, width),
    )
