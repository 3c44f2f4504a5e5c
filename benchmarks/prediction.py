"""A trial predicted by sliding windows, in batches, beside the winner's code of Sensorium 2023, one window at a time.

Comes in: nothing; `--quick` takes a small network, `--windows` how many windows the trial has, `--batch-sizes` ours.
Goes out: a table and one line of JSON: processor seconds and seconds of theirs over ours, for the same network and
weights, in turn, each in a process of its own; the largest difference of the blended predictions as a share of the
largest one. Theirs is DwiseNeuro as published, operation by operation, with the readout of one animal (lRomul/sensorium
`src/predictors.py`). On a GPU (`--device cuda`), where a window alone leaves most of it idle, only seconds count.
"""

import argparse
import json
import multiprocessing
import time
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import torch
from published.dwiseneuro import PlainDwiseNeuro
from timing import rounded
from torch import Tensor

from pretrain.freed_memory import keep_freed_memory
from pretrain.models.dwiseneuro import DwiseNeuro
from transfer.activations import create_activation
from transfer.encoder import Encoder
from transfer.grouped_linear_readout import GroupedLinearReadout
from transfer.trial_prediction import TrialPredictor

FULL = {"neurons": 7863}
QUICK = {"neurons": 200, "features": (16, 16, 32), "strides": (2, 2, 2), "cortex_features": (64, 128), "expansion": 3}
CANVAS, SIZE, FRAMES, STRIDE = 64, (36, 64), 16, 2
ROUNDS = 3
THEIRS = "one by one"


def models(neurons: int, device: str, **arguments: object) -> tuple[Encoder, PlainDwiseNeuro]:
    """Ours and theirs with the same weights, drawn at random."""
    torch.manual_seed(0)
    core = DwiseNeuro(**arguments)
    encoder = Encoder(core, create_activation("softplus", beta=0.07))
    encoder.add_animal("mouse", GroupedLinearReadout((core.out_channels, 1, 1), neurons))
    theirs = PlainDwiseNeuro((neurons,), **arguments)
    for parameter in encoder.parameters():
        parameter.data.normal_(std=0.1) if parameter.ndim < 2 else None
    weights = list(core.state_dict().values()) + list(encoder.readouts["mouse"].state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    return encoder.to(device).eval(), theirs.to(device).eval()


@torch.no_grad()
def one_by_one(model: PlainDwiseNeuro, trial: dict[str, np.ndarray], neurons: int, device: str) -> np.ndarray:
    """The winner's prediction of a trial: (neurons, frames)."""
    video, behavior, pupil = (
        torch.from_numpy(trial[name]).to(device) for name in ("video", "behavior", "pupil_center")
    )
    length, behind = video.shape[1], (FRAMES - 1) * STRIDE
    responses, blend_weights = torch.zeros(neurons, length, device=device), torch.zeros(length, device=device)
    for last in range(behind, length):
        indexes = list(range(last - behind, last + 1, STRIDE))
        planes = torch.zeros(1, 5, FRAMES, CANVAS, CANVAS, device=device)
        planes[0, :1, :, 14:50] = video[:, indexes]
        planes[0, 1:] = torch.cat((behavior, pupil))[:, indexes, None, None]
        responses[:, indexes] += one_readout(model, planes)
        blend_weights[indexes] += 1
    return (responses / blend_weights.clamp(min=1)).cpu().numpy()


def one_readout(model: PlainDwiseNeuro, planes: Tensor) -> Tensor:
    return model.readouts[0](model.encode(planes))[0]


def serve(name: str, options: argparse.Namespace, calls: Connection) -> None:
    """A process for one job: what it gives first, then seconds and processor seconds of a round for every call."""
    arguments = dict(QUICK if options.quick else FULL)
    ours, theirs = models(device=options.device, **arguments)
    rng, frames = np.random.default_rng(0), (FRAMES - 1) * STRIDE + options.windows
    shapes = {"video": (1, frames, *SIZE), "behavior": (2, frames), "pupil_center": (2, frames)}
    trial = {name: rng.uniform(0, 255, shape).astype(np.float32) for name, shape in shapes.items()}
    if name == THEIRS:
        job = partial(one_by_one, theirs, trial, arguments["neurons"], options.device)
    else:
        keep_freed_memory()
        predictor = TrialPredictor(ours, FRAMES, STRIDE, "ones", int(name.split()[-1]), options.device)
        job = lambda: predictor.video("mouse", [trial])[0]  # noqa: E731
    calls.send(job())
    while calls.recv():
        started = time.perf_counter(), time.process_time()
        job()
        calls.send((time.perf_counter() - started[0], time.process_time() - started[1]))


def measured(options: argparse.Namespace) -> tuple[dict[str, tuple[float, float]], dict[str, np.ndarray]]:
    """Least seconds and processor seconds of each job, in turn, each in a process of its own; and what they give."""
    context = multiprocessing.get_context("spawn")
    calls, found = {}, {}
    for name in (THEIRS, *(f"batches of {size}" for size in options.batch_sizes)):
        calls[name], other = context.Pipe()
        context.Process(target=serve, args=(name, options, other), daemon=True).start()
        found[name] = calls[name].recv()
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call.send(True)
            rounds[name].append(call.recv())
    for call in calls.values():
        call.send(False)
    return {name: tuple(np.min(each, axis=0).tolist()) for name, each in rounds.items()}, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    seconds, found = measured(options)
    print(f"{'':16} {'s / window':>12} {'processor s':>12}")
    for name, (wall, processor) in seconds.items():
        print(f"{name:16} {wall / options.windows:12.4f} {processor / options.windows:12.4f}")
    best = min((name for name in seconds if name != THEIRS), key=lambda name: seconds[name][0])
    figures = {
        "windows_per_s_ratio": seconds[THEIRS][0] / seconds[best][0],
        "processor_time_ratio": seconds[THEIRS][1] / seconds[best][1],
        "max_difference": float(np.nanmax(np.abs(found[best] - found[THEIRS])) / np.abs(found[THEIRS]).max()),
        "windows": options.windows,
        "fastest": best,
        "device": options.device,
    }
    print(json.dumps(rounded(figures)))


if __name__ == "__main__":
    main()
