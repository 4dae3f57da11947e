"""What `torch.export` takes for granted about sizes beyond their ranges, such as that a number of frames is odd.

Most of it is about how values lie in memory, and the program is the network for other sizes all the same; some is a
branch of the network. So where a size breaks it, both run.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from vared2_fx.deploy.signature import TensorSpec
from vared2_fx.passes.check import largest_difference

_SAME = 1e-3
"""Of the largest value: rounding in another order is far below, another branch far above."""


def holds(gm: fx.GraphModule, exported: ExportedProgram, specs: tuple[TensorSpec, ...], args: tuple[Any, ...]) -> bool:
    """Whether the program is the network also for numbers of frames that break what was taken for granted.

    Tried are the nearest such numbers above and below those of `args`.
    """
    return all(_same(gm, exported, inputs) for inputs in _breaking(exported, specs, args))


def _breaking(exported: ExportedProgram, specs: tuple[TensorSpec, ...], args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    check = getattr(exported.module(), "_guards_fn", None)
    found = []
    for symbol in dict.fromkeys(spec.axes[2].symbol for spec in specs if len(spec.axes) == 5 and spec.axes[2].symbol):
        axis = next(axis for spec in specs for axis in spec.axes if axis.symbol == symbol)
        most = max(2 * axis.size, axis.size + 16)
        below = range(axis.size - 1, axis.min - 1, -1)
        above = range(axis.size + 1, (most if axis.max is None else min(most, axis.max)) + 1)
        for sizes in (below, above) if check is not None else ():
            tried = (_with_frames(specs, args, symbol, size) for size in sizes)
            found += [inputs for inputs in tried if _breaks(check, inputs)][:1]
    return found


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
            x = x[:, :, torch.arange(size) % x.shape[2]]
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
    return all(a.shape == b.shape and largest_difference(a, b) <= _SAME for a, b in pairs)
