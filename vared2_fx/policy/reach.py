"""What a converted network can come down to at the clips that it is given."""

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from vared2_fx.batches import read_batch
from vared2_fx.packing import packer
from vared2_fx.passes.leaves import inner_calls
from vared2_fx.passes.reach import Reach, check_target, reach_of
from vared2_fx.passes.rewrite import full_regions, regions
from vared2_fx.passes.shapes import Inputs, clips_of, measure_shapes, total_macs
from vared2_fx.passes.trace import calls


def reachable(dynamic: fx.GraphModule, example_inputs: Inputs) -> Reach:
    """Multiply-adds per clip of the full, the middle and the cheapest policy.

    Args:
        dynamic: a converted network; not changed.
        example_inputs: a clip batch, for its shape.

    Raises:
        ConvertError: the network does not run on these inputs.
    """
    static = measure_shapes(full_regions(dynamic), example_inputs)
    layers = []
    for path, region in regions(dynamic).items():
        for in_shape in _in_shapes(static, path):
            t, h, w = in_shape[2:]
            offered = [choice for choice in region.grid.all() if choice.frame_stride <= region.out_frames(t)]
            layers.append(([region.macs((t, h, w), choice) for choice in offered], region.gate.macs((t, h, w))))
    return reach_of(total_macs(static) // len(clips_of(example_inputs)), layers)


def _in_shapes(static: fx.GraphModule, path: str) -> list[tuple[int, ...]]:
    """What a region reads at each of its calls; none, where a leaf did not call it."""
    called = static.graph.find_nodes(op="call_module", target=path)
    inside = [site for node in calls(static, nn.Module) for site in inner_calls(static, node)]
    nodes = [*called, *(node for inner, _, found in inside if inner == path for node in found if "macs" in node.meta)]
    return [node.args[0].meta["shape"] for node in nodes]


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
