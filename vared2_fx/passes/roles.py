"""What each operation of a traced network does to time and channels, as far as blocks have to know."""

import operator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from vared2_fx.errors import ConvertError
from vared2_fx.layers import ConvGeometry, PoolGeometry
from vared2_fx.passes.trace import module_of

Kind = Literal["conv", "norm", "pointwise", "mixing", "pool", "squeeze", "scale", "join", "concat", "constant", "other"]
"""What an operation is: `conv` and `norm` (a batch norm) say so themselves; `pointwise`, every value by itself;
`mixing`, keeps sizes, but channels may differ in what is done, or depend on each other; `pool`, over windows of each
channel; `squeeze`, one value per channel; `scale`, a map times one value per channel; `join`, two maps, value by value;
`concat`, maps side by side; `constant`, not computed from the input; `other`, nothing is known."""

_POINTWISE_MODULES = (
    nn.CELU,
    nn.Dropout,
    nn.Dropout3d,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
)
_POINTWISE = {
    *(F.celu, F.dropout, F.dropout3d, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish),
    *(F.relu, F.relu6, F.relu_, F.selu, F.sigmoid, F.silu, F.softplus, F.tanh),
    *(torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.clamp, operator.neg, torch.neg),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "contiguous"),
}
_SUMS = {operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub"}
_PRODUCTS = {operator.mul, operator.imul, operator.truediv, torch.mul, torch.div, "mul", "mul_", "div"}
_SWISH = "pytorchvideo.layers.swish"


@dataclass(frozen=True, slots=True)
class Role:
    """What a node does."""

    kind: Kind
    reads: tuple[fx.Node, ...] = ()
    """The values it is computed from, constants left out."""
    geometry: ConvGeometry | PoolGeometry | None = None
    """Of a convolution or a pooling."""
    in_place: bool = False
    """Whether it writes over the first of them."""


def roles(gm: fx.GraphModule) -> dict[fx.Node, Role]:
    """The role of every node of a measured graph."""
    found: dict[fx.Node, Role] = {}
    for node in gm.graph.nodes:
        reads = tuple(source for source in node.all_input_nodes if found[source].kind != "constant")
        found[node] = _role(gm, node, reads)
    return found


def is_map(node: fx.Node) -> bool:
    """Whether a value was measured to be a map over time and space, (N, C, T, H, W)."""
    return len(node.meta.get("shape", ())) == 5


def _role(gm: fx.GraphModule, node: fx.Node, reads: tuple[fx.Node, ...]) -> Role:
    if node.op in ("placeholder", "output"):
        return Role("other", reads)
    if not reads:
        return Role("constant")
    if not is_map(node) or any(not is_map(source) for source in reads):
        return Role("other", reads)
    if node.op == "call_module":
        return _of_module(module_of(gm, node), node, reads)
    return _of_function(node, reads)


def _of_module(module: nn.Module, node: fx.Node, reads: tuple[fx.Node, ...]) -> Role:
    kind = type(module)
    if len(reads) != 1 or node.kwargs or len(node.args) != 1:
        return Role("other", reads)
    if isinstance(module, nn.Conv3d):
        return Role("conv", reads, geometry_of(module))
    if kind is nn.BatchNorm3d:
        return Role("norm", reads)
    if kind in _POINTWISE_MODULES or kind.__module__ == _SWISH:
        return Role("pointwise", reads, in_place=bool(getattr(module, "inplace", False)))
    if kind in (nn.GroupNorm, nn.InstanceNorm3d, nn.PReLU, nn.Softmax):
        return Role("mixing", reads)
    if isinstance(module, (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)) and is_one(module.output_size):
        return Role("squeeze", reads)
    if kind in (nn.MaxPool3d, nn.AvgPool3d) and not module.ceil_mode and not getattr(module, "return_indices", False):
        return Role("pool", reads, geometry_of(module))
    return Role("other", reads)


def _of_function(node: fx.Node, reads: tuple[fx.Node, ...]) -> Role:
    target = node.target
    flags = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    plain = all(not isinstance(value, fx.Node) or value not in reads for value in flags.values())
    written = str(getattr(target, "__name__", target)).endswith("_") or bool(node.kwargs.get("inplace"))
    in_place = written or target in (operator.iadd, operator.imul)
    if not plain:
        return Role("other", reads)
    if target in _POINTWISE and len(reads) == 1:
        return Role("pointwise", reads, in_place=in_place)
    if target in _SUMS | _PRODUCTS:
        return _of_two(node, reads, in_place)
    if target in (torch.cat, torch.concat) and _concats_channels(node):
        return Role("concat", reads)
    if target in ("mean", torch.mean) and _means_all(node):
        return Role("squeeze", reads)
    if target is F.adaptive_avg_pool3d and len(node.args) == 2 and is_one(node.args[1]):
        return Role("squeeze", reads)
    return Role("other", reads)


def _of_two(node: fx.Node, reads: tuple[fx.Node, ...], in_place: bool) -> Role:
    others = [arg for arg in node.args if isinstance(arg, fx.Node) and arg not in reads]
    if len(reads) == 1:  # with a number, or a constant: one of several channels might differ between them
        values = all("shape" not in other.meta or other.meta["shape"] in ((), (1,)) for other in others)
        return Role("pointwise" if values and node.args[0] in reads else "mixing", reads, in_place=in_place)
    first, second = (source.meta["shape"] for source in reads)
    if first == second and tuple(node.meta["shape"]) == tuple(first):
        return Role("join", reads, in_place=in_place)
    small = [tuple(shape[2:]) == (1, 1, 1) and shape[:2] == node.meta["shape"][:2] for shape in (first, second)]
    same = [tuple(shape) == tuple(node.meta["shape"]) for shape in (first, second)]
    if (same[0] and small[1]) or (same[1] and small[0]):
        return Role("scale", reads, in_place=in_place)
    return Role("other", reads)


def _concats_channels(node: fx.Node) -> bool:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return dim in (1, -4)


def _means_all(node: fx.Node) -> bool:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    dims = {d % 5 for d in dim} if isinstance(dim, (tuple, list)) else set()
    return keeps is True and dims == {2, 3, 4}


def geometry_of(module: nn.Module) -> ConvGeometry | PoolGeometry | None:
    """What decides the sizes of a convolution or a pooling; None for others, and for padding that no region takes."""
    if isinstance(module, nn.Conv3d):
        try:
            return ConvGeometry.of(module)
        except ConvertError:
            return None
    if not isinstance(module, (nn.MaxPool3d, nn.AvgPool3d)):
        return None

    def size(value: Any) -> tuple[int, int, int]:
        t, h, w = value if isinstance(value, (tuple, list)) else (value,) * 3
        return int(t), int(h), int(w)

    return PoolGeometry(*(size(getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")))


def keeps_time(geometry: ConvGeometry | PoolGeometry) -> bool:
    """Whether of T frames it makes T / stride, rounded up or down: none is lost at the ends, and none is added."""
    reach = geometry.dilation[0] * (geometry.kernel_size[0] - 1)
    return reach - geometry.stride[0] < 2 * geometry.padding[0] <= reach


def is_one(size: Any) -> bool:
    """Whether the size of a pooling's output is one along every axis."""
    return size == 1 or (isinstance(size, (tuple, list)) and all(n == 1 for n in size))
