"""How well an encoder predicts the validation trials of each animal, while it is fitted.

What comes in: an encoder in evaluation mode, recordings and the rows that measure. What goes out: the single-trial
correlation of every animal, mean over its neurons, and the mean over animals, in the space in which the encoder
predicts. Trials are predicted whole: where the encoder sees windows, by windows side by side, so that each frame is
predicted once and frames at the start that no window predicts do not count. One trial is held at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from neural_data.recording import Recording
from transfer.encoder import Encoder
from transfer.normalisation import Normalisation
from transfer.streamed_correlation import StreamedCorrelation
from transfer.trial_prediction import INPUTS, TrialPredictor
from transfer.windows import WindowPlan

MEASURE = "single_trial_correlation"
Note = Callable[[str], None]


@dataclass
class Validation:
    """Measures an encoder on validation trials, and remembers what it found last.

    `rows`: by animal, those that measure; animals without any are passed over. `first_frame`: of a trial that counts.
    `batch_size`: windows, or images, that are predicted at a time. `device`: where the encoder is.
    """

    recordings: Mapping[str, Recording]
    rows: Mapping[str, np.ndarray]
    normalisations: Mapping[str, Normalisation]
    plan: WindowPlan
    first_frame: int
    batch_size: int
    device: torch.device
    scores: dict[str, float] = field(default_factory=dict)

    def measure(self, encoder: Encoder, note: Note) -> dict[str, float]:
        """The correlation of each animal, `single_trial_correlation/<animal>`, and their mean, without the name."""
        training = encoder.training
        window = 0 if self.plan.whole else self.plan.frames
        predictor = TrialPredictor(encoder, window, self.plan.stride, "side_by_side", self.batch_size, self.device)
        try:
            self.scores = {
                animal: self.of_animal(predictor, animal, note) for animal, rows in self.rows.items() if len(rows)
            }
        finally:
            encoder.train(training)
        found = {f"{MEASURE}/{animal}": score for animal, score in self.scores.items()}
        return {MEASURE: float(np.mean(list(self.scores.values())))} | found

    def of_animal(self, predictor: TrialPredictor, animal: str, note: Note) -> float:
        """Mean over the neurons of one animal."""
        note(f"measuring {animal}")
        recording = self.recordings[animal]
        streamed = StreamedCorrelation(len(recording.neurons))
        predict = self.predicted_trials if recording.dynamic else self.predicted_images
        for predicted, measured in predict(predictor, animal):
            streamed.add(predicted, measured)
        return float(streamed.correlations().mean())

    def predicted_images(self, predictor: TrialPredictor, animal: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Predictions and responses (neurons, images) of a batch of trials at a time."""
        recording, rows = self.recordings[animal], self.rows[animal]
        for first in range(0, len(rows), self.batch_size):
            trials = [
                self.normalisations[animal].apply(recording.trial(int(row)))
                for row in rows[first : first + self.batch_size]
            ]
            yield predictor.images(animal, trials).T, np.stack([trial["responses"] for trial in trials], 1)

    def predicted_trials(self, predictor: TrialPredictor, animal: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Predictions and responses (neurons, frames that count) of one trial at a time."""
        recording = self.recordings[animal]
        for row in self.rows[animal]:
            frames = np.arange(recording.frames[row])
            trial = self.normalisations[animal].apply(recording.trial(int(row)), frames)
            (predicted,) = predictor.video(animal, [in_every_frame(trial, len(frames))])
            counted = np.isfinite(predicted[0]) & (frames >= self.first_frame)
            yield predicted[:, counted], trial["responses"][:, counted]

    def state(self) -> dict[str, Any]:
        """The scores of each animal that were measured last."""
        return dict(self.scores)

    def restore(self, state: dict[str, Any]) -> None:
        """Remember saved scores."""
        self.scores = dict(state)


def in_every_frame(trial: Mapping[str, np.ndarray], frames: int) -> dict[str, np.ndarray]:
    """The inputs of a trial, of which what was recorded once is the same in all frames."""
    return {
        part: values if values.ndim > 1 else np.broadcast_to(values[:, None], (len(values), frames))
        for part, values in trial.items()
        if part in INPUTS
    }
