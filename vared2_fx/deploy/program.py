"""A prepared graph as one program of plain operators (`torch.export`), which every engine starts from."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map_only

from vared2_fx.deploy.guards import holds
from vared2_fx.deploy.signature import Axis, Signature, TensorSpec
from vared2_fx.errors import DeployError
from vared2_fx.passes.deploy.pipeline import FIXED_FRAMES
from vared2_fx.passes.nesting import leaves_of, nesting_of
from vared2_fx.passes.shapes import clips_of

_FREE: tuple[dict[int, Any], ...] = ({0: Dim.AUTO, 2: Dim.AUTO}, {0: Dim.AUTO}, {})
"""Axes of a clip batch that are tried to be kept free, in turn: clips and frames, clips, none."""

_NO_END = 2**31


@dataclass(frozen=True, kw_only=True)
class Program:
    """An exported network."""

    exported: ExportedProgram
    signature: Signature
    notes: tuple[str, ...]
    """What became of the axes that were to be free."""


def programs(gm: fx.GraphModule, args: tuple[Any, ...], output: Any) -> Iterator[Program]:
    """Export a prepared network, first with as many free axes as its graph allows, then with fewer.

    Args:
        gm: the network, in evaluation mode.
        args: positional arguments that it runs on.
        output: what it gives for them.

    Raises:
        DeployError: `torch.export` cannot follow it, or it gives other things than tensors.
    """
    given = nesting_of((output,))
    for what, value in (("gives", output), ("takes", args)):
        if kinds := sorted({type(leaf).__name__ for leaf in leaves_of(value) if not isinstance(leaf, Tensor)}):
            raise DeployError(
                f"deploy: the network {what} {', '.join(kinds)}; tensors can be, and lists, tuples and dicts of them, "
                "whose keys are strings."
            )
    notes: tuple[str, ...] = ()
    failure: Exception | None = None
    given_up = True
    fixed = any(isinstance(module, FIXED_FRAMES) for module in gm.modules())
    for free in _FREE[1:] if fixed else _FREE:
        try:
            exported = _export(gm, args, free)
        except Exception as exc:
            failure = exc
            notes = (f"torch.export refused free axes: {first_line(exc)}",)
            continue
        inputs = _inputs(exported, args)
        if not holds(gm, exported, inputs, args):
            continue  # with frames fixed, which is said of its axes
        signature = Signature(inputs=inputs, nesting=nesting_of(args), output=given[0] if given else None)
        given_up = False
        yield Program(exported=exported, signature=signature, notes=(*notes, *_about_axes(signature)))
    if given_up:
        assert failure is not None
        raise DeployError(
            f"deploy: torch.export cannot follow this network ({type(failure).__name__}: {first_line(failure)}). What "
            "branches on values has to be moved out of forward, or be written with torch.where."
        ) from failure


def _export(gm: fx.GraphModule, args: tuple[Any, ...], free: dict[int, Any]) -> ExportedProgram:
    # torch.export takes a size of one to be one for ever, so the batch has two clips
    inputs = _two_clips(args) if free else args
    with torch.no_grad(), quiet_export():
        return torch.export.export(gm, inputs, dynamic_shapes=_axes(args, free) if free else None)


def _axes(args: tuple[Any, ...], free: dict[int, Any]) -> tuple[Any, ...]:
    """The free axes of each tensor: of what is no batch of clips, such as boxes, the first at most."""

    def of(x: Tensor) -> dict[int, Any]:
        return {axis: kind for axis, kind in free.items() if x.dim() == 5 or (axis == 0 and x.dim() > 0)}

    axes: tuple[Any, ...] = tree_map_only(Tensor, of, args)
    return axes


def _two_clips(args: tuple[Any, ...]) -> tuple[Any, ...]:
    num_clips = len(clips_of(args))
    if num_clips > 1:
        return args
    doubled: tuple[Any, ...] = tree_map_only(Tensor, lambda x: torch.cat([x, x]), args)
    return doubled


def _inputs(exported: ExportedProgram, args: tuple[Any, ...]) -> tuple[TensorSpec, ...]:
    names = exported.graph_signature.user_inputs
    nodes = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    specs = []
    for name, example in zip(names, tree_leaves(args), strict=True):
        value = nodes[str(name)].meta["val"]
        sizes = enumerate(zip(example.shape, value.shape, strict=True))
        axes = tuple(_axis(exported, i, size, free) for i, (size, free) in sizes)
        specs.append(TensorSpec(dtype=str(example.dtype).removeprefix("torch."), axes=axes))
    return tuple(specs)


def _axis(exported: ExportedProgram, number: int, size: int, free: Any) -> Axis:
    if isinstance(free, int) or free.node.maybe_as_int() is not None:  # given free, and found to be fixed
        return Axis(size=size, min=size, max=size, symbol="")
    allowed = exported.range_constraints.get(free.node.expr)
    low = 1 if allowed is None else int(allowed.lower)
    high = None if allowed is None or allowed.upper >= _NO_END else int(allowed.upper)
    return Axis(size=size, min=1 if number == 0 else low, max=high, symbol=str(free.node.expr))


def _about_axes(signature: Signature) -> Iterator[str]:
    for spec in signature.inputs:
        if len(spec.axes) != 5:
            continue
        for name, axis in (("clips", spec.axes[0]), ("frames", spec.axes[2])):
            if axis.min == axis.max or axis.max is not None or axis.min > 2:
                yield f"takes {axis} {name} ({spec}): for other numbers its graph would be another"


def first_line(exc: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    text = str(exc).strip()
    return text.splitlines()[0][:200] if text else type(exc).__name__


@contextmanager
def quiet_export() -> Iterator[None]:
    """Let torch log no traceback of what is reported, or tried another way, here."""
    names = ("torch._subclasses.fake_tensor", "torch.export", "torch.onnx")
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
