"""A run in numbers, epoch by epoch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vared2_fx.config import FinetuneConfig
from vared2_fx.train.evaluate import Evaluation
from vared2_fx.train.target import TOLERANCE

_BEHIND = 1e3
"""Added to the objective of an epoch that misses the target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochLog:
    """One epoch in numbers; a line of `log.jsonl`."""

    epoch: int
    """From 1; 0 is the network before the first step."""
    train_loss: float
    train_accuracy: float
    train_share: float
    """Expected multiply-adds in training as a share of the original's, in the mean."""
    accuracy: float
    """Of the evaluation, as the next three."""
    share: float
    min_share: float
    max_share: float
    objective: float
    """What the best epoch has least of, in the evaluation: errors plus λ times the efficiency loss; with variants first
    the share of the multiply-adds plus `gate_loss_weight` times the cross-entropy, or that alone within a target.
    See `best_of`."""
    seconds: float
    num_failed: int = 0
    """Training clips that were missing in their batches, as they could not be read; of all processes."""
    objective_error: float = 0.0
    """Standard error of the objective, as clips differ."""
    alarms: int = 0
    """How many `collapse_alarms` the evaluation raised."""
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of the evaluation, by path of the region: `share` of its multiply-adds that was computed, and `entropy` of its
    choices over the clips in bits."""


def log_of(
    epoch: int, meter: "EpochMeter", evaluation: Evaluation, config: FinetuneConfig, *, seconds: float, alarms: int
) -> EpochLog:
    """An epoch in numbers, from what was counted while training and what was evaluated after it."""
    layers, (objective, error) = evaluation.layers.items(), _objective(evaluation, config)
    return EpochLog(
        epoch=epoch,
        train_loss=meter.loss,
        train_accuracy=meter.accuracy,
        train_share=meter.share,
        accuracy=evaluation.accuracy,
        share=evaluation.share,
        min_share=evaluation.min_macs / evaluation.dense_macs,
        max_share=evaluation.max_macs / evaluation.dense_macs,
        objective=objective,
        objective_error=error,
        seconds=seconds,
        num_failed=int(meter.num_failed),
        alarms=alarms,
        layers={path: {"share": layer.share, "entropy": layer.entropy} for path, layer in layers},
    )


def _objective(evaluation: Evaluation, config: FinetuneConfig) -> tuple[float, float]:
    """What training minimises, on what evaluation computed, and its standard error.

    With variants first the price that gates are fitted to, see `fit_gates`. Else the loss, with errors in place of
    cross-entropy. An epoch that misses the target stands behind all that do not.
    """
    excess = 0.0 if config.target is None else max(0.0, evaluation.share - config.target)
    shares = torch.tensor([clip.macs / evaluation.dense_macs for clip in evaluation.clips], dtype=torch.float64)
    if config.schedule == "variants_first":
        losses = torch.tensor([clip.loss for clip in evaluation.clips], dtype=torch.float64)
        values = config.gate_loss_weight * losses + (shares if config.target is None else 0.0)
    else:
        wrong = torch.tensor([clip.label != clip.prediction for clip in evaluation.clips], dtype=torch.float64)
        values = wrong + config.efficiency_weight * (shares**2 if config.target is None else excess)
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return _BEHIND * (excess > TOLERANCE) + float(values.mean()), error


def rank(epoch: EpochLog) -> tuple[float, int]:
    """What is smaller for the better epoch."""
    return epoch.objective, -epoch.epoch  # of equals the later: its gates are more settled


def best_of(history: Sequence[EpochLog]) -> EpochLog:
    """The epoch to keep: the last one whose objective is within the standard error of the least [ours].

    The least of many noisy figures is partly luck, and learning rates fall to the end. With many clips the error is
    small, and the least decides.
    """
    least = min(history, key=rank)
    most = least.objective + least.objective_error
    return max((epoch for epoch in history if epoch.objective <= most), key=lambda epoch: epoch.epoch, default=least)


class EpochMeter:
    """Running means over the clips of an epoch."""

    def __init__(self) -> None:
        """Begin with no clip."""
        self.clips = self.num_failed = 0.0
        self._sums = [0.0, 0.0, 0.0]

    def add(self, loss: Tensor, correct: Tensor, share: Tensor) -> None:
        """Count the clips of a batch: mean loss (), correct bool (N,), share of the multiply-adds (N,)."""
        self.clips += len(correct)
        for i, value in enumerate((loss * len(correct), correct.sum(), share.sum())):
            self._sums[i] += float(value)

    def add_failed(self, num_clips: int) -> None:
        """Count clips that could not be read."""
        self.num_failed += num_clips

    def over_processes(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Count the clips of all processes; `reduce` sums a tensor over them."""
        own = torch.tensor([self.clips, self.num_failed, *self._sums], dtype=torch.float64)
        self.clips, self.num_failed, *self._sums = reduce(own).tolist()

    @property
    def loss(self) -> float:
        """Mean over the clips; zero before the first."""
        return self._sums[0] / max(1.0, self.clips)

    @property
    def accuracy(self) -> float:
        """Share of the clips classified correctly."""
        return self._sums[1] / max(1.0, self.clips)

    @property
    def share(self) -> float:
        """Mean share of the original's multiply-adds."""
        return self._sums[2] / max(1.0, self.clips)
