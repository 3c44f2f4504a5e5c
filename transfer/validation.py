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
        encoder.eval()
        try:
            with torch.inference_mode():
                self.scores = {
                    animal: self.of_animal(encoder, animal, note) for animal, rows in self.rows.items() if len(rows)
                }
        finally:
            encoder.train(training)
        found = {f"{MEASURE}/{animal}": score for animal, score in self.scores.items()}
        return {MEASURE: float(np.mean(list(self.scores.values())))} | found

    def of_animal(self, encoder: Encoder, animal: str, note: Note) -> float:
        """Mean over the neurons of one animal."""
        note(f"measuring {animal}")
        recording = self.recordings[animal]
        streamed = StreamedCorrelation(len(recording.neurons))
        predict = self.predicted_trials if recording.dynamic else self.predicted_images
        for predicted, measured in predict(encoder, animal):
            streamed.add(predicted, measured)
        return float(streamed.correlations().mean())

    def predicted_images(self, encoder: Encoder, animal: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Predictions and responses (neurons, images) of a batch of trials at a time."""
        recording, rows = self.recordings[animal], self.rows[animal]
        for first in range(0, len(rows), self.batch_size):
            trials = [
                self.normalisations[animal].apply(recording.trial(int(row)))
                for row in rows[first : first + self.batch_size]
            ]
            batch = {part: np.stack([trial[part] for trial in trials]) for part in trials[0]}
            yield self.responses_to(encoder, animal, batch).T, batch["responses"].T

    def predicted_trials(self, encoder: Encoder, animal: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Predictions and responses (neurons, frames that count) of one trial at a time."""
        recording = self.recordings[animal]
        for row in self.rows[animal]:
            frames = np.arange(recording.frames[row])
            trial = self.normalisations[animal].apply(recording.trial(int(row)), frames)
            predicted = self.whole_trial(encoder, animal, trial, len(frames))
            counted = np.isfinite(predicted[0]) & (frames >= self.first_frame)
            yield predicted[:, counted], trial["responses"][:, counted]

    def whole_trial(self, encoder: Encoder, animal: str, trial: Mapping[str, np.ndarray], length: int) -> np.ndarray:
        """Predictions (neurons, length) of a trial, NaN at frames that no window predicts."""
        plan = self.plan
        span = 0 if plan.whole else plan.frames
        first = windows_of(trial, windows_side_by_side(length, span, plan.stride, max(span, 1))[:1])
        outputs = self.responses_to(encoder, animal, first).shape[-1]
        windows = windows_side_by_side(length, span, plan.stride, outputs)
        predicted = np.full((len(trial["responses"]), length), np.nan, np.float32)
        for start in range(0, len(windows), self.batch_size):
            part = windows[start : start + self.batch_size]
            found = self.responses_to(encoder, animal, windows_of(trial, part))
            for window, responses in zip(part, found, strict=True):
                predicted[:, window[-outputs:]] = responses
        return predicted

    def responses_to(self, encoder: Encoder, animal: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Predictions, float32 (batch, neurons[, frames]), of one animal."""
        inputs = {part: torch.from_numpy(values).to(self.device) for part, values in batch.items()}
        stimuli = inputs["video"] if "video" in inputs else inputs["images"]
        predicted = encoder(stimuli, animal, inputs.get("behavior"), inputs.get("pupil_center"))
        return predicted.float().cpu().numpy()

    def state(self) -> dict[str, Any]:
        """The scores of each animal that were measured last."""
        return dict(self.scores)

    def restore(self, state: dict[str, Any]) -> None:
        """Remember saved scores."""
        self.scores = dict(state)


def windows_of(trial: Mapping[str, np.ndarray], windows: np.ndarray) -> dict[str, np.ndarray]:
    """What is seen of a whole trial through windows (windows, frames), each along the first axis; without responses."""
    seen = {"video": np.ascontiguousarray(trial["video"][:, windows].swapaxes(0, 1))}
    for part in ("behavior", "pupil_center"):
        if part in trial:
            whole = trial[part] if trial[part].ndim == 2 else np.repeat(trial[part][:, None], windows.max() + 1, axis=1)
            seen[part] = np.ascontiguousarray(whole[:, windows].swapaxes(0, 1))
    return seen


def windows_side_by_side(length: int, frames: int, stride: int, outputs: int) -> np.ndarray:
    """Windows, int64 (windows, frames), of which the last `outputs` frames of each cover a trial without gaps.

    With a stride every phase is covered on its own. The last window ends with the trial, so that it may predict anew
    what the one before has; frames before the first window's outputs are covered by none. `frames` 0: the trial itself.
    Raises ValueError where the trial is shorter than a window.
    """
    if not frames:
        return np.arange(length)[None]
    span = (frames - 1) * stride + 1
    if span > length:
        raise ValueError(f"a trial has {length} frames, fewer than a window, which spans {span}")
    windows = []
    for phase in range(min(stride, length - span + 1)):
        last = (length - 1 - phase - (span - 1)) // stride
        starts = [*range(0, last, outputs), last]
        windows += [phase + stride * (start + np.arange(frames)) for start in starts]
    return np.stack(windows)
