"""What `torch.export` takes for granted about sizes beyond their ranges, such as that a number of frames is odd.

Most of it is about how values lie in memory, and the program is the network for other sizes all the same; some is a
branch of the network. So where a size breaks it, both run.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from vared2_fx.deploy.parity import FLOAT32
from vared2_fx.deploy.signature import TensorSpec
from vared2_fx.passes.check import largest_difference


def holds(gm: fx.GraphModule, exported: ExportedProgram, specs: tuple[TensorSpec, ...], args: tuple[Any, ...]) -> bool:
    """Whether the program is the network also for numbers of frames that break what was taken for granted.

    Tried are the nearest such numbers above and below those of `args`.
    """
    free = {axis.symbol: axis for axis in (spec.axes[2] for spec in specs if len(spec.axes) == 5) if axis.symbol}
    check = getattr(exported.module(), "_guards_fn", None) if free else None
    if check is None:
        return True
    shapes: tuple[Any, ...] = tree_map_only(Tensor, lambda x: x.to("meta"), args)
    for symbol, axis in free.items():
        most = max(2 * axis.size, axis.size + 16)
        below = range(axis.size - 1, axis.min - 1, -1)
        above = range(axis.size + 1, (most if axis.max is None else min(most, axis.max)) + 1)
        for sizes in (below, above):
            breaking = (size for size in sizes if _breaks(check, _with_frames(specs, shapes, symbol, size)))
            nearest = next(breaking, None)
            if nearest is not None and not _same(gm, exported, _with_frames(specs, args, symbol, nearest)):
                return False
    return True


def _breaks(check: Any, inputs: tuple[Any, ...]) -> bool:
    try:
        check(*tree_leaves(inputs))
    except AssertionError:
        return True
    return False


def _with_frames(specs: tuple[TensorSpec, ...], args: tuple[Any, ...], symbol: str, size: int) -> tuple[Any, ...]:
    """`args` with so many frames, their own again and again, in two clips at least."""
    leaves, nesting = tree_flatten(args)
    for place, (x, spec) in enumerate(zip(leaves, specs, strict=True)):
        if spec.axes and spec.axes[0].symbol and len(x) == 1:
            x = torch.cat([x, x])
        if len(spec.axes) == 5 and spec.axes[2].symbol == symbol:
            x = x[:, :, torch.arange(size, device=x.device) % x.shape[2]]
        leaves[place] = x
    inputs: tuple[Any, ...] = tree_unflatten(leaves, nesting)
    return inputs


@torch.no_grad()
def _same(gm: fx.GraphModule, exported: ExportedProgram, inputs: tuple[Any, ...]) -> bool:
    try:
        expected = tree_leaves(gm(*tree_map_only(Tensor, torch.clone, inputs)))
    except Exception:  # a size that the network itself refuses
        return True
    try:
        found = tree_leaves(exported.module(check_guards=False)(*tree_map_only(Tensor, torch.clone, inputs)))
    except Exception:
        return False
    pairs = list(zip(expected, found, strict=True))
    return all(a.shape == b.shape and largest_difference(a, b) <= FLOAT32 for a, b in pairs)
