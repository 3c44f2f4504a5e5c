"""Which epoch of a run is the best so far, and its checkpoint.

What comes in: what was measured at the end of each epoch. What goes out: `checkpoints/best.pt`, the checkpoint of the
best epoch. The measure is the single-trial correlation of held-out trials (`single_trial_correlation`), the held-out
accuracy of the objective's own classifier (`top1`), or that of nearest neighbours (`knn_accuracy`), the higher the
better; without any of them the training loss (`mean_loss`), the lower the better.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretrain.durable import checksum_path, sync_folder, write_atomically

HIGHEST_FIRST = ("single_trial_correlation", "top1", "knn_accuracy")
MEAN_LOSS = "mean_loss"
BEST = "best.pt"


@dataclass
class Best:
    """The best epoch so far (counted from 1) and by what; and the losses of the epoch that is running."""

    measure: str = ""
    value: float = 0.0
    epoch: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0

    def add_loss(self, loss: float) -> None:
        """Count a step's loss for the mean of its epoch."""
        self.loss_sum += loss
        self.loss_steps += 1

    def end_epoch(self, epoch: int, measured: dict[str, float]) -> bool:
        """Note what epoch number `epoch` measured; returns whether it is the best so far."""
        measured = measured | {MEAN_LOSS: self.loss_sum / max(self.loss_steps, 1)}
        self.pass_epoch()
        measure = next((name for name in HIGHEST_FIRST if name in measured), MEAN_LOSS)
        if self.measure in HIGHEST_FIRST and measure == MEAN_LOSS:
            return False  # an epoch without a probe is not compared with those that have one
        value = measured[measure]
        better = value > self.value if measure in HIGHEST_FIRST else value < self.value
        if self.measure == measure and not better:
            return False
        self.measure, self.value, self.epoch = measure, value, epoch
        return True

    def pass_epoch(self) -> None:
        """Forget the losses of an epoch that is not saved, and so cannot be the best."""
        self.loss_sum, self.loss_steps = 0.0, 0

    def state(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self)


def keep_as_best(checkpoint: Path) -> Path:
    """Keep a checkpoint file as `best.pt` too; it shares the bytes, so it costs no room until the original goes."""
    best = checkpoint.with_name(BEST)
    if best.exists() and best.samefile(checkpoint):
        return best  # renaming one name of a file to another of its names would leave both
    digest = checksum_path(checkpoint).read_text().split()[0]
    temporary = best.with_name(f".{best.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(checkpoint, temporary)
        except OSError:  # some network file systems have no hard links
            shutil.copyfile(checkpoint, temporary)
        write_atomically(checksum_path(best), lambda file: file.write(f"{digest}  {best.name}\n".encode()))
        os.replace(temporary, best)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(best.parent)
    return best
