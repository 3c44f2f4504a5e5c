"""A moving average of the backbone's weights: often a better backbone than the last weights (Polyak & Juditsky 1992).

What comes in: a backbone in training, after each step of the optimiser, and the number of that step. What goes out: a
second backbone, in evaluation mode, whose weights and running statistics are average = d * average + (1 - d) * newest,
with d = `decay`, or with a warm-up the smaller of `decay` and 1 - n^(-2/3) at step n (from 1), as timm's `ModelEmaV3`
has it. At the first step d is 0, so the random weights of the start have no share in it, unless `initial`. Whole
numbers are copied.

Schedule-Free optimisers (Defazio et al. 2024, https://arxiv.org/abs/2405.15682) train weights y between the averages x,
which are to be used, and a sequence z: y = b x + (1 - b) z. Their own `eval()` and `train()` turn y into x and back,
which rounds, so that a run would depend on how often it was saved. Here x is found beside y, and y is left alone.

`ModelEmaV3` itself goes through the state dict, where a layer that is registered twice (`alexnet_rotnet`) lies twice,
and averages it twice; `torch.optim.swa_utils` averages whole numbers too. So the loop over tensors is ours.
"""

import copy

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.config import AverageConfig

WARMUP_POWER = 2 / 3

# The dictionary in which a module holds a tensor, and the tensor's name there.
Place = tuple[dict[str, Tensor | None], str]


class WeightAverage:
    """The average of a backbone's weights; it lies on the device that the backbone is on when this is made.

    `decay_at(step)` is a pure function, so `state_dict()`, whose keys are the backbone's, is all that resuming needs.
    """

    def __init__(self, backbone: nn.Module, config: AverageConfig) -> None:
        self.config = config
        self.backbone = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.newest: nn.Module | None = None
        self.places: list[tuple[Place, Place]] = []

    def decay_at(self, step: int) -> float:
        """Share of the average so far that step number `step`, from 1, keeps."""
        if step == 1 and not (self.config.initial and not self.config.warmup):
            return 0.0
        return min(self.config.decay, 1 - step**-WARMUP_POWER) if self.config.warmup else self.config.decay

    @torch.no_grad()
    def update(self, backbone: nn.Module, step: int) -> None:
        """Take in the weights after step number `step`, from 1."""
        assert step >= 1, "an average begins after the first step"
        if backbone is not self.newest:
            self.newest = backbone
            self.places = list(zip(places(self.backbone), places(backbone), strict=True))
        pairs = [(average[name], newest[same]) for (average, name), (newest, same) in self.places]
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, values, weight=1 - self.decay_at(step))
        if whole := [pair for pair in pairs if not pair[0].is_floating_point()]:
            torch._foreach_copy_(*zip(*whole, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the backbone's own names, so that they load wherever a backbone's do."""
        return self.backbone.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from saved averages."""
        self.backbone.load_state_dict(state)


class ScheduleFreeAverage:
    """The averages x of a Schedule-Free optimiser, which follow from its state whenever they are asked for.

    Running statistics of batch norms are those of training, at y.
    """

    def __init__(self, backbone: nn.Module, optimizer: Optimizer) -> None:
        self.newest, self.optimizer = backbone, optimizer
        self.averaged = copy.deepcopy(backbone).requires_grad_(False).eval()

    @property
    @torch.no_grad()
    def backbone(self) -> nn.Module:
        """The backbone with the weights x, in evaluation mode."""
        pairs = dict(zip(tensors(self.newest), tensors(self.averaged), strict=True))
        for newest, average in pairs.items():
            average.copy_(newest)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter, {})
                if parameter in pairs and "z" in state:
                    pairs[parameter].lerp_(state["z"], weight=1 - 1 / group["betas"][0])
        return self.averaged

    def update(self, backbone: nn.Module, step: int) -> None:
        """Nothing: the optimiser's step has done it."""

    def state_dict(self) -> dict[str, Tensor]:
        """The weights x under the backbone's own names."""
        return self.backbone.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing: they follow from the weights and the optimiser's state."""


Average = WeightAverage | ScheduleFreeAverage


def make_average(backbone: nn.Module, config: AverageConfig, optimizer: Optimizer | None = None) -> Average | None:
    """The average that a config asks for, or that an optimiser is about, if there is one.

    Raises:
        ValueError: there would be both.
    """
    if optimizer is None or not is_schedule_free(optimizer):
        return WeightAverage(backbone, config) if config.decay else None
    if config.decay:
        raise ValueError(f"average.decay={config.decay} beside a Schedule-Free optimiser, which averages itself; set 0")
    return ScheduleFreeAverage(backbone, optimizer)


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether an optimiser's weights in training are not those to be used."""
    return "train_mode" in optimizer.param_groups[0]


def tensors(module: nn.Module) -> list[Tensor]:
    """What a checkpoint has of a module, each tensor once.

    Without tables that a module makes when it is first used: its copy, never used in training, has other ones.
    """
    return list({id(value): value for value in module.state_dict(keep_vars=True).values()}.values())


def places(module: nn.Module) -> list[Place]:
    """Where a module holds each of its `tensors`.

    Looking for them takes a good part of a millisecond, too long for each step. The tensors themselves cannot be kept,
    because a module may put others in their place.
    """
    found: dict[int, Place] = {}
    for part in module.modules():
        for holder in (part._parameters, part._buffers):
            found |= {id(tensor): (holder, name) for name, tensor in holder.items()}
    return [found[id(tensor)] for tensor in tensors(module)]
