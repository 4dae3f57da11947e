"""How much of a network's maps is predictable from other maps, on given clips.

C channels (K of them the predictors), T frames; R frame stride, r channel share.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from vared2_fx.calibration.clips import kept_clips, run_clips
from vared2_fx.calibration.fit import ENOUGH
from vared2_fx.calibration.kept import choose_kept, explained
from vared2_fx.calibration.moments import ChannelMoments, FrameFits
from vared2_fx.errors import DataError
from vared2_fx.layers import computed_frames
from vared2_fx.layers.geometry import ceil_share
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.passes.decisions import without_decisions
from vared2_fx.passes.rewrite import regions
from vared2_fx.passes.trace import copy_model
from vared2_fx.policy.fix import unload
from vared2_fx.tables import percent, text_table
from vared2_fx.wrappers import unwrapped


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """How well maps are predicted by linear functions of others."""

    r2: float
    """1 − squared error / variance, of all predicted maps together; 1 where they do not vary."""
    share: float
    """Share of the maps whose own such number is at least the threshold."""

    @classmethod
    def of(cls, error: Tensor, variance: Tensor, threshold: float) -> "Predicted":
        """Sum up mean squared errors and variances, one for each map."""
        each = torch.where(variance > 0, 1 - error / variance, 1.0)
        total = float(variance.sum())
        return cls(
            r2=1 - float(error.sum()) / total if total else 1.0, share=float((each >= threshold).double().mean())
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRedundancy:
    """One 3D convolution's output."""

    path: str
    channels: int
    frames: int
    """T, in the first batch."""
    by_frame: Predicted | None
    """The frames between every R-th, each channel by a scale and an offset for each phase, as `repeat` rebuilds them;
    None where there are none."""
    by_channel: Predicted | None
    """The channels that are not kept, each by a scale and an offset from one of the kept, as `scale` rebuilds them;
    None for one channel, or where the clips were too few to tell."""
    by_channels: Predicted | None
    """The same, each from all of the kept together: what no rebuild from these can exceed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Redundancy:
    """What `redundancy` found; `print` it."""

    network: str
    clips: int
    frame_stride: int
    channel_share: float
    threshold: float
    layers: tuple[LayerRedundancy, ...]

    def to_json(self) -> str:
        """All numbers as JSON."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        rows = [
            (
                layer.path,
                f"{layer.channels}×{layer.frames}",
                *_cells(layer.by_frame),
                *_cells(layer.by_channel),
                _cells(layer.by_channels)[0],
            )
            for layer in self.layers
        ]
        columns = ("layer", ">C×T", ">frames R²", ">maps", ">channels R²", ">maps", ">jointly R²")
        asked = f"one in {self.frame_stride} frames and {percent(self.channel_share)} of the channels"
        title = f"{self.network}, {self.clips} clips: R² of what is predicted from {asked},"
        title += f"\nand the share of such maps with R² ≥ {self.threshold:g}"
        return title + "\n" + text_table(columns, rows)


def redundancy(
    model: nn.Module,
    clips: Iterable[Any] | Tensor,
    *,
    frame_stride: int = 2,
    channel_share: float = 0.5,
    threshold: float = 0.9,
    max_clips: int = 64,
) -> Redundancy:
    """Measure, for each 3D convolution, how well its frames and channels are predicted from others of them.

    The paper's motivation (its introduction), on clips of your own: where the numbers are high, computing less and
    rebuilding the rest loses little, before anything is trained. The predictions are those of the cheap operations as
    calibration sets them, fitted on these very clips; the channels to predict from are chosen to be those that do it
    best. The form of the measurement is ours.

    Args:
        model: any network, or a converted one (looked at in full); not changed.
        clips: a loader, or a tensor of clips (N, C, T, H, W); labels are not needed.
        frame_stride: R ≥ 2; predict from one in R frames.
        channel_share: r between 0 and 1; predict from ⌈r·C⌉ channels.
        threshold: R² from which on a map counts as predicted.
        max_clips: look at the first ones only.

    Returns:
        A row for each convolution that was called, in order of the first call.

    Raises:
        DataError: there are no clips, or the network makes values of them that are not finite; or an argument is out
            of its range.
        ConvertError: the network cannot be copied.
    """
    if frame_stride < 2 or not 0 < channel_share < 1:
        raise DataError(
            f"redundancy: frame_stride={frame_stride}, channel_share={channel_share:g}; a stride of at least 2 and a "
            "share between 0 and 1 leave something to predict."
        )
    batches, pack = kept_clips("redundancy", clips, max_clips), packer(unwrapped(model))
    own = _plain_copy(model)
    seen: dict[str, _Maps] = {}
    for path, module in own.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(partial(_look, seen, path, frame_stride))
    with evaluating(own):
        run_clips(own, batches, pack)
    for path, maps in seen.items():
        if not maps.channels.finite:
            raise DataError(f"redundancy: `{path}` gives values that are not finite for these clips.")
    return Redundancy(
        network=type(unwrapped(model)).__name__,
        clips=sum(map(len, batches)),
        frame_stride=frame_stride,
        channel_share=channel_share,
        threshold=threshold,
        layers=tuple(maps.summary(path, channel_share, threshold) for path, maps in seen.items()),
    )


class _Maps:
    """What is gathered of one convolution's output."""

    def __init__(self, frames: int, stride: int) -> None:
        self.frames, self.channels, self.fits = frames, ChannelMoments(), FrameFits(stride)

    def add(self, y: Tensor) -> None:
        self.channels.add(y)
        num_frames = y.shape[2]
        self.fits.add(y[:, :, list(computed_frames(num_frames, self.fits.stride))], y)

    def summary(self, path: str, share: float, threshold: float) -> LayerRedundancy:
        covariance = self.channels.covariance.cpu()
        enough = self.channels.count >= ENOUGH * len(covariance) and len(covariance) > 1
        alone, jointly = _by_channels(covariance, share, threshold) if enough else (None, None)
        return LayerRedundancy(
            path=path,
            channels=len(covariance),
            frames=self.frames,
            by_frame=self._by_frame(threshold),
            by_channel=alone,
            by_channels=jointly,
        )

    def _by_frame(self, threshold: float) -> Predicted | None:
        met = [fits for fits in self.fits.phases if fits.count]
        if not met:
            return None
        errors = []
        for fits in met:
            variance = fits.variance
            errors.append(fits.error(*fits.solve(variance.new_ones(len(variance), 1), ridge=0.0)))
        return Predicted.of(torch.cat(errors), torch.cat([fits.variance for fits in met]), threshold)


def _look(seen: dict[str, _Maps], path: str, stride: int, _: nn.Module, args: Any, y: Tensor) -> None:
    if y.dim() == 5 and y.is_floating_point():
        seen.setdefault(path, _Maps(y.shape[2], stride)).add(y)


def _by_channels(covariance: Tensor, share: float, threshold: float) -> tuple[Predicted, Predicted]:
    """From one of the kept channels each, and from all of them."""
    kept = choose_kept(explained(covariance), ceil_share(share, len(covariance)))
    left = torch.ones(len(covariance), dtype=torch.bool)
    left[kept] = False
    variance = covariance.diagonal()[left]
    alone = variance - explained(covariance)[kept][:, left].amax(0)
    within, across = covariance[kept][:, kept], covariance[kept][:, left]
    jointly = variance - (across * (torch.linalg.pinv(within, hermitian=True) @ across)).sum(0)
    return tuple(Predicted.of(error.clamp_min(0), variance, threshold) for error in (alone, jointly))  # type: ignore[return-value]


def _cells(found: Predicted | None) -> tuple[str, str]:
    return ("–", "–") if found is None else (f"{found.r2:.3f}", percent(found.share))


def _plain_copy(model: nn.Module) -> nn.Module:
    network = unwrapped(model)
    if isinstance(network, fx.GraphModule) and regions(network := without_decisions(network)):
        return unload(network)
    return copy_model(network)
