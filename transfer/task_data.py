"""What a transfer task consists of: images, what is to be told from them, and splits into train and test images.

What comes in: nothing of its own. What goes out: the form in which `textures.py` and `objects.py` give their data
set to `tasks.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Target:
    """One thing to tell from images, by a classifier or a regression.

    Attributes:
        name: such as "texture", "category" or "pose".
        variables: names of the columns of `values`; of a classification, which images it is about.
        values: (images,) numbers of classes, or float64 (images, variables) to regress.
        rows: images that take part.
    """

    name: str
    variables: tuple[str, ...]
    values: np.ndarray
    rows: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes among the rows; 0 for a regression."""
        return len(np.unique(self.values[self.rows])) if self.values.ndim == 1 else 0


@dataclass(frozen=True)
class TaskData:
    """A data set of a transfer task.

    Attributes:
        count: number of images.
        read: gives image `row` as uint8 (height, width) or (height, width, 3); called from several threads.
        targets: what is told from them.
        splits: rows of train and test images by the number of the split.
        digest: changes whenever images, targets or splits do.
    """

    count: int
    read: Callable[[int], np.ndarray]
    targets: tuple[Target, ...]
    splits: dict[int, tuple[np.ndarray, np.ndarray]]
    digest: str
