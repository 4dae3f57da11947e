"""Cheap operations that begin from a few clips [ours]."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from vared2_fx.calibration.blocks import fit_blocks
from vared2_fx.calibration.clips import kept_clips
from vared2_fx.calibration.convs import fit_convs
from vared2_fx.calibration.measure import R2, kept_by_choices
from vared2_fx.calibration.order import choose_channels
from vared2_fx.errors import DataError
from vared2_fx.layers import Choice
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions
from vared2_fx.passes.trace import copy_model
from vared2_fx.policy.fix import converted
from vared2_fx.tables import text_table


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceFit:
    """What one choice of a layer keeps of the layer's output."""

    frame_stride: int
    channel_share: float
    before: float
    """R² of the whole output, what is computed included: 1 − squared error / variance. Below zero, a map that is
    constant at its mean would be nearer."""
    after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCalibration:
    """One region, and all its choices after the full one that the clips were long enough for.

    None where no clip took the branch that it is in; it is left as it is then.
    """

    path: str
    new_channels: int | None
    """How many of the channels that the largest share below 1 keeps are others than before; None where the order of
    channels is fixed, or none is ever left out."""
    choices: tuple[ChoiceFit, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What `calibrate` did; `print` it. Measured on the clips that it was fitted to."""

    network: str
    clips: int
    layers: tuple[LayerCalibration, ...]

    def to_json(self) -> str:
        """All numbers as JSON."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        rows = []
        for layer in self.layers:
            for number, fit in enumerate(layer.choices):
                choice = str(Choice(fit.frame_stride, fit.channel_share))
                first = (layer.path, "–" if layer.new_channels is None else str(layer.new_channels))
                name, new = first if number == 0 else ("", "")
                rows.append((name, new, choice, f"{fit.before:.3f}", f"{fit.after:.3f}"))
        title = f"{self.network}, calibrated on {self.clips} clips: R² of each layer's output"
        table = text_table(("layer", ">new channels", "choice", ">before", ">after"), rows)
        left = [layer.path for layer in self.layers if not layer.choices]
        note = f"\nno clip for any of their choices, left as they are: {', '.join(left)}" if left else ""
        return f"{title}\n{table}{note}"


@torch.inference_mode(False)
def calibrate(
    dynamic: fx.GraphModule,
    clips: Iterable[Any] | Tensor,
    *,
    reorder: bool = True,
    frames: bool = False,
    ridge: float = 1e-3,
    max_clips: int = 64,
) -> Calibration:
    """Choose which channels are kept and set the cheap operations, from a few unlabelled clips, before any training.

    Of each layer the channels that best predict the others become the first, which are those that a share keeps: the
    weights around are reordered alike, so that the full choice computes what it did, up to the rounding of sums in
    another order. Then Φc, and where asked for Φt, become those that rebuild the layer's full output with the least
    squared error (ours; the paper learns them by gradient descent alone, as we understand it). What they were before is
    forgotten, so this belongs before fine-tuning. Inside blocks and stages Φc is set where channels are left out, Φt at
    the end, unless it is `hold`, their default, which has nothing to set; and the batch norms of every choice are
    measured anew, as by `recalibrate_norms`.

    Args:
        dynamic: a converted network, maybe inside a wrapper; changed in place at the very end, or, where this raises,
            not at all. Its mode is kept.
        clips: a loader, or a tensor of clips (N, C, T, H, W); labels are not needed. They are held in memory.
        reorder: False leaves channels where they are, and every bit of the full choice's result. Where an order is
            fixed by what reads the channels (a concatenation, a linear layer, grouped convolutions), it is in any case.
        frames: set Φt, too. It brings maps nearer, but by drawing rebuilt frames to their mean; for single convolutions
            of the demo's network that cost accuracy in each of three seeds, so frames are left as they are by default.
        ridge: share of a map's variance that is added to it, which draws rebuilt frames to held ones, and rebuilt
            channels to their means.
        max_clips: look at the first ones only.

    Returns:
        R² of every layer's choices before and after.

    Raises:
        ConvertError: `dynamic` holds no dynamic region; or, with `reorder`, a trained gate that sees some channels.
        DataError: there are no clips, too few for a layer, or values of them are not finite; or `ridge` is negative.
    """
    network = converted("calibrate", dynamic)
    if not 0 <= ridge < float("inf"):
        raise DataError(f"calibrate: ridge={ridge}; a share of the variance, 0 or more, is expected.")
    batches, pack = kept_clips("calibrate", clips, max_clips), packer(network)
    own = _evaluating_copy(network)
    with torch.no_grad():
        before = kept_by_choices(own, batches, pack)
        moved = choose_channels(own, batches, pack) if reorder else {}
        fit_convs(own, batches, pack, ridge, frames=frames)
        fit_blocks(own, batches, pack, ridge, frames=frames)
        after = kept_by_choices(own, batches, pack)
    network.load_state_dict(own.state_dict())
    return Calibration(
        network=type(network).__name__, clips=sum(map(len, batches)), layers=_layers(before, after, moved)
    )


def _evaluating_copy(network: fx.GraphModule) -> fx.GraphModule:
    own = cast("fx.GraphModule", copy_model(network)).eval()
    for region in regions(own).values():
        for choice in region.grid.all():
            region.variant(choice).eval()  # no submodules of it
    return own


def _layers(before: R2, after: R2, moved: dict[str, int]) -> tuple[LayerCalibration, ...]:
    return tuple(
        LayerCalibration(
            path=path,
            new_channels=moved.get(path),
            choices=tuple(
                ChoiceFit(
                    frame_stride=choice.frame_stride,
                    channel_share=choice.channel_share,
                    before=r2,
                    after=after[path][choice],
                )
                for choice, r2 in choices.items()
            ),
        )
        for path, choices in before.items()
    )
