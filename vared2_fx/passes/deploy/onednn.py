"""oneDNN's convolutions, also where torch would take its own.

N clips, C channels, T frames, H height, W width.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from vared2_fx.passes.trace import kept_call

_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NUM_KEPT = 2
"""Shapes of the input for which a weight is kept packed, the last ones: each is one more copy of it."""


class PackedWeight(nn.Module):
    """A kernel as oneDNN wants it, which otherwise lays it anew at each call, however few frames there are.

    How it wants it depends on the shape of the map, and what is packed for another shape is laid anew more slowly than
    a plain kernel. So it is packed when a shape comes first.
    """

    def __init__(self, weight: Tensor) -> None:
        """Pack `weight` (C, C_in / groups, k_t, k_h, k_w), which stays as it is."""
        super().__init__()
        self._weight, self._kept = weight, tuple[tuple[Any, Tensor], ...]()

    @property
    def shape(self) -> torch.Size:
        """Of the kernel."""
        return self._weight.shape

    def packed(self, sizes: torch.Size, *about: Any) -> Tensor:
        """For an input of `sizes`; `about`: padding, stride, dilation and groups."""
        key = (sizes, torch.get_num_threads(), *about)
        for known, weight in self._kept:
            if known == key:
                return weight
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(self._weight, *about, sizes)
        self._kept = ((key, packed), *self._kept[: _NUM_KEPT - 1])  # at once, as several threads may be here
        return packed


def onednn_conv(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    relu: bool = False,
    summand: Tensor | None = None,
) -> Tensor:
    """A 3D convolution in oneDNN, and what follows it in the same pass over the map: plus `summand`, then ReLU.

    Args:
        x: (N, C_in, T_in, H_in, W_in).
        weight: (C, C_in / groups, k_t, k_h, k_w).
        bias: (C,) or None.
        padding: three numbers, as all of these.
        stride: of the convolution.
        dilation: distance of the kernel's values.
        groups: of the convolution.
        relu: whether negative values become 0.
        summand: (N, C, T, H, W), not changed.

    Returns:
        (N, C, T, H, W), in the layout of x.
    """
    convolve = torch.ops.mkldnn._convolution_pointwise
    if isinstance(weight, PackedWeight):
        weight = weight.packed(x.shape, padding, stride, dilation, groups)
    about = (weight, bias, padding, stride, dilation, groups)
    y: Tensor
    if summand is None:
        y = convolve.default(x, *about, "relu" if relu else "none", [], "")
    else:
        y = convolve.binary(x, summand, *about, "add", None, "relu" if relu else None, [], "")
    return y


def onednn_convs(gm: fx.GraphModule) -> fx.GraphModule:
    """Let every 3D convolution of an exported graph run in oneDNN, in the layout of its input.

    For a kernel of at most 3×3 over a single clip torch (aten/src/ATen/native/Convolution.cpp, `use_mkldnn`) takes a
    matrix product of its own where the map is small (C·T·H ≤ 20480), and for a 1×1 kernel where it has one thread. That
    product is slower, and gives up `channels_last_3d`, so that what follows converts or runs slower as well. A batch
    of two it hands to oneDNN anyway.

    Args:
        gm: `ExportedProgram.module()`; changed in place, as it belongs to nobody else. Called for evaluation only.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return gm
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.conv3d.default):
        if node.meta["val"].dim() != 5:  # a clip without the axis of the batch
            continue
        with gm.graph.inserting_before(node):
            conv = kept_call(gm.graph, onednn_conv, _arguments(node))
        replace_node(node, conv)
    gm.recompile()
    return gm


def replace_node(old: fx.Node, new: fx.Node) -> None:
    """Put `new`, which is in the graph, in place of `old`; what is known of the result stays known."""
    new.meta.update({key: value for key, value in old.meta.items() if key != "is_wrapped"})
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    given = dict(zip(_NAMES, node.args, strict=False)) | node.kwargs
    stride, padding, dilation = (_three(given.get(name, 0 if name == "padding" else 1)) for name in _NAMES[3:6])
    return given["input"], given["weight"], given.get("bias"), padding, stride, dilation, given.get("groups", 1), False


def _three(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 3 if len(values) == 1 else values
