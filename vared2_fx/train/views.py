"""Several clips of one video, answered together: what the field calls K clips × crops.

N clips, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoResult:
    """What the network made of one video, of which it saw one or several clips."""

    name: str
    label: int
    """Its class; of a video without a label, what the original network answers to its first clip."""
    prediction: int
    """Class of the largest probability, averaged over its clips."""
    macs: int
    """Multiply-adds of all its clips together, all overhead counted."""
    views: int
    """How many clips, or crops of clips, there were."""
    rank: int
    """How many classes had a larger mean probability than the label's; 0: the prediction is right."""


class ViewMeans:
    """Probabilities averaged by the name of the video, as clips come in."""

    def __init__(self) -> None:
        """Begin with no video."""
        self._sums: dict[str, Tensor] = {}
        self._labels: dict[str, int] = {}
        self._macs: dict[str, int] = {}
        self._views: dict[str, int] = {}

    def add(self, names: list[str] | None, labels: Tensor, scores: Tensor, macs: Tensor) -> None:
        """Count a batch: names of the videos, int (N,), scores (N, K), multiply-adds int (N,); no names, no videos."""
        rows = zip(names or (), labels.tolist(), scores.float().softmax(1).cpu(), macs.tolist(), strict=False)
        for name, label, probabilities, spent in rows:
            self._labels.setdefault(name, label)
            self._sums[name] = self._sums.get(name, 0) + probabilities
            self._macs[name] = self._macs.get(name, 0) + spent
            self._views[name] = self._views.get(name, 0) + 1

    def found(self) -> tuple[VideoResult, ...]:
        """Every video, in the order of their first clips."""
        return tuple(self._result(name, sums) for name, sums in self._sums.items())

    def _result(self, name: str, sums: Tensor) -> VideoResult:
        label = self._labels[name]
        return VideoResult(
            name=name,
            label=label,
            prediction=int(sums.argmax()),
            macs=self._macs[name],
            views=self._views[name],
            rank=int(torch.sum(sums > sums[label])),
        )
