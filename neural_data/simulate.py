"""Simulated recordings whose truth is known: the door to the family.

Comes in: a `SimulationConfig`. Goes out: with `simulate` one recording of animals that look at images, with
`simulate_videos` one recording per animal that watches videos, each with its truth; with `write_simulation` either in
files of any supported layout.
"""

from neural_data.simulate_images import Truth, drive, gabor_filters, simulate
from neural_data.simulate_videos import simulate_videos
from neural_data.simulation_config import FIELD_SIZE, SimulationConfig, VideoConfig
from neural_data.video_truth import VideoTruth
from neural_data.write_simulation import write_simulation, write_truth

__all__ = [
    "FIELD_SIZE",
    "SimulationConfig",
    "Truth",
    "VideoConfig",
    "VideoTruth",
    "drive",
    "gabor_filters",
    "simulate",
    "simulate_videos",
    "write_simulation",
    "write_truth",
]
