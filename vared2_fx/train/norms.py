"""Statistics of batch norms for what each choice computes [ours]."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx, nn

from vared2_fx.batches import read_batch
from vared2_fx.errors import DataError, TrainError
from vared2_fx.layers import Choice, DynamicBlock
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.fix import policy
from vared2_fx.train.regress import settled_place
from vared2_fx.train.variants import uniform_choices

Args = tuple[Any, ...]
Policy = tuple[dict[str, Choice], dict[nn.BatchNorm3d, bool]]


def recalibrate_norms(dynamic: fx.GraphModule, clips: Iterable[Any], *, taken_only: bool = False) -> int:
    """Measure the statistics of every choice's own batch norms anew.

    At conversion they are those of the full choice, but half of the frames, or of the channels, have others. Every
    choice, taken in all regions alike, sees every clip; the statistics become the mean over the batches. Where all
    gates are settled (`fit_gates`), what they take is measured as they take it together: behind a region that computes
    less than others a region sees other maps. The norms of the full choice, which are the original network's, stay as
    they are, and so do all weights.

    Args:
        dynamic: a network converted with granularity `block` or `stage`; changed in place. Its mode is restored.
        clips: a loader, as for `report`; labels are not needed. Batches as large as in training.
        taken_only: where all gates are settled, measure nothing but what they take, which is sooner done.

    Returns:
        The number of clips seen.

    Raises:
        TrainError: the network has no norms of a choice's own: granularity `conv`, or no batch norm in any block.
        DataError: the loader gives no clips.
    """
    norms = _own_norms(dynamic)
    if not norms:
        raise TrainError(
            "recalibrate_norms: no choice has batch norms of its own; they come with granularity 'block' or 'stage', "
            "at granularity 'conv' every choice gives the norm behind it all frames and channels."
        )
    momentum, policies = {norm: norm.momentum for norm in norms}, _policies(dynamic, taken_only=taken_only)
    pack, like, num_clips = packer(dynamic), next(dynamic.parameters()), 0
    try:
        with evaluating(dynamic):
            for raw in clips:
                batch = read_batch(raw).to(like)
                if not len(batch.video):
                    continue
                if not num_clips:
                    for norm in {norm for _, norms in policies for norm, counts in norms.items() if counts}:
                        norm.reset_running_stats()
                        norm.momentum = None  # the mean over all batches
                num_clips += len(batch.video)
                for choices, counting in policies:
                    _see(dynamic, choices, counting, pack(batch.video))
    finally:
        for norm, value in momentum.items():
            norm.momentum = value
    if not num_clips:
        raise DataError("recalibrate_norms: the loader gave no clips.")
    return num_clips


def has_own_norms(dynamic: fx.GraphModule) -> bool:
    """Whether choices have batch norms that `recalibrate_norms` measures."""
    return bool(_own_norms(dynamic))


def own_statistics(dynamic: fx.GraphModule) -> list[Tensor]:
    """Means and variances that `recalibrate_norms` measures."""
    values = [value for norm in _own_norms(dynamic) for value in (norm.running_mean, norm.running_var)]
    return [value for value in values if value is not None]


def _blocks(dynamic: fx.GraphModule) -> dict[str, DynamicBlock]:
    return {path: region for path, region in regions(dynamic).items() if isinstance(region, DynamicBlock)}


def _own_norms(dynamic: fx.GraphModule) -> list[nn.BatchNorm3d]:
    return [norm for region in _blocks(dynamic).values() for norm in _norms_in(region.statistics)]


def _norms_in(module: nn.Module) -> list[nn.BatchNorm3d]:
    return [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm3d)]


def _policies(dynamic: fx.GraphModule, *, taken_only: bool) -> list[Policy]:
    """The choices of all regions to be computed, policy after policy, and whether each norm in use counts the clips."""
    blocks = _blocks(dynamic)
    places = {path: settled_place(region.gate) for path, region in blocks.items()}
    settled = {path: blocks[path].grid[place] for path, place in places.items() if place is not None}
    if len(settled) < len(blocks):
        settled = {}
    alike = [
        {path: region.grid.nearest(choice) for path, region in blocks.items()} for choice in uniform_choices(dynamic)
    ]
    found = [(choices, {path for path in blocks if settled.get(path) != choices[path]}) for choices in alike[1:]]
    if settled:
        found = [(settled, set(settled)), *([] if taken_only else found)]
    return [
        (
            choices,
            {norm: path in counted for path in blocks for norm in _norms_in(blocks[path].statistics_of(choices[path]))},
        )
        for choices, counted in found
        if counted
    ]


def _see(dynamic: fx.GraphModule, choices: dict[str, Choice], norms: dict[nn.BatchNorm3d, bool], clips: Args) -> None:
    """Compute these choices with the batch's own statistics; norms that are True count them."""
    tracked = {norm: norm.track_running_stats for norm in norms}
    try:
        for norm, counts in norms.items():
            norm.train()
            norm.track_running_stats = counts and tracked[norm]
        with policy(dynamic, choices):
            dynamic(*clips)
    finally:
        for norm, value in tracked.items():
            norm.eval()
            norm.track_running_stats = value
