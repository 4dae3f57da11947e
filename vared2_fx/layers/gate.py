"""The policy: a gate that looks at a region's input and weighs the choices.

N clips, C channels, T frames, H height, W width; J frame strides, I channel shares.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vared2_fx.config import GateKind
from vared2_fx.errors import ConvertError
from vared2_fx.layers.geometry import Choice, ChoiceGrid, Size

_POOL_CELLS = 8
_PATCH = 2
"""Side of the patch averaged in each cell: noise differs from frame to frame as motion does, but averages out."""

_SEEN = 32
"""Channels that a gate looks at, the first ones: of maps with many, looking would take as long as computing."""

_LAGS = (1, 2)
_VIEWS = 1 + 2 * len(_LAGS)
_SMALL_CHANGE = 1e-2
"""Added to a change before its logarithm is taken: activations are around 1, and smaller changes are none."""
_FAR = 5.0
"""Standard deviations beyond which a feature says no more; what hardly varied in the data may vary widely later."""

_OPEN = 2.0
"""Starting bias between the full choice and the others, on either side of zero for soft modulation."""

_fixed: ContextVar[Mapping["Gate", tuple[int, int]]] = ContextVar("vared2_fx_fixed", default=MappingProxyType({}))


@contextmanager
def fixed_decisions(choices: Mapping["Gate", tuple[int, int]]) -> Iterator[None]:
    """Let these gates decide for (stride index, share index) inside the block, in this thread only.

    Blocks nest: the inner one wins for the gates it names.
    """
    token = _fixed.set({**_fixed.get(), **choices})
    try:
        yield
    finally:
        _fixed.reset(token)


class Gate(nn.Module):
    """Decide, per clip, which frames and channels of a region are computed.

    z = W2 · tanh(BN(W1 · G(X))) + β, then

    - `softmax` (ours, the default): training weighs the strides, and the shares, with softmax(z / `temperature`);
      evaluation takes the largest of each. As the temperature falls the first becomes the second. No noise, so
      that each gate's part in an answer can be told from few clips.
    - `soft_modulation`: φ(z) = max(tanh z, 0) per entry [VA-RED², section 3, as we understand it]. Ours: weights of
      the strides, and of the shares, sum to one (`normalize`); below zero the gradient of tanh is passed on,
      otherwise a closed entry could never open; all zero means the full choice.
    - `gumbel` (ours): one stride and one share; training draws them with probabilities softmax(z / `temperature`),
      by Gumbel noise and a straight-through gradient; evaluation takes the largest. The temperature divides z
      before the noise is added, not after: as it falls the draws themselves become the decisions of evaluation.

    G (ours) looks at a patch of 2×2 positions in each of about 8×8 cells of a map, in up to 32 channels, and gives per
    channel their mean in each of `num_bins` bins of time, and the logarithm of the absolute change over one frame and
    over two, in the mean over the cells and in the cell where it is largest. Motion is what the policy over frames has
    to see: noise, unlike motion, is no larger over two frames than over one, and a small thing that moves is lost in a
    mean. Each of these values is standardised over the data before W1, or the changes would hardly count beside the
    means.

    β and W2 start such that only the full choice is taken, whatever the input.
    """

    temperature: Tensor
    runs: Tensor | None

    def __init__(
        self,
        in_channels: int,
        grid: ChoiceGrid,
        out_frames: Callable[[int], int],
        *,
        kind: GateKind = "softmax",
        hidden: int = 16,
        num_bins: int = 4,
        normalize: bool = True,
    ) -> None:
        """Make a gate.

        Args:
            in_channels: C of the region's input.
            grid: the region's choices.
            out_frames: T of the region's output for T of its input; strides above it are not offered.
            kind: see the class.
            hidden: width of the hidden layer.
            num_bins: bins of time.
            normalize: soft modulation only, see the class.
        """
        super().__init__()
        self.grid, self.out_frames = grid, out_frames
        self.kind, self.normalize, self.num_bins = kind, normalize, num_bins
        self.in_channels, self.num_seen = in_channels, min(in_channels, _SEEN)
        num_entries = len(grid.frame_strides) + len(grid.channel_shares)
        self.scale = nn.BatchNorm1d(_VIEWS * num_bins * self.num_seen, affine=False)
        self.hidden = nn.Linear(_VIEWS * num_bins * self.num_seen, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.out = nn.Linear(hidden, num_entries)
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("runs", None, persistent=False)
        self._start_full()

    def _start_full(self) -> None:
        """|W2 · tanh(…)| ≤ half of β, so no input can move the decision off the full choice."""
        bound = 0.5 * _OPEN / self.out.in_features
        closed = -_OPEN if self.kind == "soft_modulation" else 0.0
        with torch.no_grad():
            self.out.weight.uniform_(-bound / 2, bound / 2)
            self.out.bias.fill_(closed)
            self.out.bias[[0, len(self.grid.frame_strides)]] = _OPEN

    def forward(self, x: Tensor) -> Tensor:
        """Decide.

        Args:
            x: the region's input, (N, C, T, H, W).

        Returns:
            (N, J + I): a weight for each frame stride, then one for each channel share. Zero: not computed.
        """
        if x.dim() != 5:
            raise ConvertError(
                f"gate: an input of shape {tuple(x.shape)}; (N, C, T, H, W) is expected, also for one clip."
            )
        entries = self._fixed_entries(x)
        if entries is not None:
            return entries
        if self._always_full():
            return self._entries(x, 0, 0)
        z = self.logits(self.standardised(self.look(x)))
        z = z.nan_to_num(nan=0.0)  # features that overflowed decide nothing: evaluation computes everything
        num_strides = len(self.grid.frame_strides)
        offered = [stride <= self.out_frames(x.shape[2]) for stride in self.grid.frame_strides]
        if not all(offered):
            offered += [True] * len(self.grid.channel_shares)
            z = z.masked_fill(~torch.tensor(offered, device=z.device), -math.inf)
        decision = torch.cat([self._weigh(z[:, :num_strides]), self._weigh(z[:, num_strides:])], dim=1)
        return decision if self.runs is None or self.training else self._replaced(decision, self.runs)

    def run_in_full(self, choices: Collection[Choice]) -> None:
        """Let clips whose decision, in evaluation, is one of these have the full choice; all others as they are.

        Not saved. A gate that has nothing left to decide looks at nothing.
        """
        full = [0 if choice in choices else place for place, choice in enumerate(self.grid.all())]
        self.runs = torch.tensor(full, device=self.temperature.device) if choices else None

    @property
    def bears_reordering(self) -> bool:
        """Whether it can decide as before if its input's channels come in another order: it sees all, or heeds none."""
        if self.num_seen == self.in_channels:
            return True
        moves, start = self.out.weight.detach().abs().sum(1), self.out.bias.detach()  # tanh: of at most 1
        entries = [len(self.grid.frame_strides), len(self.grid.channel_shares)]
        lowest, highest = torch.split(start - moves, entries), torch.split(start + moves, entries)
        closed = 0.0 if self.kind == "soft_modulation" else math.inf
        return all(bool((high[1:] < low[0].clamp_max(closed)).all()) for low, high in zip(lowest, highest, strict=True))

    @torch.no_grad()
    def reorder_inputs(self, order: Tensor) -> None:
        """Decide as before on inputs whose channel k is now what was channel `order[k]`, int64 (C,).

        For gates that bear it: one that heeds no channel stays as it is.
        """
        if self.num_seen < self.in_channels:
            return
        weight, means = self.hidden.weight, (self.scale.running_mean, self.scale.running_var)
        columns = torch.arange(weight.shape[1], device=weight.device).view(len(order), -1)
        columns = columns[order.to(weight.device)].flatten()
        for values in (weight, *means):
            if values is not None:
                values.copy_(values.index_select(values.dim() - 1, columns))

    def taken(self, choice: Choice) -> Choice:
        """What is computed for a decision of `choice`: that, or everything."""
        return choice if self.runs is None else self.grid.all()[int(self.runs[self.grid.all().index(choice)])]

    def _always_full(self) -> bool:
        return not self.training and self.runs is not None and not self.runs.any()

    def _replaced(self, decision: Tensor, runs: Tensor) -> Tensor:
        """(N, J + I) one-hot, as `runs` says."""
        num_strides, num_shares = len(self.grid.frame_strides), len(self.grid.channel_shares)
        place = runs[decision[:, :num_strides].argmax(1) * num_shares + decision[:, num_strides:].argmax(1)]
        one_hot = F.one_hot(place // num_shares, num_strides), F.one_hot(place % num_shares, num_shares)
        return torch.cat(one_hot, dim=1).to(decision.dtype)

    def macs(self, in_size: Size) -> int:
        """Operations for one clip: one per map value looked at, cell, feature, and weight of the two layers."""
        if self._always_full():
            return 0
        t, h, w = in_size
        (rows, patch_h), (columns, patch_w) = _patches(h), _patches(w)
        cells = t * len(rows) * len(columns) * (self.hidden.in_features // (_VIEWS * self.num_bins))
        look = cells * (patch_h * patch_w + 2 * len(_LAGS))
        return look + self.hidden.in_features + self.hidden.weight.numel() + self.out.weight.numel()

    def _fixed_entries(self, x: Tensor) -> Tensor | None:
        index = _fixed.get().get(self)
        if index is None:
            return None
        return self._entries(x, *index)

    def _entries(self, x: Tensor, j: int, i: int) -> Tensor:
        """(N, J + I): the choice (j, i) for every clip."""
        row = torch.zeros(self.out.out_features, dtype=self.out.weight.dtype, device=x.device)
        row[j] = row[len(self.grid.frame_strides) + i] = 1.0
        return row.expand(x.shape[0], -1)

    def standardised(self, features: Tensor) -> Tensor:
        """Features (N, F) in standard deviations from their mean over the data."""
        return self._normed(self.scale, features).clamp(-_FAR, _FAR)

    def logits(self, features: Tensor) -> Tensor:
        """Standardised features (N, F) → z (N, J + I)."""
        z: Tensor = self.out(torch.tanh(self._normed(self.norm, self.hidden(features))))
        return z

    def look(self, x: Tensor) -> Tensor:
        """G: (N, C, T, H, W) → (N, F), F = 5 · bins · channels seen."""
        cells = _average_patches(x[:, : self.num_seen])
        changes = [_changes(cells, lag) for lag in _LAGS]
        both = torch.cat(changes, dim=2)
        summaries = torch.cat([_over_cells(F.avg_pool2d, both), _over_cells(F.max_pool2d, both)], dim=1)
        logs = torch.split((summaries + _SMALL_CHANGE).log(), [change.shape[2] for change in changes], dim=2)
        pooled = [F.adaptive_avg_pool1d(view, self.num_bins) for view in (_over_cells(F.avg_pool2d, cells), *logs)]
        views = torch.cat(pooled, dim=1).view(len(x), _VIEWS, self.num_seen, self.num_bins)
        return views.transpose(1, 2).flatten(1).to(self.hidden.weight.dtype)

    def _normed(self, norm: nn.BatchNorm1d, values: Tensor) -> Tensor:
        alone = type(norm) is nn.BatchNorm1d  # not one that takes its statistics over several processes
        if self.training and alone and len(values) == 1:  # one clip has no statistics of its own
            return F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        normed: Tensor = norm(values)
        return normed

    def _weigh(self, z: Tensor) -> Tensor:
        if self.kind == "soft_modulation":
            return _soft_modulation(z, self.normalize)
        if self.training and self.kind == "softmax":
            return (z / self.temperature).softmax(1)
        if self.training:
            draws = torch.empty_like(z, dtype=torch.promote_types(z.dtype, torch.float32)).exponential_()
            noisy = z / self.temperature - draws.log().to(z.dtype)  # the smallest draws would be 0 in float16
            soft = noisy.softmax(1)
            # Not F.gumbel_softmax: it adds and takes away `soft` in an order that leaves 1e-8 in place of zeros.
            return F.one_hot(noisy.argmax(1), z.shape[1]) + (soft - soft.detach())
        return torch.zeros_like(z).scatter_(1, z.argmax(1, keepdim=True), 1.0)  # fewer operators than one_hot


def _soft_modulation(z: Tensor, normalize: bool) -> Tensor:
    smooth = torch.tanh(z)
    weights = smooth + (smooth.clamp_min(0.0) - smooth).detach()  # value max(tanh, 0), gradient of tanh
    closed = weights.sum(1, keepdim=True) <= 0
    weights = weights + closed * F.one_hot(torch.zeros_like(z[:, 0], dtype=torch.long), z.shape[1])
    return weights / weights.sum(1, keepdim=True) if normalize else weights


def _changes(cells: Tensor, lag: int) -> Tensor:
    """|change| over `lag` frames of (N, C, T, h, w): (N, C, T − lag, h, w), or one frame of zeros."""
    if cells.shape[2] <= lag:
        return torch.zeros_like(cells[:, :, :1])
    return (cells[:, :, lag:] - cells[:, :, :-lag]).abs()


def _over_cells(pool: Callable[..., Tensor], cells: Tensor) -> Tensor:
    """(N, C, T, h, w) → (N, C, T) by a pooling operator of maps; reductions are slow in `channels_last_3d`."""
    pooled = pool(cells.transpose(1, 2).flatten(0, 1), cells.shape[3:])
    return pooled.view(cells.shape[0], cells.shape[2], cells.shape[1]).transpose(1, 2)


def _average_patches(x: Tensor) -> Tensor:
    """(N, C, T, H, W) → (N, C, T, about 8, about 8): the mean of a corner of each cell."""
    (rows, patch_h), (columns, patch_w) = _patches(x.shape[3]), _patches(x.shape[4])
    corners = [  # slices: pooling operators take as long as a convolution in channels_last_3d
        x[..., rows.start + a : rows.stop + a : rows.step, columns.start + b : columns.stop + b : columns.step]
        for a in range(patch_h)
        for b in range(patch_w)
    ]
    total = corners[0]
    for corner in corners[1:]:
        total = total + corner
    return total / len(corners) if len(corners) > 1 else total


def _patches(size: int) -> tuple[range, int]:
    """Where along an axis a patch begins, about 8 times, and its length."""
    cell = max(1, size // _POOL_CELLS)
    patch = min(_PATCH, cell)
    return range(0, size - patch + 1, cell), patch
