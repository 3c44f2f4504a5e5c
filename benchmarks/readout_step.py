"""The Gaussian readout and ViV1T's modulators beside a plain transcription of the published operations, on a CPU.

Comes in: nothing; `--quick` takes a tenth of the neurons. Goes out: a table and one line of JSON: times of theirs over
ours, both in turn, the least of several rounds of processor time; memory of theirs over ours, each in a process of its
own beyond what it had before; the largest difference of the outputs. Sizes are those of the factorised Sensorium
baseline (80 frames, 128 channels, 18 x 46) and of ViV1T (112 frames, 112 channels, 15 x 29), with 8,000 neurons.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable

import torch
from timing import rounded
from torch import Tensor, nn
from torch.nn import functional as F

from transfer.gaussian_readout import GaussianReadout
from transfer.modulators import RecurrentModulator, SharedHistoryModulator

MAPS = {"factorised": (80, 128, 18, 46), "viv1t": (112, 112, 15, 29)}
NEURONS, ROUNDS = 8000, 5
GAUSSIAN_JOBS = ("train", "train_shared", "evaluate", "evaluate_shift")


def plain_gaussian(readout: GaussianReadout, features: Tensor, shift: Tensor | None, noise: Tensor | None) -> Tensor:
    """FullGaussian2d's operations: positions for every frame, grid_sample, product, sum."""
    frames = features.transpose(1, 2).contiguous().flatten(0, 1)
    z = torch.zeros(len(frames), readout.neurons, 1, 2) if noise is None else noise[:, :, None]
    grid = torch.clamp(torch.einsum("ancd,bnid->bnic", readout.sigma, z) + readout.mu, min=-1, max=1)
    grid = grid.expand(len(frames), -1, -1, -1)
    if shift is not None:
        grid = grid + shift.transpose(1, 2).flatten(0, 1)[:, None, None, :]
    sampled = F.grid_sample(frames, grid, align_corners=True).squeeze(-1)
    sums = (sampled * readout._features.view(1, -1, readout.neurons)).sum(1) + readout.bias
    return sums.unflatten(0, (len(features), -1)).transpose(1, 2)


def plain_shared_history(modulator: SharedHistoryModulator, responses: Tensor, behavior: Tensor, pupil: Tensor):
    """ViV1T's MLP v2: the six frames of a neuron's responses and of all states in one array."""
    own = F.pad(responses, (5, 0)).unfold(-1, 6, 1)
    states = F.pad(torch.cat((behavior, pupil), 1), (5, 0)).unfold(-1, 6, 1)
    states = states.transpose(1, 2).flatten(2)[:, None].expand(-1, responses.shape[1], -1, -1)
    return responses + modulator.encoder(torch.cat((own, states), -1)).squeeze(-1).tanh()


def plain_recurrent(modulator: RecurrentModulator, responses: Tensor, behavior: Tensor, pupil: Tensor) -> Tensor:
    """ViV1T's GRU: a cell, frame by frame."""
    cell = nn.GRUCell(modulator.gru.input_size, modulator.gru.hidden_size)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(modulator.gru, f"{name}_l0"))
    states, hidden = torch.cat((behavior, pupil), 1), torch.zeros(len(responses), cell.hidden_size)
    modulated = []
    for frame in range(responses.shape[-1]):
        hidden = cell(responses[..., frame] + modulator.state_encoder(states[..., frame]), hidden)
        modulated.append(responses[..., frame] + modulator.decoder(hidden))
    return torch.stack(modulated, -1)


def jobs_of(model: str, neurons: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Ours and theirs; each gives the output and, where it trains, the gradients."""
    torch.manual_seed(0)
    kind, _, case = model.partition(" ")
    frames, channels, *size = MAPS[kind]
    if case in GAUSSIAN_JOBS:
        readout = GaussianReadout((channels, *size), neurons, init_mu_range=0.8, init_sigma=0.1)
        nn.init.normal_(readout._features)
        features = torch.randn(1, channels, frames, *size, requires_grad=case.startswith("train"))
        shift = 0.2 * torch.randn(1, 2, frames) if case in ("train", "evaluate_shift") else None
        noise = torch.randn(frames, neurons, 2) if case == "train" else None
        if case != "train":
            readout.eval()
        ours, theirs = (
            (lambda: readout(features, shift, noise=noise)),
            (lambda: plain_gaussian(readout, features, shift, noise)),
        )
        wanted = [features, readout._mu, readout._features]
    else:
        ours_of = {"recurrent": RecurrentModulator, "shared_history": SharedHistoryModulator}[case](neurons)
        theirs_of = {"recurrent": plain_recurrent, "shared_history": plain_shared_history}[case]
        signals = [torch.randn(1, values, frames) for values in (neurons, 2, 2)]
        signals[0].requires_grad_()
        ours, theirs = (lambda: ours_of(*signals)), (lambda: theirs_of(ours_of, *signals))
        wanted = [signals[0], *ours_of.parameters()]
    trains = not case.startswith("evaluate")
    return {name: lambda job=job: stepped(job, wanted, trains) for name, job in (("ours", ours), ("theirs", theirs))}


def stepped(job: Callable[[], Tensor], wanted: list[Tensor], trains: bool) -> list[Tensor]:
    """The output of a job and, where it trains, the gradients of its mean square."""
    with torch.set_grad_enabled(trains):
        output = job()
        return [output, *torch.autograd.grad(output.square().mean(), wanted)] if trains else [output]


def peaks(model: str, neurons: int) -> dict[str, float]:
    """`measured` of ours and theirs, each in a new process."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return {name: pool.apply(measured, (model, name, neurons)) for name in ("ours", "theirs")}


def measured(model: str, name: str, neurons: int) -> float:
    """MiB that a job needs at most, beyond what the process has with its inputs."""
    torch.set_num_threads(1)
    job = jobs_of(model, neurons)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def least_seconds(jobs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least processor time of each job, in turn, after one round that does not count."""
    seconds = dict.fromkeys(jobs, float("inf"))
    for number in range(ROUNDS + 1):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            if number:
                seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the neurons")
    neurons = NEURONS // 10 if parser.parse_args().quick else NEURONS
    torch.set_num_threads(1)
    figures = {}
    print(f"{'':>28}{'ours':>9}{'theirs':>9}{'ratio':>7}{'ours':>8}{'theirs':>8}{'ratio':>7}  difference")
    models = [f"{kind} {case}" for kind in MAPS for case in (*GAUSSIAN_JOBS, "recurrent", "shared_history")]
    # First, because a new process takes over the peak of the one that started it.
    memory = {model: peaks(model, neurons) for model in models}
    for model in models:
        jobs = jobs_of(model, neurons)
        ours, theirs = (job() for job in jobs.values())
        difference = float((ours[0] - theirs[0]).abs().max().detach())
        del ours, theirs
        seconds = least_seconds(jobs)
        mib = memory[model]
        ratios = [each["theirs"] / each["ours"] for each in (seconds, mib)]
        figures[model.replace(" ", "_")] = rounded(
            {"time_ratio": ratios[0], "memory_ratio": ratios[1], "max_output_difference": difference}
        )
        print(
            f"{model:>28}{seconds['ours']:8.3f}s{seconds['theirs']:8.3f}s{ratios[0]:7.1f}"
            f"{mib['ours']:8.0f}{mib['theirs']:8.0f}{ratios[1]:7.1f}  {difference:.1e}"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
