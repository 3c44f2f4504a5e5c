"""Batch norm whose statistics are those of the batch over all processes.

What comes in: (batch, channels, ...) on each process, of any batch sizes. What goes out: the same, normalised by the
mean and variance of all processes' values. torch's own works on CUDA alone; this one also where processes talk through
gloo. With one process it is plain batch norm (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167).
"""

import torch
import torch.distributed as dist
from lightly.utils.dist import gather
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as FusedSyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncBatchNorm(_BatchNorm):
    """Batch norm over all processes: torch's fused one on CUDA, sums with their exact gradient elsewhere.

    It is no subclass of torch's `SyncBatchNorm`, because `DistributedDataParallel` refuses that one on a CPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm takes (batch, channels, ...), found shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        share = self.count_batch()
        if not input.is_cuda:
            return self.normalise_over_processes(input, share)
        statistics = self.running_mean, self.running_var, self.eps, share
        return FusedSyncBatchNorm.apply(
            input, self.weight, self.bias, *statistics, dist.group.WORLD, dist.get_world_size()
        )

    def count_batch(self) -> float:
        """Count one more batch; its share in the running statistics, which without momentum are plain means."""
        if not self.track_running_stats:
            return 0.0
        self.num_batches_tracked.add_(1)
        return 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def normalise_over_processes(self, activations: Tensor, share: float) -> Tensor:
        """Mean and variance from sums over all processes; two passes, as a sum of squares would lose digits."""
        values = activations.to(torch.promote_types(activations.dtype, torch.float32))
        over = [0, *range(2, values.ndim)]
        shape = (1, -1, *[1] * (values.ndim - 2))
        count = sum_over_processes(values.new_tensor([values.numel() / values.shape[1]]))
        mean = sum_over_processes(values.sum(over)) / count
        centred = values - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(over)) / count
        if self.track_running_stats:
            unbiased = variance.detach() * count / (count - 1)
            self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(activations.dtype)


class SyncBatchNormAct(SyncBatchNorm):
    """The same for timm's batch norm that ends in a dropout and an activation."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def sum_over_processes(part: Tensor) -> Tensor:
    """The sum of every process's tensor; its gradient reaches the part of each."""
    return torch.stack(gather(part.contiguous())).sum(0)


def convert_sync_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside by one over all processes, with the same parameters, buffers and keys.

    Parameters stay the same objects, so that an optimiser that has them keeps them. A batch norm that is registered
    in several places stays one.

    Raises:
        ValueError: a batch norm of a class with a forward pass of its own that is not known here.
    """
    made: dict[nn.Module, SyncBatchNorm] = {}
    for name, norm in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(norm, PLAIN_NORMS):
            continue
        if norm not in made:
            made[norm] = synchronised(norm)
        if not name:
            return made[norm]
        module.set_submodule(name, made[norm])
    return module


def synchronised(norm: _BatchNorm) -> SyncBatchNorm:
    """A `SyncBatchNorm` that takes over a batch norm's own parameters, buffers and mode."""
    if type(norm) in PLAIN_NORMS:
        made = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    else:
        # Slow to import, and only timm's models have it.
        from timm.layers import BatchNormAct2d

        if type(norm) is not BatchNormAct2d:
            raise ValueError(
                f"cannot take the statistics of {type(norm).__name__} over all processes; train with "
                "sync_batch_norm=false, or on one device"
            )
        made = SyncBatchNormAct(norm)
    for name in ("weight", "bias"):
        made.register_parameter(name, getattr(norm, name))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        made.register_buffer(name, getattr(norm, name))
    return made.train(norm.training)
