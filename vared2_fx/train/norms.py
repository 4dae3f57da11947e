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
from vared2_fx.train.variants import uniform_choices


def recalibrate_norms(dynamic: fx.GraphModule, clips: Iterable[Any]) -> int:
    """Measure the statistics of every choice's own batch norms anew.

    At conversion they are those of the full choice, but half of the frames, or of the channels, have others. Every
    choice, taken in all regions alike, sees every clip; the statistics become the mean over the batches. The norms of
    the full choice, which are the original network's, stay as they are, and so do all weights.

    Args:
        dynamic: a network converted with granularity `block` or `stage`; changed in place. Its mode is restored.
        clips: a loader, as for `report`; labels are not needed. Batches as large as in training.

    Returns:
        The number of clips seen.

    Raises:
        TrainError: the network has no norms of a choice's own: granularity `conv`, or no batch norm in any block.
        DataError: the loader gives no clips.
    """
    owners = _blocks(dynamic)
    norms = _own_norms(owners)
    if not norms:
        raise TrainError(
            "recalibrate_norms: no choice has batch norms of its own; they come with granularity 'block' or 'stage', "
            "at granularity 'conv' every choice gives the norm behind it all frames and channels."
        )
    momentum = {norm: norm.momentum for norm in norms}
    pack, like, num_clips = packer(dynamic), next(dynamic.parameters()), 0
    try:
        with evaluating(dynamic):
            for raw in clips:
                batch = read_batch(raw).to(like)
                if not len(batch.video):
                    continue
                if not num_clips:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.momentum = None  # the mean over all batches
                num_clips += len(batch.video)
                for choice in uniform_choices(dynamic)[1:]:
                    _see(dynamic, owners, choice, pack(batch.video))
    finally:
        for norm, value in momentum.items():
            norm.momentum = value
    if not num_clips:
        raise DataError("recalibrate_norms: the loader gave no clips.")
    return num_clips


def has_own_norms(dynamic: fx.GraphModule) -> bool:
    """Whether choices have batch norms that `recalibrate_norms` measures."""
    return bool(_own_norms(_blocks(dynamic)))


def own_statistics(dynamic: fx.GraphModule) -> list[Tensor]:
    """Means and variances that `recalibrate_norms` measures."""
    values = [value for norm in _own_norms(_blocks(dynamic)) for value in (norm.running_mean, norm.running_var)]
    return [value for value in values if value is not None]


def _blocks(dynamic: fx.GraphModule) -> list[DynamicBlock]:
    return [region for region in regions(dynamic).values() if isinstance(region, DynamicBlock)]


def _own_norms(owners: list[DynamicBlock]) -> list[nn.BatchNorm3d]:
    return [norm for region in owners for norm in region.statistics.modules() if isinstance(norm, nn.BatchNorm3d)]


def _see(dynamic: fx.GraphModule, owners: list[DynamicBlock], choice: Choice, clips: tuple[Any, ...]) -> None:
    """Let the norms of `choice` see what it computes of the clips."""
    own = [region.statistics_of(choice) for region in owners]
    try:
        for norms in own:
            norms.train()
        with policy(dynamic, {"*": choice}):
            dynamic(*clips)
    finally:
        for norms in own:
            norms.eval()
