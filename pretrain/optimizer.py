"""Optimisers and learning rates by epoch.

What comes in: `OptimizerConfig`. What goes out: an optimiser over an objective's trainable parameters, and the learning
rate of each epoch (counted from 0), as mouse-vision's trainers set it (Nayebi, Kong et al. 2023): multiplied at
milestones, or by a cosine that reaches `min_lr` in the last epoch, after a linear warm-up.

LARS is lightly's (You et al. 2017, https://arxiv.org/abs/1708.03888): layer-wise rates and decay for weights, neither
for biases and the scales of norm layers, wherever they lie. The published code misses the norm scales of backbones. It
also keeps the learning rate inside the momentum; lightly, as torch does, multiplies by it after. At a constant rate
both are the same.
"""

import math

from torch import nn
from torch.optim import Optimizer

from pretrain.config import OptimizerConfig


def make_optimizer(objective: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimiser of all parameters that need a gradient; raises ValueError where settings contradict each other."""
    groups = parameter_groups(objective, config)
    if config.name == "lars":
        from lightly.utils.lars import LARS

        if not config.weight_decay:
            raise ValueError(
                "optimizer.name=lars needs optimizer.weight_decay above 0: lightly leaves layers without decay unscaled"
            )
        return LARS(groups, lr=config.lr, momentum=config.momentum, trust_coefficient=config.trust)
    from timm.optim import create_optimizer_v2

    # timm's "sgd" is Nesterov's; "momentum" is the plain one.
    name = {"nesterov": "sgd"}.get(config.name, config.name)
    momentum = {} if config.name in ("adam", "adamw") else {"momentum": config.momentum}
    return create_optimizer_v2(groups, opt=name, lr=config.lr, weight_decay=config.weight_decay, **momentum)


def parameter_groups(objective: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Parameters with weight decay, and those without; biases and norm layers are the ones of one dimension."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if config.decay_biases and config.name != "lars":
        return [{"params": trained, "weight_decay": config.weight_decay}]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(epoch: int, epochs: int, config: OptimizerConfig) -> float:
    """Learning rate of an epoch (counted from 0) of a training of `epochs`."""
    warmup = config.warmup_epochs
    if epoch < warmup:
        return config.lr * (1 - (1 - (epoch + 1) / warmup) * (1 - config.warmup_ratio))
    if config.schedule == "step":
        return config.lr * config.decay_rate ** sum(epoch >= milestone for milestone in config.decay_epochs)
    share = (epoch + 1 - warmup) / (epochs - warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * share))


def set_learning_rate(optimizer: Optimizer, epoch: int, epochs: int, config: OptimizerConfig) -> float:
    """Give every group the learning rate of an epoch, and return it."""
    lr = learning_rate(epoch, epochs, config)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr
