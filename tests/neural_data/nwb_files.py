"""What small session files are made of: random numbers, and units of all kinds of quality.

Neuropixels and two-photon; `neuropixels_file.py` and `two_photon_file.py` write them.
"""

from typing import Any

import numpy as np
import pandas as pd

from neural_data.neuropixels_file import NeuropixelsSession
from neural_data.two_photon_file import TwoPhotonContent

GOOD = {"quality": "good", "amplitude_cutoff": 0.02, "presence_ratio": 0.99, "isi_violations": 0.1}
OTHERS = ("PT_ratio", "cumulative_drift", "d_prime", "firing_rate", "isolation_distance", "l_ratio", "max_drift", "snr")
# Of each unit its area, its probe, whether its electrode is valid, and what is wrong with it.
UNITS = [
    (950911932, "VISp", "probeA", True, {}),
    (950911933, "VISl", "probeA", True, {}),
    (950911934, "LP", "probeB", True, {}),
    (950911935, "VISp", "probeA", True, {"quality": "noise"}),
    (950911936, "VISp", "probeA", True, {"amplitude_cutoff": np.nan}),
    (950911937, "VISp", "probeA", False, {}),
    (950911938, "None", "probeB", True, {}),
    (950911939, "VISl", "probeB", True, {"isi_violations": 0.51}),
    (950911940, "VISl", "probeB", True, {"presence_ratio": 0.94}),
]
IMAGES, REPEATS, FRAMES, SHOWINGS = 4, 5, 12, 4


def neuropixels(seed: int = 0, **changed: Any) -> NeuropixelsSession:
    rng = np.random.default_rng(seed)
    wheel, camera = np.arange(5, 60, 1 / 60), np.arange(4, 61, 1 / 30)
    presentations = _presentations(rng)
    pupil = {"pupil_area": rng.uniform(500, 900, len(camera)), "center_x": rng.normal(300, 5, len(camera))}
    eye = pd.DataFrame({"timestamps": camera} | pupil | {"center_y": rng.normal(200, 5, len(camera))})
    eye.loc[40:44, "pupil_area"] = np.nan
    parts = {
        "name": "715093703",
        "animal": "699733581",
        "units": _units(),
        "trains": [np.sort(rng.uniform(0, 65, rng.integers(1500, 4000))) for _ in UNITS],
        "presentations": presentations,
        "running": (wheel, rng.normal(5, 10, len(wheel))),
        "eye": eye,
        "templates": {
            "natural_scenes": rng.integers(0, 256, (IMAGES, 6, 8)).astype(np.uint8),
            "natural_movie_one": rng.integers(0, 256, (FRAMES, 5, 7)).astype(np.uint8),
        },
    }
    return NeuropixelsSession(**(parts | changed))


def _presentations(rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    order = np.concatenate([rng.permutation(np.append(np.arange(IMAGES), -1)) for _ in range(REPEATS)]).astype(float)
    start = 10 + 0.25021 * np.arange(len(order))
    scenes = pd.DataFrame({"start_time": start, "stop_time": start + 0.25021, "frame": order, "stimulus_block": 6.0})
    frame = np.tile(np.arange(FRAMES, dtype=float), SHOWINGS)
    start = 30 + np.cumsum(rng.uniform(0.033, 0.0337, len(frame))) + 20 * (np.arange(len(frame)) >= len(frame) // 2)
    stop = np.append(start[1:], start[-1] + 0.0334)
    stop[len(frame) // 2 - 1] = start[len(frame) // 2 - 1] + 0.0334
    movie = pd.DataFrame({"start_time": start, "stop_time": stop, "frame": frame, "stimulus_block": 7.0})
    movie.loc[len(frame) // 2 :, "stimulus_block"] = 9.0
    grating = pd.DataFrame({"start_time": [1.0, 4.0], "stop_time": [3.0, 6.0], "orientation": [45.0, np.nan]})
    return {
        "natural_scenes": scenes,
        "natural_movie_one": movie,
        "drifting_gratings": grating,
        "natural_movie_one_shuffled": movie,
        "spontaneous": pd.DataFrame({"start_time": [0.0, 20.0], "stop_time": [1.0, 29.0]}),
    }


def _units() -> pd.DataFrame:
    rows = [
        {"unit_id": unit, "area": area, "probe": probe, "valid_data": valid, **(GOOD | wrong)}
        for unit, area, probe, valid, wrong in UNITS
    ]
    at = np.arange(len(UNITS))
    places = {"x_um": 8000.0 + at, "y_um": 500.0 + 10 * at, "z_um": np.where(at == 2, -1.0, 7000.0)}
    return pd.DataFrame(rows).assign(**places, **dict.fromkeys(OTHERS, 1.5))


def two_photon(seed: int = 0) -> TwoPhotonContent:
    rng = np.random.default_rng(seed)
    n, cells = 1500, (517398740, 517398741, 517398742)
    times = 2.5 + np.cumsum(rng.uniform(0.0330, 0.0334, n))
    order = np.concatenate([rng.permutation(np.append(np.arange(IMAGES), -1)) for _ in range(REPEATS)])
    start = 100 + 8 * np.arange(len(order)) - np.arange(len(order)) // 2
    # The second presentation lasts 7 samples, which makes a sweep; others 7 or 8.
    scenes = pd.DataFrame({"frame": order, "start": start, "stop": start + np.where(np.arange(len(order)) % 3, 7, 8)})
    frame = np.tile(np.arange(FRAMES), SHOWINGS)
    start = 700 + np.arange(len(frame)) + 300 * (np.arange(len(frame)) >= len(frame) // 2)
    movie = pd.DataFrame({"frame": frame, "start": start, "stop": start + 1})
    raw = rng.uniform(200, 400, (len(cells), n)).astype(np.float32)
    return TwoPhotonContent(
        name="501794235",
        animal="495726109",
        area="VISl",
        cells=cells,
        times=times,
        demixed=(raw + rng.normal(0, 5, raw.shape)).astype(np.float32),
        neuropil=rng.uniform(50, 100, raw.shape).astype(np.float32),
        r=np.array([0.3, 0.0, 0.9]),
        raw=raw,
        dff=rng.normal(0.1, 0.2, raw.shape).astype(np.float32),
        events=np.maximum(rng.normal(-1, 1, raw.shape), 0),
        presentations={"natural_scenes": scenes, "natural_movie_one": movie},
        templates={
            "natural_scenes": rng.integers(0, 256, (IMAGES, 6, 8)).astype(np.float32),
            "natural_movie_one": rng.integers(0, 256, (FRAMES, 5, 7)).astype(np.uint8),
        },
        running=rng.normal(5, 10, n),
        gaze=rng.normal(0, 3, (n, 2)),
        pupil=rng.uniform(500, 900, n),
    )
