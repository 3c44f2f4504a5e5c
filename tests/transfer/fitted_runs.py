"""Small run folders as `murine fit` leaves them, with weights that were drawn instead of trained.

Comes in: a folder of recordings, an encoder's spec, a normalisation, a window. Goes out: a folder with a checkpoint
that `load_fitted` reads.
"""

import dataclasses
from pathlib import Path

import torch

from neural_data.simulation_config import SimulationConfig, VideoConfig
from neural_data.write_simulation import write_simulation
from pretrain.checkpoint import save_checkpoint
from transfer.encoder_builder import build_encoder
from transfer.encoder_spec import EncoderSpec
from transfer.fit_encoder import animal_facts
from transfer.fit_recordings import open_animals
from transfer.fitted import FitSpec, FittedAnimal
from transfer.normalisation import fit_normalisation
from transfer.predict import train_rows
from transfer.windows import WindowPlan

DWISENEURO = EncoderSpec(
    "dwiseneuro",
    "grouped_linear",
    activation="softplus",
    coordinate_axes=0,
    core_arguments={
        "features": [8, 8, 16], "strides": [2, 2, 2], "cortex_features": [16, 32], "expansion": 2, "squeeze": 4,
        "canvas": [16, 20],
    },
)  # fmt: skip
FACTORIZED = EncoderSpec(
    "factorized3d",
    "gaussian",
    core_arguments={"channels": [4, 4], "spatial_kernels": [5, 3], "temporal_kernels": [5, 3]},
)
STACKED = EncoderSpec("stacked2d", "gaussian", core_arguments={"channels": 4, "layers": 2})
WINDOW = WindowPlan(16, 2)


def simulated_videos(folder: Path, animals: int = 2, neurons: int = 6, **videos: object) -> Path:
    """A folder of mice in the layout of 2023: 50 frames, padding, withheld tiers, repeats."""
    return write_simulation(video_config(folder, animals, neurons, **videos))


def video_config(folder: Path, animals: int = 2, neurons: int = 6, **videos: object) -> SimulationConfig:
    """What `simulated_videos` is made with."""
    settings = {
        "frames": 50, "train_clips": 4, "repeats": 3, "withheld": ["live_test_main", "final_test_main"],
        "response": "deconvolved", "test_clips": 2, "height": 16, "width": 20, "short_clips": 0.0, "lost_frames": 0.3,
    }  # fmt: skip
    return SimulationConfig(
        str(folder), animals=animals, areas=["VISp"], neurons_per_area=neurons, dead_neurons=0.0, dynamic=True,
        format="sensorium_video", videos=VideoConfig(**(settings | videos)),
    )  # fmt: skip


def simulated_images(folder: Path) -> Path:
    """A folder of mice in the layout of 2022."""
    config = SimulationConfig(
        str(folder), animals=1, areas=["VISp"], neurons_per_area=6, dead_neurons=0.0, stimuli=30, repeats=3, size=32,
        format="sensorium_static",
    )  # fmt: skip
    return write_simulation(config)


def fitted_run(
    folder: Path, recording: Path, spec: EncoderSpec, normalisation: str, plan: WindowPlan, seed: int = 0
) -> Path:
    """A run folder whose encoder has weights of the seed."""
    animals = open_animals([str(recording)])
    normalisations = {
        name: fit_normalisation(normalisation, animal.recording, train_rows(animal.recording))
        for name, animal in animals.items()
    }
    facts = {
        name: animal_facts(animal, 1.0, normalisations[name], train_rows(animal.recording))
        for name, animal in animals.items()
    }
    torch.manual_seed(seed)
    encoder = build_encoder(spec, facts)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    saved = {
        name: FittedAnimal(
            facts[name].saved(), normalisations[name].state(), animal.path, animal.recording.name, animal.neuron_ids
        )
        for name, animal in animals.items()
    }
    space = next(iter(normalisations.values())).response_space
    model = FitSpec(spec, saved, plan, space, 0, {})
    state = {"epoch": 1, "model": dataclasses.asdict(model), "backbone": encoder.state_dict(), "average": None}
    folder.mkdir()
    save_checkpoint(folder / "checkpoints", 1, state | {"remembered": {}}, keep=1)
    return folder
