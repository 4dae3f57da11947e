"""What the original network costs at one clip shape, operation by operation; nothing is computed.

C channels, T frames, H height, W width.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from vared2_fx.layers import Choice, DynamicRegion
from vared2_fx.passes.flow_graph import GraphNode, flow_graph
from vared2_fx.passes.leaves import inner_calls
from vared2_fx.passes.rewrite import full_regions, regions
from vared2_fx.passes.shapes import Inputs, measure_shapes

_FREE = (
    "Dropout",
    "Dropout3d",
    "Identity",
    "contiguous",
    "dim",
    "flatten",
    "getattr",
    "getitem",
    "permute",
    "reshape",
    "size",
    "squeeze",
    "transpose",
    "unsqueeze",
    "view",
)
"""What computes nothing in evaluation: it moves, or looks up."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation at one clip shape; one that is called twice is one operation."""

    path: str
    kind: str
    """Class or function name."""
    in_shape: tuple[int, ...] | None
    """(C, T, H, W), without the batch."""
    out_shape: tuple[int, ...] | None
    macs: int
    """Multiply-adds per clip."""
    params: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A network at one clip shape."""

    operations: tuple[Operation, ...]
    """Those with multiply-adds, and every dynamic region, in order of the graph."""
    not_counted: Counter[str]
    """The others: how often each kind is called."""
    cheap_macs: dict[str, dict[Choice, int]]
    """For each region that ran, what its choices cost beyond the convolution."""
    graph: tuple[GraphNode, ...]
    """How the operations are connected."""


def profile(dynamic: fx.GraphModule, clip: Inputs) -> Profile:
    """Measure `dynamic` with every region in full and without gates: the original network.

    Args:
        dynamic: a converted network.
        clip: one clip, (1, C, T, H, W) or what the network takes for it; for its shape, dtype and device.

    Raises:
        ConvertError: the network does not run on such a clip.
    """
    gm = measure_shapes(full_regions(dynamic), clip)
    found = regions(dynamic)
    operations: dict[str, Operation] = {}
    not_counted: Counter[str] = Counter()
    for node in gm.graph.nodes:
        if not node.op.startswith("call_"):
            continue
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        path = str(node.target) if module is not None else node.name
        inside = inner_calls(gm, node) if module is not None else []
        for inner_path, conv, calls in inside:
            for call in calls:
                if "macs" in call.meta:
                    _add(operations, inner_path, call, _kind(call, conv), _original(found.get(inner_path, conv)))
        kind, rest = _kind(node, module), _macs(node) - sum(_macs(call) for _, _, calls in inside for call in calls)
        if not rest and path not in found:
            not_counted.update(() if kind in _FREE or inside else [kind])
            continue
        _add(operations, path, node, kind, _original(found.get(path, module)), macs=rest)
    cheap = {path: _cheap(region, operations[path].in_shape) for path, region in found.items() if path in operations}
    return Profile(tuple(operations.values()), not_counted, cheap, flow_graph(gm, operations.keys()))


def added_params(region: DynamicRegion) -> int:
    """Parameters that conversion added to an operation: its gate and cheap operations."""
    return _num_params(region) - _num_params(_original(region))


def added_bytes(region: DynamicRegion) -> int:
    """Memory of all that conversion added to an operation, buffers such as the statistics of norms included."""
    whole, body = (_tensors(module) for module in (region, region.body))
    return sum(tensor.numel() * tensor.element_size() for key, tensor in whole.items() if key not in body)


def _tensors(module: nn.Module) -> dict[int, Tensor]:
    return {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}


def _add(
    operations: dict[str, Operation],
    path: str,
    node: fx.Node,
    kind: str,
    module: nn.Module | None,
    macs: int | None = None,
) -> None:
    """Count a call for the operation `path`; shapes are those of its first."""
    before = operations.get(path)
    operations[path] = Operation(
        path=path,
        kind=kind,
        in_shape=before.in_shape if before else _clip_shape(node.args[0] if node.args else None),
        out_shape=before.out_shape if before else _clip_shape(node),
        macs=(_macs(node) if macs is None else macs) + (before.macs if before else 0),
        params=_num_params(module),
    )


def _macs(node: fx.Node) -> int:
    return int(node.meta.get("macs", 0))


def _original(module: nn.Module | None) -> nn.Module | None:
    return module.body if isinstance(module, DynamicRegion) else module


def _cheap(region: DynamicRegion, in_shape: tuple[int, ...] | None) -> dict[Choice, int]:
    assert in_shape is not None, "a dynamic region takes one tensor"
    _, t, h, w = in_shape
    size = (t, h, w)
    return {choice: region.cheap_macs(size, choice) for choice in region.grid.all()}


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_")


def _clip_shape(node: Any) -> tuple[int, ...] | None:
    shape = node.meta.get("shape") if isinstance(node, fx.Node) else None
    return tuple(shape[1:]) if shape else None


def _num_params(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
