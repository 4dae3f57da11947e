"""A dynamic region: a table of variants that share weights, and the gate that picks.

N clips, C channels, T frames, H height, W width; J frame strides, I channel shares.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vared2_fx.layers.gate import Gate
from vared2_fx.layers.geometry import FULL, Choice, ChoiceGrid, Size
from vared2_fx.layers.rebuild import FrameRebuild


class Decision(NamedTuple):
    """What a gate decided for a batch, and what each choice costs at the shape that it saw."""

    weights: Tensor
    """(N, J + I): a weight for each frame stride, then one for each channel share."""
    macs: Tensor
    """int64 (J, I): multiply-adds per clip of each choice, cheap operations counted."""
    gate_macs: Tensor
    """int64 (): operations per clip of the gate."""


class RegionCost(nn.Module):
    """What a region's choices cost at the shape of the input it is shown; no parameters, a node for the graph."""

    def __init__(self, grid: ChoiceGrid, macs: Callable[[Size, Choice], int], gate_macs: Callable[[Size], int]) -> None:
        """Price the choices of `grid` with `macs`, and the gate with `gate_macs`; both for one clip."""
        super().__init__()
        self.grid, self.macs, self.gate_macs = grid, macs, gate_macs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, T, H, W) → `Decision.macs` and `Decision.gate_macs`."""
        t, h, w = x.shape[2:]
        prices = [self.macs((t, h, w), choice) for choice in self.grid.all()]
        table = torch.tensor(prices, device=x.device).view(len(self.grid.frame_strides), -1)
        return table, torch.tensor(self.gate_macs((t, h, w)), device=x.device)


class StaticRegion(nn.Module):
    """A region at one fixed choice, as one node: what a graph calls that is looked at region by region."""

    def __init__(self, variant: nn.Module) -> None:
        """Call `variant`."""
        super().__init__()
        self.variant = variant

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, T_in, H_in, W_in) → (N, C, T, H, W)."""
        y: Tensor = self.variant(x)
        return y


class DynamicRegion(nn.Module, ABC):
    """A piece of a network that computes, for each clip, the frames and channels that its decision asks for.

    Evaluation: clips are bucketed by what their decision needs computed, and nothing else is (ours).
    """

    def __init__(
        self, body: nn.Module, gate: Gate, frame_rebuilds: list[FrameRebuild], channel_rebuilds: nn.Module
    ) -> None:
        """Make the region.

        Args:
            body: the piece as it was; stays as it is.
            gate: decides; a node of its own in the graph, kept here so that the parts of a region stay together.
            frame_rebuilds: Φt for each frame stride after the first.
            channel_rebuilds: Φc for each channel share after the first.
        """
        super().__init__()
        self.body, self.gate, self.grid = body, gate, gate.grid
        self.frame_rebuilds, self.channel_rebuilds = nn.ModuleList(frame_rebuilds), channel_rebuilds
        self.cost = RegionCost(self.grid, self.macs, gate.macs)
        self.recompute: AbstractContextManager[Any] | None = None
        """In training, keep nothing inside for the gradient and compute it again then, in here; see `recomputing`."""

    @abstractmethod
    def variant(self, choice: Choice) -> nn.Module:
        """The region at one fixed choice, sharing weights."""

    @abstractmethod
    def out_frames(self, in_frames: int) -> int:
        """T of the output for T of the input."""

    def macs(self, in_size: Size, choice: Choice = FULL) -> int:
        """Multiply-adds of one clip of `in_size` (T, H, W) at `choice`: cheap operations counted, the gate not."""
        return self.conv_macs(in_size, choice) + self.cheap_macs(in_size, choice)

    @abstractmethod
    def conv_macs(self, in_size: Size, choice: Choice = FULL) -> int:
        """Multiply-adds of the convolutions alone, as in `macs`."""

    @abstractmethod
    def cheap_macs(self, in_size: Size, choice: Choice = FULL) -> int:
        """Multiply-adds of the cheap operations alone, as in `macs`."""

    def added(self) -> list[nn.Module]:
        """What conversion added: gate and cheap operations."""
        return [self.gate, self.frame_rebuilds, self.channel_rebuilds]

    def forward(self, x: Tensor, decision: Tensor) -> Tensor:
        """Compute what `decision` asks for.

        Args:
            x: (N, C_in, T_in, H_in, W_in).
            decision: (N, J + I), as the gate gives it.

        Returns:
            (N, C, T, H, W).
        """
        if not self.training:
            return self._bucketed(x, decision)
        if (again := self.recompute) is None:
            return self._train(x, decision)
        y: Tensor = checkpoint(self._train, x, decision, use_reentrant=False, context_fn=lambda: (nullcontext(), again))
        return y

    def _bucketed(self, x: Tensor, decision: Tensor) -> Tensor:
        """Run every clip with what its decision needs, together with the others that need the same."""
        buckets: dict[tuple[int, int, bool], list[int]] = {}
        for clip, row in enumerate(decision.tolist()):  # the one host synchronisation
            buckets.setdefault(self._needed(row), []).append(clip)
        if len(buckets) <= 1:
            return self._run(x, decision, *next(iter(buckets), (0, 0, True)))
        out: Tensor | None = None
        for needed, clips in buckets.items():
            rows = torch.tensor(clips, device=x.device)
            part = self._run(x[rows], decision[rows], *needed)  # unlike index_select this keeps the memory format
            if out is None:
                layout = torch.channels_last_3d
                layout = layout if part.is_contiguous(memory_format=layout) else torch.contiguous_format
                size = (len(x), *part.shape[1:])
                out = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=layout)
            out[rows] = part
        assert out is not None
        return out

    def _needed(self, row: list[float]) -> tuple[int, int, bool]:
        """The cheapest choice that holds all that a decision weighs, and whether it weighs that alone, with 1."""
        strides, shares = row[: len(self.grid.frame_strides)], row[len(self.grid.frame_strides) :]
        j = next(j for j, weight in enumerate(strides) if weight > 0)
        i = next(i for i, weight in enumerate(shares) if weight > 0)
        return j, i, strides[j] == shares[i] == 1.0

    @abstractmethod
    def _train(self, x: Tensor, decision: Tensor) -> Tensor:
        """Compute `forward` such that every parameter gets a gradient."""

    @abstractmethod
    def _run(self, x: Tensor, decision: Tensor, j: int, i: int, alone: bool) -> Tensor:
        """Run clips that all need the choice (j, i), `alone` or with others in the weighted sum."""


@contextmanager
def recomputing(regions: Iterable[DynamicRegion], within: AbstractContextManager[Any] | None = None) -> Iterator[None]:
    """Let regions in training save memory for time inside the block (gradient checkpointing).

    Norms inside that are in training mode would count every batch twice.

    Args:
        regions: which ones.
        within: what to enter, again and again, where something is recomputed. Backward passes leave modes of torch.
    """
    changed = [region for region in regions if region.recompute is None]
    try:
        for region in changed:
            region.recompute = within or nullcontext()
        yield
    finally:
        for region in changed:
            region.recompute = None
