"""Several processes train as one.

N clips of a process, F features.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def weight_of_clips(num_clips: int, device: torch.device) -> float:
    """What the mean over this process's clips counts in the mean over all processes' clips, times their number.

    Clips that cannot be decoded are missing in one process only.

    Returns:
        1 where all have equally many; 0 in all of them where one has none, which has nothing to take part with.
    """
    if not dist.is_initialized():
        return float(num_clips > 0)
    sizes = torch.zeros(dist.get_world_size(), device=device)
    sizes[dist.get_rank()] = num_clips
    dist.all_reduce(sizes)
    counts: list[float] = sizes.tolist()  # the one wait for the device
    return num_clips * len(counts) / sum(counts) if all(counts) else 0.0


def of_all_processes(value: Any) -> list[Any]:
    """What every process has for `value`, in their order: anything small that pickles."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def average_over_processes(values: Iterable[Tensor]) -> None:
    """Let every process have the mean of all processes' values, in place."""
    if dist.is_initialized():
        for value in values:
            dist.all_reduce(value)
            value /= dist.get_world_size()


@contextmanager
def shared_norms(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let every `BatchNorm1d` in `modules` take its statistics over the clips of all processes inside the block.

    Gates look at clips, of which a process has few. `torch.nn.SyncBatchNorm` does the same on accelerators only.
    Modules keep their identity and their names. A process may have fewer clips than another, but not none.
    """
    norms = [norm for module in modules for norm in module.modules() if type(norm) is nn.BatchNorm1d]
    try:
        for norm in norms:
            norm.__class__ = _SharedBatchNorm
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm1d


class _SharedBatchNorm(nn.BatchNorm1d):
    """A batch norm over (N, F) with the statistics of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input.float()
        sums = _summed(torch.cat([values.sum(0), values.square().sum(0), values.new_tensor([len(values)])]))
        count = sums[-1].detach()
        mean, square = (sums[:-1] / count).chunk(2)
        var = (square - mean.square()).clamp_min(0.0)
        self._remember(mean.detach(), var.detach() * count / (count - 1))
        normed = (values - mean) * (var + self.eps).rsqrt()
        if self.affine:
            normed = normed * self.weight + self.bias
        return normed.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(var.to(self.running_var), share)


class _Sum(torch.autograd.Function):
    """A sum over processes, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def _summed(values: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(values)
    return total
