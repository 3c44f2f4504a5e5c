"""One response per neuron and presentation: the units and the time window that a config asks for.

Comes in: a `Recording` of responses to images, resolved in time or not, or to videos. Goes out: a static one, and the
neurons that mouse-vision's selection leaves out. Of videos, bins of their frames are the stimuli (`video_bins.py`).
"""

from typing import Any

import numpy as np
import pandas as pd

from neural_data.recording import Recording
from neural_data.unit_selection import NEUROPIXELS, TWO_PHOTON, SelectionRule, select_units
from transfer.config import PredictivityConfig
from transfer.video_bins import binned_recording

UNSELECTED = "unselected"
RULES = {"neuropixels": NEUROPIXELS, "two_photon": TWO_PHOTON}
VIDEO_KEYS = ("bin_ms", "latency_ms", "skip_ms", "block_ms", "gap_ms")
EVERY_UNIT = SelectionRule(min_reliability=-1, min_run_p=-1, min_median=None, min_units=0)


def static_responses(recording: Recording, config: PredictivityConfig) -> tuple[Recording, pd.DataFrame]:
    """The recording with one response per presentation; and the excluded neurons: neuron_id, animal, area, reason,
    detail.

    Raises ValueError for a window or selection that does not fit the recording, as none does videos.
    """
    window_ms = window_of(config.window_ms)
    none = pd.DataFrame(columns=["neuron_id", "animal", "area", "reason", "detail"])
    if recording.video:
        given = f"window_ms={config.window_ms}" if window_ms else f"selection={config.selection}"
        if window_ms or config.selection != "none":
            raise ValueError(f"{recording.name}: stimuli are videos, {given} is for images; see bin_ms and latency_ms")
        return binned_recording(recording, config), none
    changed = [name for name in VIDEO_KEYS if getattr(config, name) != getattr(PredictivityConfig, name)]
    if changed:
        raise ValueError(f"{recording.name}: stimuli are images, {changed[0]} is for videos; leave it out")
    options: dict[str, Any] = {}
    rule = RULES.get(config.selection)
    if rule is None:
        if not recording.dynamic and window_ms is None:
            return recording, none
        rule = EVERY_UNIT
        # Reliabilities need not be worked out to leave out nobody.
        options = {"areas": None, "reliability": np.zeros(len(recording.neurons))}
        window_ms = window_ms or whole_window(recording)
    selected, excluded = select_units(recording, rule, window_ms, **options)
    excluded = excluded.rename(columns={"reason": "detail"}).assign(reason=UNSELECTED)
    return selected, excluded[["neuron_id", "animal", "area", "reason", "detail"]]


def window_of(window_ms: list[float]) -> tuple[float, float] | None:
    if not window_ms:
        return None
    if len(window_ms) != 2 or not window_ms[0] < window_ms[1]:
        raise ValueError(f"window_ms is {window_ms}, expected [start,end] in ms with start before end")
    return window_ms[0], window_ms[1]


def whole_window(recording: Recording) -> tuple[float, float] | None:
    if not recording.dynamic:
        return None
    length_ms = 1000 * recording.responses.shape[2] / recording.sampling_rate_hz
    return recording.response_start_ms, recording.response_start_ms + length_ms
