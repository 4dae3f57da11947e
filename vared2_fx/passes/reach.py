"""What a conversion can come down to, counted before anything is converted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vared2_fx.config import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import ChoiceGrid
from vared2_fx.passes.rewrite import make_region
from vared2_fx.tables import percent, si

Level = Literal["full", "middle", "cheapest"]
"""A policy for the whole network: every layer in full; at the choice whose price lies nearest halfway between full and
cheapest; at its cheapest choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Multiply-adds per clip of a converted network under three policies; gates and cheap operations counted."""

    dense: int
    """Of the original."""
    full: int
    """With everything computed: the original and the gates."""
    middle: int
    """With every layer at its middle choice, see `Level`."""
    cheapest: int
    """The least that is possible."""

    def __str__(self) -> str:
        full, middle, cheapest = (percent(macs / self.dense) for macs in (self.full, self.middle, self.cheapest))
        return f"reachable: {full} (full), {middle} (middle), {cheapest} (cheapest policy) of {si(self.dense)}MACs"


def price(
    conv: nn.Conv3d, grid: ChoiceGrid, config: ConvertConfig, in_size: tuple[int, int, int]
) -> tuple[tuple[int, ...], int]:
    """Multiply-adds per clip of each choice of a convolution, in the order of `grid.all()`, and those of its gate.

    Args:
        conv: the convolution; nothing of it is read but its geometry.
        grid: its choices.
        config: gate and cheap operations.
        in_size: (T, H, W) of its input.
    """
    with torch.device("meta"):  # the region itself says what it costs; this one has no values
        bare = nn.Conv3d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            conv.bias is not None,
        )
        region = make_region(bare, grid, config, mean=None)
    # int: some builders, as pytorchvideo's, give channels as numpy's whole numbers, which JSON does not take
    return tuple(int(region.macs(in_size, choice)) for choice in grid.all()), int(region.gate.macs(in_size))


def level_index(prices: Sequence[int], level: Level) -> int:
    """Which of a layer's choices a level takes; of equals the cheaper, then the first."""
    if level == "full":
        return 0
    goal = min(prices) if level == "cheapest" else (prices[0] + min(prices)) / 2
    return min(range(len(prices)), key=lambda i: (abs(prices[i] - goal), prices[i], i))


def reach_of(dense: int, layers: Iterable[tuple[Sequence[int], int]]) -> Reach:
    """Add up what a network reaches.

    Args:
        dense: multiply-adds per clip of the original.
        layers: for each dynamic layer the price of its choices, the full one first, and of its gate.
    """
    found = list(layers)
    fixed = dense + sum(gate - prices[0] for prices, gate in found)

    def total(level: Level) -> int:
        return fixed + sum(prices[level_index(prices, level)] for prices, _ in found)

    return Reach(dense=dense, full=total("full"), middle=total("middle"), cheapest=total("cheapest"))


def check_target(where: str, target: float, reach: Reach | None) -> None:
    """Refuse a target that no policy comes down to.

    Raises:
        ConvertError: saying what is reachable; or nothing is known of that.
    """
    if reach is None:
        raise ConvertError(f"{where}: what is reachable is unknown without the clip's size; pass example_inputs.")
    if reach.cheapest / reach.dense > target + 1e-9:
        low, high = (percent(macs / reach.dense) for macs in (reach.cheapest, reach.full))
        raise ConvertError(
            f"{where}: a target of {percent(target)} of the multiply-adds is out of reach; this conversion reaches "
            f"from {low} (cheapest policy) to {high} (full). Offer coarser frame_strides or channel_shares, or let "
            "more layers convert (include, min_channels, min_macs_share)."
        )
