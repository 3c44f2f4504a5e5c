"""The states of Dynamic-VFM with adaptive fusion of which the reference values have losses and gradients, made again.

What comes in: the perturbed state with mean fusion, which is there. What goes out: the states with adaptive fusion,
fresh and perturbed. Reference models were built under `torch.manual_seed(0)`, and 0.05 times a normal draw (seed 2, in
the order of the parameters) was added: the core's fresh weights are those of the other model, and the rest is drawn
again in the order of the published constructors, which the tests check on the model whose state is there.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

NEURONS = {"m0": 37, "m1": 50}
STD = 0.02


def fresh_mean(perturbed: dict[str, Tensor], norms: dict[str, Any]) -> dict[str, Tensor]:
    """The state before noise was added to its parameters, of which `norms` has the names in order."""
    noise = torch.Generator().manual_seed(2)
    return perturbed | {
        name: perturbed[name] - 0.05 * torch.randn(perturbed[name].shape, generator=noise) for name in norms
    }


def adaptive_states(perturbed: dict[str, Tensor], described: dict[str, Any]) -> tuple[dict[str, Tensor], ...]:
    """The fresh and the perturbed state of the model with adaptive fusion."""
    fresh = fresh_mean(perturbed, described["mean_perturbed"]["grad_norms"])
    with torch.random.fork_rng(devices=[]):
        drawn = dict(around_core(fusion=True))
    fresh = {name: drawn.get(name, fresh.get(name)) for name in described["adaptive_perturbed"]["state_dict"]}
    noise, norms = torch.Generator().manual_seed(2), described["adaptive_perturbed"]["grad_norms"]
    return fresh, fresh | {name: fresh[name] + 0.05 * torch.randn(fresh[name].shape, generator=noise) for name in norms}


def around_core(fusion: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights of readouts and shifters as they are drawn after the core's."""
    torch.manual_seed(0)
    draw_core()
    for animal, neurons in NEURONS.items():
        start = f"readout.{animal}."
        yield from named(f"{start}mu_transform.0", nn.Linear(2, 8))
        yield from named(f"{start}mu_transform.2", nn.Linear(8, 2))
        first_sigma(neurons)
        for maps in range(2, 6) if fusion else ():
            for layer in (0, 2):
                yield from named(f"{start}fusion_block{maps}.module.{layer}", nn.Linear(maps, maps))
        for level, hidden in ((2, 32), (4, 64), (8, 128), (16, 256)):
            yield from named(f"{start}up_refine{level}.0", nn.Conv1d(1, hidden, 1))
            yield from named(f"{start}up_refine{level}.2", nn.Conv1d(hidden, 1, 1, bias=False))
    # All readouts are initialised a second time.
    yield from ((f"readout.{animal}.sigma", first_sigma(neurons)) for animal, neurons in NEURONS.items())
    for animal in NEURONS:
        for number, (inputs, outputs) in enumerate(((2, 6), (6, 6), (6, 2))):
            yield from named(f"shifter.{animal}.mlp.{2 * number}", nn.Linear(inputs, outputs))


def draw_core() -> None:
    """What the core takes from the generator."""
    nn.Conv3d(1, 24, 2, 2)
    layers: list[nn.Linear] = []
    for _ in range(2):
        layers += [nn.Linear(24, 72), nn.Linear(24, 24)]
        nn.init.trunc_normal_(torch.empty(315, 3), std=STD)
        layers.append(nn.Linear(24, 40))
        nn.Conv3d(20, 20, 3, groups=20)
        layers += [nn.Linear(20, 24), nn.Linear(4, 12), nn.Linear(12, 12)]
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=STD)


def first_sigma(neurons: int) -> Tensor:
    return torch.empty(1, neurons, 2, 2).uniform_(-0.2, 0.2)


def named(name: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((f"{name}.{part}", value.detach()) for part, value in layer.named_parameters())
