"""Windows of trials for training an encoder: ours from both layouts, beside reading whole files.

Comes in: nothing; sizes are options, `--quick` takes small ones. Goes out: a table and one line of JSON. Mice in the
layout of 2023 are written to a scratch folder (float64, 300 frames padded to 324, numbers drawn at random), and
prepared. Every job makes the same batches of windows of DwiseNeuro, 16 frames with stride 2, drawn over all mice:

    whole files   what lRomul/sensorium does in each of its workers: `numpy.load` of every array of a trial, then the
                  window (own transcription, without the planes, the padding and the ten targets that it goes on to
                  make)
    published     `TrialStream` on the same files
    prepared      `TrialStream` on what `murine data prepare` made of them

Jobs take turns in one process, all files in the system's cache. `windows_per_s_ratio` is of prepared to whole files.
`data_wait_share` is the share of the time that steps of `--step-ms` wait for their batches from the prepared layout; by
default 200 ms (a fold of DwiseNeuro is stated at 12 hours on an RTX A6000, 914 ms a step). `peak_gb` is the largest
resident size of a process of its own that makes batches of eight windows of 80 frames of each mouse, normalised per
frame, out of as many mice and trials of the published layout as the competition has; most are links to few files.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from timing import median_seconds, rounded

from neural_data.prepared import read_prepared
from neural_data.prepared_writer import write_prepared
from neural_data.recording import Recording
from neural_data.sensorium import read_sensorium
from transfer.normalisation import fit_normalisation
from transfer.trial_stream import TrialStream
from transfer.windows import WindowPlan

FRAMES, PADDED, HEIGHT, WIDTH = 300, 324, 36, 64
PLAN = WindowPlan(16, 2)
MODALITIES = ("videos", "responses", "behavior", "pupil_center")


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folders = [Path(scratch) / "published" / f"dynamic{mouse}-1-1-Video-00" for mouse in range(options.mice)]
        for mouse, folder in enumerate(folders):
            write_mouse(folder, options.neurons, options.files, options.trials, mouse)
        published = {folder.name: opened(folder) for folder in folders[: options.rate_mice]}
        prepared = prepare(published, options.files, Path(scratch) / "prepared")
        figures = rates(folders[: options.rate_mice], published, prepared, options)
        figures["data_wait_share"] = waiting(prepared, options)
        figures["peak_gb"] = in_a_process(peak_gb, folders, options.workers)
    print(f"{options.mice} mice x {options.trials} trials: {figures['peak_gb']:.2f} GB at most")
    print(f"steps of {options.step_ms} ms wait for data {figures['data_wait_share']:.1%} of the time")
    print(json.dumps(rounded(figures)))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small mice, few steps")
    parser.add_argument("--neurons", type=int, help="of a mouse (8000; quick: 500)")
    parser.add_argument("--mice", type=int, help="of which memory is measured (10; quick: 2)")
    parser.add_argument("--rate-mice", type=int, default=2, help="of which rates are measured")
    parser.add_argument("--trials", type=int, help="of a mouse (711; quick: 40)")
    parser.add_argument("--files", type=int, default=4, help="of the trials of a mouse that are no links to others")
    parser.add_argument("--batch", type=int, default=32, help="windows in a batch")
    parser.add_argument("--steps", type=int, help="batches of a round (4; quick: 2)")
    parser.add_argument("--rounds", type=int, help="of all jobs (5; quick: 2)")
    parser.add_argument("--workers", type=int, default=2, help="threads that read")
    parser.add_argument("--step-ms", type=int, default=200, help="what a step of training takes")
    parser.add_argument("--scratch", help="folder for what is written (default: the system's)")
    options = parser.parse_args()
    usual = {"neurons": (8000, 500), "mice": (10, 2), "trials": (711, 40), "steps": (4, 2), "rounds": (5, 2)}
    for name, (full, quick) in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    return options


def write_mouse(folder: Path, neurons: int, files: int, trials: int, seed: int) -> None:
    """A mouse whose trials from number `files` on are links to those before."""
    rng = np.random.default_rng(seed)
    shapes = {"videos": (HEIGHT, WIDTH), "responses": (neurons,), "behavior": (2,), "pupil_center": (2,)}
    for name, shape in shapes.items():
        below = folder / "data" / name
        below.mkdir(parents=True)
        for trial in range(files):
            values = np.full((*shape, PADDED), np.nan)
            values[..., :FRAMES] = rng.integers(0, 256, (*shape, FRAMES))
            np.save(below / f"{trial}.npy", values)
        for trial in range(files, trials):
            os.link(below / f"{trial % files}.npy", below / f"{trial}.npy")
    (folder / "meta" / "trials").mkdir(parents=True)
    np.save(folder / "meta" / "trials" / "tiers.npy", np.array(["train"] * trials))


def opened(folder: Path) -> Recording:
    return read_sensorium(folder, share_stimuli=False)


def prepare(published: dict[str, Recording], files: int, out: Path) -> dict[str, Recording]:
    """The files of each mouse, each once, in the prepared layout."""
    found = {}
    for name, recording in published.items():
        few = replace(
            recording,
            trials=recording.trials[:files],
            stimuli=recording.stimuli[:files],
            responses=recording.responses[:files],
            behavior=recording.behavior[:files],
            pupil_center=recording.pupil_center[:files],
        )
        found[name] = read_prepared(write_prepared(few, out / name))
    return found


def stream(recordings: dict[str, Recording], rows: int, batch: int, workers: int) -> TrialStream:
    of_all = {animal: np.arange(rows) for animal in recordings}
    fitted = {animal: fit_normalisation("dwiseneuro", recordings[animal], of_all[animal]) for animal in recordings}
    epoch = 1000 * batch
    return TrialStream(recordings, of_all, fitted, PLAN, "mixed", batch, samples_per_epoch=epoch, workers=workers)


def rates(
    folders: list[Path], published: dict[str, Recording], prepared: dict[str, Recording], options: argparse.Namespace
) -> dict[str, float]:
    """Windows per second of each way, by name."""
    streams = {
        "published": stream(published, options.files, options.batch, options.workers),
        "prepared": stream(prepared, options.files, options.batch, options.workers),
    }
    whole = stream(published, options.files, options.batch, 0)

    def ours(made: TrialStream) -> Callable[[], None]:
        return lambda: [None for _ in made.batches(stop=options.steps)]

    jobs = {"whole files": lambda: [whole_files(folders, whole, step) for step in range(options.steps)]}
    jobs |= {name: ours(made) for name, made in streams.items()}
    seconds = median_seconds(jobs, options.rounds)
    windows = options.steps * options.batch
    print(f"{options.neurons:,} neurons, batches of {options.batch} windows; windows per second")
    for name, time_s in seconds.items():
        print(f"{name:>12}  {windows / time_s:10,.0f}")
    figures = {f"{name.replace(' ', '_')}_windows_per_s": windows / time_s for name, time_s in seconds.items()}
    return figures | {
        "windows_per_s_ratio": seconds["whole files"] / seconds["prepared"],
        "published_ratio": seconds["whole files"] / seconds["published"],
    }


def whole_files(folders: list[Path], made: TrialStream, step: int) -> dict[str, list[torch.Tensor]]:
    """The batch of a step, each window out of whole arrays."""
    batch: dict[str, list[torch.Tensor]] = {name: [] for name in MODALITIES}
    by_name = {folder.name: folder for folder in folders}
    for animal, (trials, starts) in made.order.step(step).items():
        for trial, start in zip(trials.tolist(), starts.tolist(), strict=True):
            frames = PLAN.numbers(start, FRAMES)
            for name in MODALITIES:
                values = np.load(by_name[animal] / "data" / name / f"{trial}.npy")
                batch[name].append(torch.from_numpy(values[..., frames].astype(np.float32)))
    return {name: torch.stack(windows) if name != "responses" else windows for name, windows in batch.items()}


def waiting(prepared: dict[str, Recording], options: argparse.Namespace) -> float:
    """Share of the time that steps wait for their batches, after the first."""
    made = stream(prepared, options.files, options.batch, options.workers)
    waited, stop = 0.0, 5 * options.steps
    batches = made.batches(stop=stop + 1)
    next(batches)
    begun = time.perf_counter()
    for _ in range(stop):
        # The device is busy meanwhile, and the processor free to read.
        time.sleep(options.step_ms / 1000)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - begun)


def peak_gb(folders: list[Path], workers: int) -> float:
    """Largest resident size of this process while it streams from all mice."""
    recordings = {folder.name: opened(folder) for folder in folders}
    rows = {animal: np.arange(len(recording.trials)) for animal, recording in recordings.items()}
    fitted = {
        animal: fit_normalisation("sensorium2023", recording, np.arange(2)) for animal, recording in recordings.items()
    }
    made = TrialStream(recordings, rows, fitted, WindowPlan(80), "all", 8, workers=workers)
    for _ in made.batches(stop=5):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def in_a_process(job: Callable[..., float], *arguments: object) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(job, arguments)


if __name__ == "__main__":
    main()
