"""Forward and backward pass of each encoding model beside a plain transcription of what its authors published.

Comes in: `--models`, `--rounds`, `--threads`, `--batch` (a number, or `published`), `--device`; `--quick` takes small
sizes. Goes out: a table and one line of JSON: `time_ratio` and `memory_ratio`, theirs over ours, and
`max_output_difference`, relative to the largest output. Sizes, and the batch on a GPU, are the published ones.

Ours and theirs have the same weights, and a process each, which take turns: the times are medians (and least times) of
rounds that alternate. Memory is the largest resident size of the process, weights, gradients and libraries included;
"of the step" is what is beyond what the process had before; on a GPU it is the largest memory that torch allocated.
Outputs are compared in evaluation, where nothing is dropped at random; steps are those of training. DwiseNeuro and
Dynamic-VFM are whole models with the readouts of ten animals: as published, DwiseNeuro computes all of them for every
clip, and Dynamic-VFM brings every level of its readout to all neurons, which ours do not. The others are cores.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from published.pairs import PAIRS, loss_of
from timing import rounded

SIDES = ("ours", "theirs")
# The closed-loop ViV1T as published needs more than 100 GB at its 300 frames.
USUAL = tuple(name for name in PAIRS if name != "viv1t_closed_loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PAIRS), default=list(USUAL))
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", help="clips or images, or `published` (default: 1 on a CPU, published on a GPU)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, 2 rounds")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    # Threads that wait for work of their own process would take the cores from the other one.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    print(f"{'':>26}{'seconds (least)':>30}{'':>8}{'MiB (of the step)':>30}")
    print(f"{'':>26}{'ours':>15}{'theirs':>15}{'ratio':>8}{'ours':>15}{'theirs':>15}{'ratio':>8}{'difference':>12}")
    figures = {name: rounded(measure(name, options)) for name in options.models}
    print(json.dumps(figures))


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Both sides in turn; prints a row of the table."""
    workers = {side: Worker(name, side, options) for side in SIDES}
    answers = {side: worker.ask("answer") for side, worker in workers.items()}
    seconds = {side: [] for side in SIDES}
    for number in range(options.rounds + 1):
        for side, worker in workers.items():
            took = worker.ask("step")
            if number:
                seconds[side].append(took)
    memory = {side: worker.close() for side, worker in workers.items()}
    scale = abs(answers["theirs"]).max()
    figures = {
        "time_ratio": statistics.median(seconds["theirs"]) / statistics.median(seconds["ours"]),
        "memory_ratio": memory["theirs"][0] / memory["ours"][0],
        "max_output_difference": float(abs(answers["ours"] - answers["theirs"]).max() / scale),
        "least_time_ratio": min(seconds["theirs"]) / min(seconds["ours"]),
        "step_memory_ratio": memory["theirs"][1] / memory["ours"][1],
    }
    times = "".join(f"{statistics.median(seconds[side]):8.3f}({min(seconds[side]):5.2f})" for side in SIDES)
    sizes = "".join(f"{memory[side][0]:8.0f}({memory[side][1]:5.0f})" for side in SIDES)
    print(
        f"{name:>26}{times}{figures['time_ratio']:8.2f}{sizes}{figures['memory_ratio']:8.2f}"
        f"{figures['max_output_difference']:12.1e}",
        flush=True,
    )
    return figures


class Worker:
    """A process that holds one side of a pair and does one thing at a time."""

    def __init__(self, name: str, side: str, options: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, side, options), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, for_what: str):
        self.connection.send(for_what)
        return self.connection.recv()

    def close(self) -> tuple[float, float]:
        """MiB at most, of which of the step."""
        memory = self.ask("memory")
        self.connection.send("end")
        self.process.join()
        return memory


def serve(connection: Connection, name: str, side: str, options: argparse.Namespace) -> None:
    """Answer what is asked: the outputs, the seconds of a step, or the memory, until the end is asked for."""
    torch.set_num_threads(options.threads)
    pair, device = PAIRS[name], torch.device(options.device)
    model = pair.build(side, options.quick).to(device)
    batch = options.batch or ("1" if device.type == "cpu" else "published")
    count = pair.batch if batch == "published" else int(batch)
    signals = tuple(signal.to(device) for signal in pair.signals(count, options.quick))
    before = resident_mib(device)
    while (asked := connection.recv()) != "end":
        if asked == "answer":
            with torch.no_grad():
                # As numbers: tensors would be sent through shared memory, which has little room in a container.
                connection.send(pair.ask(side, model.eval(), signals)[0].float().cpu().numpy())
        elif asked == "step":
            model.train().zero_grad()
            started = time.perf_counter()
            loss_of(pair.ask(side, model, signals)).backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            connection.send(time.perf_counter() - started)
        else:
            peak = peak_mib(device)
            connection.send((peak, peak - before))


def resident_mib(device: torch.device) -> float:
    """What the process has in memory now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib(device: torch.device) -> float:
    """What it had at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
