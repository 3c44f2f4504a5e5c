"""Forward and backward pass of each encoding model beside a plain transcription of what its authors published.

Comes in: `--models`, `--rounds`, `--threads`, `--batch` (a number, or `published`), `--device`; `--keep-freed`, see
below; `--quick` takes small sizes. Goes out: a table and one line of JSON: `time_ratio` and `memory_ratio`, theirs
over ours, and `max_output_difference`, relative to the largest output. Sizes, and the batch on a GPU, are the published
ones.

All are whole models: core, shifters, readouts, output. Ours and theirs have the same weights, and a process each, which
take turns: the times are medians (and least times) of rounds that alternate, and `cpu_time_ratio` is of least processor
seconds, which other work on the machine changes less. On a CPU, ours tells the C library to keep freed memory, as
`murine fit` does; `--keep-freed` tells theirs, too, which shows what of the ratio is due to that.
Memory is the largest resident size of the process, weights, gradients and libraries included. Much of it is blocks that
the C library keeps between two uses, so that `tensor_memory_ratio` is of what a step adds in a further process, which
gives all blocks over 1 MiB back at once. On a GPU both are the largest memory that torch allocated.
Outputs are compared where batch norm is that of training and nothing is dropped at random; steps are those of training.
DwiseNeuro and Dynamic-VFM have ten animals: as published, DwiseNeuro computes all of them for every clip, and
Dynamic-VFM brings every level of its readout to all neurons, which ours do not. The others have one animal.
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
from published.pairs import PAIRS, loss_of, without_dropping
from timing import rounded

from pretrain.freed_memory import keep_freed_memory

SIDES = ("ours", "theirs")
RETURNED = "MALLOC_MMAP_THRESHOLD_"
# The closed-loop ViV1T as published needs more than 100 GB at its 300 frames.
USUAL = tuple(name for name in PAIRS if name != "viv1t_closed_loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PAIRS), default=list(USUAL))
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", help="clips or images, or `published` (default: 1 on a CPU, published on a GPU)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep-freed", action="store_true", help="theirs keeps freed memory, too")
    parser.add_argument("--quick", action="store_true", help="small sizes, 2 rounds")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 2
    # Threads that wait for work of their own process would take the cores from the other one.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    sides = "".join(
        f"{side + ': ' + unit:>{width}}" for unit, width in (("seconds", 22), ("MiB", 15)) for side in SIDES
    )
    columns = (*("median", "least", "cpu") * 2, *("peak", "step") * 2, "median", "least", "cpu", "peak", "step")
    print(f"{'':>25}{sides}{'theirs / ours':>35}{'difference':>11}")
    print(
        f"{'':>25}"
        + "".join(
            f"{column:>{8 if column in ('median', 'peak') and n < 10 else 7}}" for n, column in enumerate(columns)
        )
    )
    figures = {name: rounded(measure(name, options)) for name in options.models}
    print(json.dumps(figures))


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Both sides in turn; prints a row of the table."""
    tensors = {side: tensor_mib(name, side, options) for side in SIDES}
    workers = {side: Worker(name, side, options) for side in SIDES}
    answers = {side: worker.ask("answer") for side, worker in workers.items()}
    seconds, of_cpu = {side: [] for side in SIDES}, {side: [] for side in SIDES}
    for number in range(options.rounds + 1):
        for side, worker in workers.items():
            took, worked = worker.ask("step")
            if number:
                seconds[side].append(took)
                of_cpu[side].append(worked)
    memory = {side: worker.close()[0] for side, worker in workers.items()}
    figures = {
        "time_ratio": statistics.median(seconds["theirs"]) / statistics.median(seconds["ours"]),
        "memory_ratio": memory["theirs"] / memory["ours"],
        "max_output_difference": float(abs(answers["ours"] - answers["theirs"]).max() / abs(answers["theirs"]).max()),
        "least_time_ratio": min(seconds["theirs"]) / min(seconds["ours"]),
        "cpu_time_ratio": min(of_cpu["theirs"]) / min(of_cpu["ours"]),
        "tensor_memory_ratio": tensors["theirs"] / tensors["ours"],
    }
    times = "".join(
        f"{statistics.median(seconds[side]):8.2f}{min(seconds[side]):7.2f}{min(of_cpu[side]):7.2f}" for side in SIDES
    )
    sizes = "".join(f"{memory[side]:8.0f}{tensors[side]:7.0f}" for side in SIDES)
    ratios = "".join(
        f"{figures[f'{kind}_ratio']:7.2f}" for kind in ("time", "least_time", "cpu_time", "memory", "tensor_memory")
    )
    print(f"{name:>25}{times}{sizes}{ratios}{figures['max_output_difference']:11.1e}", flush=True)
    return figures


def tensor_mib(name: str, side: str, options: argparse.Namespace) -> float:
    """What a step adds, in a process that gives freed blocks back."""
    os.environ[RETURNED] = str(2**20)
    worker = Worker(name, side, options)
    del os.environ[RETURNED]
    worker.ask("step")
    return worker.close()[1]


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
        """MiB at most, and how many of them the process did not have before the first step."""
        memory = self.ask("memory")
        self.connection.send("end")
        self.process.join()
        return memory


def serve(connection: Connection, name: str, side: str, options: argparse.Namespace) -> None:
    """Answer what is asked: the outputs, the seconds of a step, or the memory, until the end is asked for."""
    torch.set_num_threads(options.threads)
    if options.device == "cpu" and RETURNED not in os.environ and (side == "ours" or options.keep_freed):
        keep_freed_memory()
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
                connection.send(pair.ask(side, without_dropping(model), signals)[0].float().cpu().numpy())
        elif asked == "step":
            model.train().zero_grad()
            started, worked = time.perf_counter(), time.process_time()
            loss_of(pair.ask(side, model, signals)).backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            connection.send((time.perf_counter() - started, time.process_time() - worked))
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
