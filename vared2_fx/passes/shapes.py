"""Shapes and multiply-adds of every node, on fake tensors: nothing is computed."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from vared2_fx.errors import ConvertError
from vared2_fx.modes import evaluating, unchanged
from vared2_fx.passes.functional import FunctionalConvs
from vared2_fx.passes.leaves import inner, leaves, watch
from vared2_fx.passes.nesting import own_containers
from vared2_fx.passes.trace import calls, forget_shapes, module_of

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a network is called with: a tuple holds its positional arguments, all else is the one argument it takes."""

_USUAL_CLIPS = ((32, 320), (16, 224), (16, 112), (8, 224), (64, 224), (16, 182), (4, 256))
"""(frames, pixels), tried in turn where the caller gives no example: first one large enough for every fixed
pooling of the published networks, then the sizes that networks with a fixed first linear layer are made for."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Let fake tensors log no traceback of an error that we report ourselves."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class Interpreter(fx.Interpreter):
    """Runs a graph node by node, and lets a module write into a list that it is called with, as generated code does."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a node, lists and dicts as new ones."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(own_containers(list(args))), own_containers(kwargs)


class _Measure(Interpreter):
    """Runs the graph node by node; writes `shape`, `dtype` and `macs` (per batch) into each node's meta.

    Also `functional`, the 3D convolutions that it calls as functions; and for a leaf `inside`, what was seen of the
    convolutions in it.
    """

    def run_node(self, n: fx.Node) -> Any:
        leaf = self.submodules[str(n.target)] if n.op == "call_module" else None
        with FlopCounterMode(display=False) as counter, FunctionalConvs() as functional:
            if leaf is not None and inner(leaf):
                with watch(leaf, counter, functional) as n.meta["inside"]:
                    result = super().run_node(n)
            else:
                result = super().run_node(n)
        n.meta["macs"] = counter.get_total_flops() // 2
        n.meta["functional"] = functional.found
        if isinstance(result, Tensor):
            n.meta["shape"], n.meta["dtype"] = tuple(result.shape), result.dtype
        return result


def as_args(example_inputs: Inputs) -> tuple[Any, ...]:
    """A tuple as it is; anything else, such as a clip batch or a list of pathways, as the one argument."""
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def clips_of(example_inputs: Inputs) -> Tensor:
    """The clip batch among the inputs: of several pathways the largest.

    Raises:
        ConvertError: there is no tensor.
    """
    tensors = [x for x in tree_leaves(as_args(example_inputs)[:1]) if isinstance(x, Tensor)]
    tensors = tensors or [x for x in tree_leaves(example_inputs) if isinstance(x, Tensor)]
    if not tensors:
        raise ConvertError(f"example inputs: {type(example_inputs).__name__} holds no tensor; pass a clip batch.")
    return max(tensors, key=Tensor.numel)


def measure_shapes(gm: fx.GraphModule, example_inputs: Inputs) -> fx.GraphModule:
    """Write shape, dtype and multiply-adds into the meta of every node of `gm`; returns `gm`.

    Multiply-adds are those of convolutions and matrix products, as `torch.utils.flop_counter` sees them. Where a
    module looks at values, which fake tensors have not, the network runs for real.

    Raises:
        ConvertError: the network does not run on inputs of these shapes, or they hold no clip.
    """
    shapes = [tuple(x.shape) for x in tree_leaves(example_inputs) if isinstance(x, Tensor)]
    if any(0 in shape for shape in shapes):
        raise ConvertError(f"shapes: example inputs of shape {shapes[0]} hold no clip; one is enough.")
    try:
        try:
            _measure(gm, as_args(example_inputs), fake=True)
        except Exception:
            _measure(gm, as_args(example_inputs), fake=False)
    except Exception as exc:
        sizes = ", ".join(map(str, shapes)) or "unknown"
        raise ConvertError(
            f"shapes: the network does not run on example inputs of shape {sizes}: {_first_line(exc)}. "
            "Pass example_inputs of the shape that it is used with, (N, 3, T, H, W) for most; a list of tensors is one "
            "argument, a tuple several."
        ) from exc
    return gm


def _measure(gm: fx.GraphModule, args: tuple[Any, ...], *, fake: bool) -> None:
    devices = {x.device.type for x in tree_leaves(args) if isinstance(x, Tensor)} - {"meta"}
    with (
        _quiet(),
        unchanged(gm),
        evaluating(gm),  # in training a norm refuses a single clip
        FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext() as mode,
        torch.autocast(max(devices, default="cpu"), enabled=False),  # its cache of cast weights is of real tensors
    ):
        _Measure(gm).run(*tree_map_only(Tensor, mode.from_tensor if mode else torch.clone, args))


def _first_line(exc: Exception) -> str:
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__


def guess_shapes(gm: fx.GraphModule) -> tuple[int, ...] | None:
    """Measure with the first usual clip size that the network runs on.

    Returns:
        The shape of that clip, or None where no usual size fits or the network takes several inputs: then nothing
        is known of shapes, and what needs them is left out.
    """
    inputs = [node for node in gm.graph.find_nodes(op="placeholder") if not node.args]
    convs: list[Any] = [module_of(gm, node) for node in calls(gm, nn.Conv3d)]
    convs = convs or [m for leaf in leaves(gm).values() for m in inner(leaf).values() if isinstance(m, nn.Conv3d)]
    if len(inputs) != 1 or not convs:
        return None
    first, channels = convs[0].weight, convs[0].in_channels
    for frames, pixels in _USUAL_CLIPS:
        shape = (1, channels, frames, pixels, pixels)
        clip = torch.empty(shape, dtype=first.dtype, device=first.device)
        try:
            _measure(gm, (clip,), fake=not clip.is_meta)  # meta tensors are fake enough
        except Exception:
            continue
        return shape
    forget_shapes(gm)
    return None


def total_macs(gm: fx.GraphModule) -> int:
    """Multiply-adds of a measured graph, for the batch it was measured with."""
    return sum(int(node.meta.get("macs", 0)) for node in gm.graph.nodes)
