"""Every frame of a trial predicted by one encoder, many windows at a time.

What comes in: one animal's trials, normalised as the encoder wants them: `video` (channels, time, height, width) or
`images` (channels, height, width), `behavior` (K[, time]), `pupil_center` (2[, time]). What goes out: float32 (neurons,
time), NaN in frames that no window predicts, or of images (images, neurons).

An encoder that sees windows is shown all windows of a trial in batches; their outputs are blended as they come
(`blending.py`), which gives the same numbers as one window after the other. One that takes whole trials has one pass,
several trials of one length together.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfer.blending import window_table
from transfer.encoder import Encoder

INPUTS = ("video", "images", "behavior", "pupil_center")


class TrialPredictor:
    """One encoder on one device.

    Args:
        encoder: is put into evaluation mode.
        window: frames that the encoder sees at a time; 0: whole trials.
        stride: from one of these frames to the next, in frames of the trial.
        blending: rule of `blending.py`.
        batch_size: windows, trials or images at a time.
        device: where it runs.
        precision: "32-true" or "bf16-mixed".
    """

    def __init__(
        self,
        encoder: Encoder,
        window: int = 0,
        stride: int = 1,
        blending: str = "ones",
        batch_size: int = 16,
        device: str | torch.device = "cpu",
        precision: str = "32-true",
    ) -> None:
        self.encoder = encoder.to(device).eval()
        self.window, self.stride, self.blending = window, stride, blending
        self.batch_size, self.device, self.precision = batch_size, torch.device(device), precision
        self._outputs: dict[tuple[int, ...], int] = {}

    def video(self, animal: str, trials: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        """Of each trial float32 (neurons, time), NaN where no window predicts a frame.

        Raises ValueError for an unknown animal, and for a trial that is shorter than a window.
        """
        if self.window:
            return [self._windows(animal, trial) for trial in trials]
        found: list[np.ndarray | None] = [None] * len(trials)
        lengths = [trial["video"].shape[1] for trial in trials]
        for length in dict.fromkeys(lengths):
            rows = [row for row, of_row in enumerate(lengths) if of_row == length]
            for first in range(0, len(rows), self.batch_size):
                some = rows[first : first + self.batch_size]
                outputs = self._respond(animal, self._stacked([trials[row] for row in some])).float().cpu().numpy()
                for row, output in zip(some, outputs, strict=True):
                    found[row] = at_the_end(output, length)
        return found

    def images(self, animal: str, trials: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        """float32 (images, neurons)."""
        parts = (trials[first : first + self.batch_size] for first in range(0, len(trials), self.batch_size))
        return np.concatenate([self._respond(animal, self._stacked(part)).float().cpu().numpy() for part in parts])

    def _windows(self, animal: str, trial: Mapping[str, np.ndarray]) -> np.ndarray:
        inputs = {name: self._tensor(trial[name]) for name in INPUTS if name in trial}
        length = inputs["video"].shape[1]
        span = self.stride * (self.window - 1) + 1
        within = self.stride * torch.arange(self.window, device=self.device)
        outputs = self._output_frames(animal, inputs, within) if length >= span else self.window
        table = window_table(length, self.window, self.stride, outputs, self.blending)
        starts, places = (torch.from_numpy(part).to(self.device) for part in (table.starts, table.frames))
        weights = torch.from_numpy(table.weights).to(self.device, torch.float32)
        total = torch.zeros(self.encoder.readout_of(animal).neurons, length, device=self.device)
        for first in range(0, len(starts), self.batch_size):
            some = slice(first, first + self.batch_size)
            responses = self._respond(animal, windows_of(inputs, starts[some, None] + within)).float()
            weighted = responses * weights[some, None]
            total.index_add_(1, places[some].flatten(), weighted.movedim(1, 0).flatten(1))
        predicted = total.cpu().numpy()
        predicted[:, ~table.covered(length)] = np.nan
        return predicted

    def _output_frames(self, animal: str, inputs: Mapping[str, Tensor], within: Tensor) -> int:
        """How many responses the encoder gives for one window, found out by asking it once."""
        key = tuple(inputs["video"].shape[:1] + inputs["video"].shape[2:])
        if key not in self._outputs:
            self._outputs[key] = self._respond(animal, windows_of(inputs, within[None])).shape[2]
        return self._outputs[key]

    def _stacked(self, trials: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
        return {name: self._tensor(np.stack([t[name] for t in trials])) for name in INPUTS if name in trials[0]}

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.require(values, np.float32, ["C", "W"])).to(self.device)

    def _respond(self, animal: str, inputs: Mapping[str, Tensor]) -> Tensor:
        stimuli = inputs["video"] if "video" in inputs else inputs["images"]
        signals = {name: inputs.get(name) for name in ("behavior", "pupil_center")}
        with torch.inference_mode(), self._arithmetic():
            return self.encoder(stimuli, animal, **signals)

    def _arithmetic(self) -> Any:
        if self.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def windows_of(inputs: Mapping[str, Tensor], frames: Tensor) -> dict[str, Tensor]:
    """Of a trial's inputs, whose second axis is time, the windows with these frames (windows, frames of a window):
    each with the windows as a new first axis."""
    return {name: values[:, frames].movedim(1, 0) for name, values in inputs.items()}


def at_the_end(outputs: np.ndarray, length: int) -> np.ndarray:
    """Responses (neurons, outputs) of the last frames of a trial as (neurons, length), NaN before."""
    predicted = np.full((len(outputs), length), np.nan, np.float32)
    predicted[:, length - outputs.shape[1] :] = outputs
    return predicted
