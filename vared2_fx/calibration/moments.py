"""Second moments of maps, gathered batch by batch, and the least squares that they allow.

N clips, C channels, T frames, I of them computed, H height, W width; S values of a map, over clips and places;
M problems with k regressors each. Sums are in float64, so that nothing need be centred before it is known where.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vared2_fx.layers import computed_frames

_FLAT = 1e-12
"""A variance below this share of the mean square is rounding: the map is constant."""

_LEAST_RIDGE = 1e-9
"""Decides between regressors that are the same: a frame that is the nearest before and after."""


class ChannelMoments:
    """Mean and covariance of the channels of a map."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """Count in maps (N, C, T, H, W)."""
        for clip in torch.split(maps, 1):  # one by one: float64 takes room
            rows = _rows(clip)
            total, products = rows.sum(1), rows @ rows.t()
            self.count += rows.shape[1]
            self._sum = total if self._sum is None else self._sum + total
            self._products = products if self._products is None else self._products + products

    @property
    def mean(self) -> Tensor:
        """Mean of each channel, (C,)."""
        assert self._sum is not None
        return self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(C, C); rows and columns of constant channels are zero."""
        assert self._products is not None
        square, mean = self._products / self.count, self.mean
        covariance = square - mean[:, None] * mean
        alive = covariance.diagonal() > _FLAT * square.diagonal()
        return covariance * alive * alive[:, None]

    @property
    def finite(self) -> bool:
        """Whether no map held a value that is not a number, or infinite."""
        return self._products is None or bool(self._products.isfinite().all())


class SpatialFits:
    """Channels from 3×3 patches of others: a `LinearFits` of M problems with 9 regressors each."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.fits = LinearFits()

    def add(self, sources: Tensor, targets: Tensor) -> None:
        """Count in sources (N, M, T, H, W), which are padded with zeros, and targets of the same shape."""
        height, width = targets.shape[3:]
        for source, target in zip(torch.split(F.pad(sources, (1, 1, 1, 1)), 1), torch.split(targets, 1), strict=True):
            taps = [_rows(source[..., a : a + height, b : b + width]) for a in range(3) for b in range(3)]
            self.fits.add(torch.stack(taps, dim=1), _rows(target))


class LinearFits:
    """M independent problems y ≈ Σ_k factor_k · x_k + offset."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.count = 0
        self._moments: Tensor | None = None

    def add(self, regressors: Tensor, target: Tensor) -> None:
        """Count in x (M, k, S) and y (M, S)."""
        ones = torch.ones_like(target)[:, None]
        table = torch.cat([regressors, target[:, None], ones], dim=1).double()
        moments = torch.bmm(table, table.transpose(1, 2))
        self.count += target.shape[1]
        self._moments = moments if self._moments is None else self._moments + moments

    def solve(self, start: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Least squares that leave `start` only where the data say so.

        Args:
            start: factors (M, k) that they are drawn to.
            ridge: how much: this share of each regressor's variance per squared difference. A constant regressor
                keeps its factor.

        Returns:
            Factors (M, k) and offsets (M,), float64.
        """
        mean, covariance = self._centred()
        within, with_target = covariance[:, :-1, :-1], covariance[:, :-1, -1]
        variance = within.diagonal(dim1=1, dim2=2)
        pull = torch.where(variance > 0, max(ridge, _LEAST_RIDGE) * variance, 1.0)
        start = start.double()
        missing = with_target - (within @ start[..., None])[..., 0]
        factors = start + torch.linalg.solve(within + torch.diag_embed(pull), missing)
        return factors, mean[:, -1] - (factors * mean[:, :-1]).sum(1)

    def error(self, factors: Tensor, offsets: Tensor) -> Tensor:
        """Mean squared error of given factors (M, k) and offsets (M,): (M,)."""
        mean, covariance = self._centred()
        signed = torch.cat([-factors.double(), torch.ones_like(mean[:, :1])], dim=1)
        bias = (signed * mean).sum(1) - offsets.double()
        spread = (signed[:, None] @ covariance @ signed[..., None])[:, 0, 0]
        return spread.clamp_min(0) + bias.square()

    @property
    def variance(self) -> Tensor:
        """Of the targets, (M,)."""
        return self._centred()[1][:, -1, -1]

    @property
    def finite(self) -> bool:
        """Whether no value was infinite, or not a number."""
        return self._moments is None or bool(self._moments.isfinite().all())

    def _centred(self) -> tuple[Tensor, Tensor]:
        """Means (M, k + 1) and covariances (M, k + 1, k + 1) of regressors and target."""
        assert self._moments is not None
        table = self._moments / self.count
        mean, square = table[:, :-1, -1], table[:, :-1, :-1]
        covariance = square - mean[:, :, None] * mean[:, None]
        alive = covariance.diagonal(dim1=1, dim2=2) > _FLAT * square.diagonal(dim1=1, dim2=2)
        return mean, covariance * alive[:, :, None] * alive[:, None]


class FrameFits:
    """The frames between the computed ones, from these: a `LinearFits` of C problems for each phase 1 … R−1.

    Which frame is rebuilt from which is as in `FrameRebuild`: from the one computed frame of its R, or, with `both`,
    from those before and after it.
    """

    def __init__(self, stride: int, *, both: bool = False) -> None:
        """Begin with nothing, at R = `stride` ≥ 2."""
        self.stride, self.both = stride, both
        self.phases = [LinearFits() for _ in range(1, stride)]

    def add(self, computed: Tensor, full: Tensor) -> None:
        """Count in computed frames (N, C, I, H, W) and all frames (N, C, T, H, W); a single frame says nothing."""
        num_frames = full.shape[2]
        last = len(computed_frames(num_frames, self.stride)) - 1
        assert computed.shape[2] == last + 1
        for phase, fits in enumerate(self.phases, start=1):
            frames = [t for t in range(num_frames) if (t - 1) % self.stride == phase]
            if num_frames < 2 or not frames:
                continue
            before = [(t - 1) // self.stride for t in frames]
            sources = [before, [i + 1 for i in before]] if self.both else [[t // self.stride for t in frames]]
            for some, whole in zip(torch.split(computed, 1), torch.split(full, 1), strict=True):
                picked = [_rows(some[:, :, [min(max(i, 0), last) for i in source]]) for source in sources]
                fits.add(torch.stack(picked, dim=1), _rows(whole[:, :, frames]))


def _rows(maps: Tensor) -> Tensor:
    """(N, C, T, H, W) → (C, S), float64."""
    return maps.detach().movedim(1, 0).flatten(1).double()
