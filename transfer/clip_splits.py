"""Splits of bins of videos into train and test: by clip, or by blocks of time where there are few clips.

Comes in: the clip of each stimulus, and its bin there. Goes out: pairs (train, test) that never hold neighbours.

Frames of one clip resemble the frames before and after them, and so do responses, which last for hundreds of
milliseconds. A mapping that was fitted to one frame knows the next, and images' rule of drawing single stimuli would
score memory. So whole clips are drawn, as mouse-vision draws images (`neural_data/splits.py`). Where there are fewer
than `FEWEST_BLOCKS` clips, each is cut into blocks of equal length, about `block_ms`; whole blocks are drawn, and train
bins that lie less than `gap_ms` before or after a test bin of the same clip are left out. Layers are chosen
between blocks within the train stimuli by the same rule. Penalties of ridge regression and numbers of components are
chosen by the mappings' own folds, which do not know of clips: test stimuli are not touched by it, but less is
penalised than would be best.
"""

from dataclasses import dataclass

import numpy as np

from neural_data.splits import image_splits

# Two to fit a mapping on, of which one checks a layer that the other was fitted to, and two to test it on.
FEWEST_BLOCKS = 4

Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class BinPlaces:
    """Where stimuli lie in time: `clip`, `bin` and `block`, int64 (stimuli,) each.

    `block`: what stays together in every split. `gap`: bins that must lie between a train and a test bin of one clip.
    """

    clip: np.ndarray
    bin: np.ndarray
    block: np.ndarray
    gap: int

    def of(self, stimuli: np.ndarray) -> "BinPlaces":
        """The places of some of the stimuli, whose blocks stay what they were."""
        return BinPlaces(self.clip[stimuli], self.bin[stimuli], self.block[stimuli], self.gap)

    def splits(self, n_splits: int, train_fraction: float) -> list[Split]:
        """Pairs (train, test), int64, of which `train_fraction` of the blocks are train before gaps are left out.

        Raises ValueError where there are fewer than two blocks, or a gap leaves no train stimuli.
        """
        blocks = np.unique(self.block)
        pairs = [self._split(blocks[train]) for train, _ in image_splits(len(blocks), n_splits, train_fraction)]
        if any(not len(train) for train, _ in pairs):
            raise ValueError(f"gap_ms is {self.gap} bins, which leaves no train stimuli; lower it, or raise block_ms")
        return pairs

    def _split(self, train_blocks: np.ndarray) -> Split:
        in_train = np.isin(self.block, train_blocks)
        test, train = np.flatnonzero(~in_train), np.flatnonzero(in_train)
        return train[~self._near(train, test)], test

    def _near(self, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        """bool (train,): whether a test bin of the same clip lies within the gap."""
        # On one axis of time, on which clips lie further apart than any gap.
        time = self.clip * (self.bin.max() + self.gap + 2) + self.bin
        tests = np.sort(time[test])
        at = np.searchsorted(tests, time[train])
        after = tests[np.minimum(at, len(tests) - 1)] - time[train]
        before = time[train] - tests[np.maximum(at - 1, 0)]
        return ((at < len(tests)) & (after <= self.gap)) | ((at > 0) & (before <= self.gap))


def bin_places(clip: np.ndarray, bin: np.ndarray, block_bins: int, gap: int) -> BinPlaces:
    """The places of stimuli; blocks are clips, or, of fewer than FEWEST_BLOCKS, parts of about `block_bins` bins.

    Raises ValueError where that gives fewer than FEWEST_BLOCKS.
    """
    clips, of_clip = np.unique(clip, return_inverse=True)
    if len(clips) >= FEWEST_BLOCKS:
        return BinPlaces(clip, bin, of_clip, gap)
    block, begun = np.empty(len(clip), np.int64), 0
    for number in range(len(clips)):
        these = np.flatnonzero(of_clip == number)
        first, length = bin[these].min(), np.ptp(bin[these]) + 1
        parts = max(1, round(length / block_bins))
        block[these] = begun + (bin[these] - first) * parts // length
        begun += parts
    if begun < FEWEST_BLOCKS:
        raise ValueError(
            f"{len(clips)} clips of {len(clip)} bins are {begun} blocks of about {block_bins} bins; splits need "
            f"{FEWEST_BLOCKS}, so lower block_ms"
        )
    return BinPlaces(clip, bin, block, gap)
