"""What a converted network can come down to at the clips that it is given."""

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from vared2_fx.batches import read_batch
from vared2_fx.layers import FULL, ConvVariant
from vared2_fx.packing import packer
from vared2_fx.passes.leaves import inner_calls
from vared2_fx.passes.reach import Reach, check_target, reach_of
from vared2_fx.passes.rewrite import regions
from vared2_fx.passes.shapes import Inputs, clips_of, measure_shapes, total_macs
from vared2_fx.passes.trace import calls, fork
from vared2_fx.policy.fix import specialize


def reachable(dynamic: fx.GraphModule, example_inputs: Inputs) -> Reach:
    """Multiply-adds per clip of the full, the middle and the cheapest policy.

    Args:
        dynamic: a converted network; not changed.
        example_inputs: a clip batch, for its shape.

    Raises:
        ConvertError: the network does not run on these inputs.
    """
    found = regions(dynamic)
    static = measure_shapes(fork(specialize(dynamic, {"*": FULL})), example_inputs)
    layers = []
    called = [(str(node.target), node) for node in calls(static, ConvVariant)]
    inside = [site for node in calls(static, nn.Module) for site in inner_calls(static, node)]
    called += [(path, node) for path, _, nodes in inside if path in found for node in nodes if "macs" in node.meta]
    for path, node in called:
        region = found[path]
        source = node.args[0]
        assert isinstance(source, fx.Node)
        _, _, t, h, w = source.meta["shape"]
        frames = region.geometry.out_frames(t)
        offered = [choice for choice in region.grid.all() if choice.frame_stride <= frames]
        layers.append(([region.macs((t, h, w), choice) for choice in offered], region.gate.macs((t, h, w))))
    return reach_of(total_macs(static) // len(clips_of(example_inputs)), layers)


def check_reachable(where: str, dynamic: fx.GraphModule, loader: Iterable[Any], target: float | None) -> None:
    """Refuse a target that `dynamic` cannot come down to at the size of the loader's first clips.

    Raises:
        ConvertError: saying what is reachable.
        DataError: the loader gives no clips.
    """
    if target is None:
        return
    for raw in loader:
        batch = read_batch(raw).to(next(dynamic.parameters()))
        if len(batch.video):
            check_target(where, target, reachable(dynamic, packer(dynamic)(batch.video[:1])))
            return
