"""oneDNN's convolutions, also where torch would take its own."""

from typing import Any

import torch
from torch import fx

_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


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
        if node.meta["val"].dim() == 5:  # else a clip without the axis of the batch
            node.target, node.args, node.kwargs = torch.mkldnn_convolution, _arguments(node), {}
    gm.recompile()
    return gm


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    given = dict(zip(_NAMES, node.args, strict=False)) | node.kwargs
    stride, padding, dilation = (_three(given.get(name, 0 if name == "padding" else 1)) for name in _NAMES[3:6])
    return given["input"], given["weight"], given.get("bias"), padding, stride, dilation, given.get("groups", 1)


def _three(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 3 if len(values) == 1 else values
