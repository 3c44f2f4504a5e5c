"""Where simulated neurons lie, and where they look: areas, layers, and the map from cortex to the stimulus.

Comes in: a `SimulationConfig` and a generator. Goes out: the neuron table of a recording with positions in µm, and
the centres of receptive fields as shares of the stimulus's sides.
"""

import numpy as np
import pandas as pd

from neural_data.simulation_config import SimulationConfig
from neural_data.tables import neuron_table

CENTRAL = (0.3, 0.7)  # receptive-field centres, share of the image's side
SCATTER = 0.03  # standard deviation of the centres around the retinotopic map, share of the image's side
AREA_WIDTH_UM = 1000.0
LAYERS = {"2/3": (120.0, 300.0), "4": (300.0, 420.0), "5": (420.0, 650.0)}  # depth in µm, round numbers


def place_neurons(config: SimulationConfig, rng: np.random.Generator) -> pd.DataFrame:
    """The neuron table: animals, in each its areas, with uniform positions in the area and a layer by
    depth."""
    n = config.animals * len(config.areas) * config.neurons_per_area
    animal = np.repeat(np.arange(1, config.animals + 1), n // config.animals)
    area = np.tile(np.repeat(config.areas, config.neurons_per_area), config.animals)
    layer = rng.choice(list(LAYERS), size=n)
    top, bottom = np.array([LAYERS[name] for name in layer]).T
    in_animal = np.tile(np.arange(n // config.animals), config.animals)
    return neuron_table(
        neuron_id=[f"{a}-{i:04d}" for a, i in zip(animal, in_animal, strict=True)],
        animal=[f"animal{a}" for a in animal],
        area=area,
        layer=layer,
        x_um=rng.uniform(0, AREA_WIDTH_UM, n),
        y_um=rng.uniform(0, AREA_WIDTH_UM, n),
        z_um=rng.uniform(top, bottom),
    )


def field_centres(neurons: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Centres of receptive fields, float64 (2, neurons), x and y as shares of the stimulus's width and height."""
    # Neighbouring areas mirror each other's map at their border; all but VISp are drawn as mirrored.
    x_map = neurons["x_um"] / AREA_WIDTH_UM
    x_map = np.where(neurons["area"] == "VISp", x_map, 1 - x_map)
    y_map = (neurons["y_um"] / AREA_WIDTH_UM).to_numpy()
    shares = CENTRAL[0] + (CENTRAL[1] - CENTRAL[0]) * np.stack([x_map, y_map])
    return np.clip(shares + SCATTER * rng.standard_normal((2, len(neurons))), *CENTRAL)


def random_kinds(n: int, config: SimulationConfig, rng: np.random.Generator) -> np.ndarray:
    """Text (n,), "simple", "complex" or "dead", in the shares that the config asks for."""
    dead = round(config.dead_neurons * n)
    complex_cells = round(config.complex_cells * (n - dead))
    names = ["dead"] * dead + ["complex"] * complex_cells + ["simple"] * (n - dead - complex_cells)
    return rng.permutation(np.array(names))
