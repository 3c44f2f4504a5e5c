"""A small file of mouse-vision's, in the layout of releases that no current Python can install, for tests to change."""

from typing import Any

import numpy as np

from neural_data.pickle_writer import pickled
from neural_data.pickled_xarray_writer import data_array

NEUROPIXELS_DIMS = ("trials", "frame_id", "time_relative_to_stimulus_onset", "units")


def packaged(seed: int = 0, repeats: int = 4, images: int = 6, bins: int = 5, **changed: Any) -> dict[str, Any]:
    """A small Neuropixels file: two animals in two areas, the second without its last repeats. `values` is added for
    tests to compare with; the pickle is of the others."""
    rng = np.random.default_rng(seed)
    units = {
        "unit_id": np.array([951, 952, 953, 954, 955]),
        "specimen_id": np.array([71, 71, 71, 82, 82]),
        "visual_area": np.array(["VISp", "VISp", "VISl", "VISp", "VISl"], object),
        "image_selectivity_ns": rng.uniform(size=5).round(3),
        "run_pval_ns": np.array([0.5, 0.01, np.nan, 0.2, 0.9]),
    }
    values = rng.poisson(0.4, (repeats, images, bins, 5)) / 0.01
    values[-1, :, :, 3:] = np.nan
    labels = {
        "trials": np.arange(repeats) + 1,
        "frame_id": np.arange(images),
        "time_relative_to_stimulus_onset": 0.005 + 0.01 * np.arange(bins),
    }
    along = ("time_relative_to_stimulus_onset", "units")
    reliability = rng.uniform(-0.2, 1, (bins, 5))
    extra = {"splithalf_r_mean": (along, reliability), "splithalf_r_std": (along, 0.1 * reliability)}
    stimuli = rng.integers(0, 256, (images, 8, 9)).astype(np.uint8)
    data = data_array(NEUROPIXELS_DIMS, values, labels, units, extra, **changed)
    return {"stimuli": stimuli, "neural_data": data, "values": values, "reliability": reliability, "units": units}


def write_packaged(path: Any, package: dict[str, Any], **how: Any) -> Any:
    path.write_bytes(pickled({name: package[name] for name in ("stimuli", "neural_data")}, **how))
    return path
