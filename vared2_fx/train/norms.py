"""Statistics of batch norms for what each choice computes [ours]."""

from collections.abc import Iterable
from itertools import chain
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
                    for norm in _measured(dynamic, policies):
                        norm.reset_running_stats()
                        norm.momentum = None  # the mean over all batches
                num_clips += len(batch.video)
                for choices, measured in policies:
                    _see(dynamic, choices, measured, pack(batch.video))
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


def _policies(dynamic: fx.GraphModule, *, taken_only: bool) -> list[tuple[dict[str, Choice], set[str]]]:
    """The choices of all regions to be computed, policy after policy, and the regions that are then measured."""
    grids = {path: region.grid for path, region in _blocks(dynamic).items()}
    places = {path: settled_place(region.gate) for path, region in _blocks(dynamic).items()}
    settled = {path: grids[path][place] for path, place in places.items() if place is not None}
    if len(settled) < len(grids):
        settled = {}
    if settled and taken_only:
        return [(settled, set(settled))]
    alike = [{path: grid.nearest(choice) for path, grid in grids.items()} for choice in uniform_choices(dynamic)[1:]]
    policies = [(choices, {path for path in grids if settled.get(path) != choices[path]}) for choices in alike]
    return [(choices, measured) for choices, measured in [(settled, set(settled)), *policies] if measured]


def _measured(dynamic: fx.GraphModule, policies: list[tuple[dict[str, Choice], set[str]]]) -> list[nn.BatchNorm3d]:
    blocks = _blocks(dynamic)
    measured = [blocks[path].statistics_of(choices[path]) for choices, paths in policies for path in paths]
    return [norm for some in measured for norm in _norms_in(some)]


def _see(dynamic: fx.GraphModule, choices: dict[str, Choice], measured: set[str], clips: tuple[Any, ...]) -> None:
    """Compute these choices with the batch's own statistics everywhere; some regions' norms count them."""
    blocks = _blocks(dynamic)
    norms = {path: _norms_in(blocks[path].statistics_of(choice)) for path, choice in choices.items()}
    try:
        for path, some in norms.items():
            for norm in some:
                norm.train()
                norm.track_running_stats = path in measured
        with policy(dynamic, choices):
            dynamic(*clips)
    finally:
        for norm in chain.from_iterable(norms.values()):
            norm.eval()
            norm.track_running_stats = True
