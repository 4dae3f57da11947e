"""Accuracy and multiply-adds over data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vared2_fx.errors import DataError
from vared2_fx.layers import Decision
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.statistics import clip_macs, dense_macs
from vared2_fx.tables import percent, si
from vared2_fx.train.batches import Batch, as_batch


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipResult:
    """What the network made of one clip."""

    name: str
    label: int
    prediction: int
    macs: int
    """Multiply-adds that it took, all overhead counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A converted network on data."""

    clips: tuple[ClipResult, ...]
    loss: float
    """Mean cross-entropy per clip."""
    dense_macs: int
    """Multiply-adds per clip of the original network."""

    @property
    def accuracy(self) -> float:
        """Share of the clips whose largest output is their label's (top-1)."""
        return sum(clip.label == clip.prediction for clip in self.clips) / len(self.clips)

    @property
    def mean_macs(self) -> float:
        """Multiply-adds of the average clip."""
        return sum(clip.macs for clip in self.clips) / len(self.clips)

    @property
    def min_macs(self) -> int:
        """Multiply-adds of the cheapest clip."""
        return min(clip.macs for clip in self.clips)

    @property
    def max_macs(self) -> int:
        """Multiply-adds of the most expensive clip."""
        return max(clip.macs for clip in self.clips)

    @property
    def share(self) -> float:
        """Mean multiply-adds as a share of the original's."""
        return self.mean_macs / self.dense_macs

    def __str__(self) -> str:
        low, high = (percent(value / self.dense_macs) for value in (self.min_macs, self.max_macs))
        return (
            f"top-1 {percent(self.accuracy)} of {len(self.clips)} clips, loss {self.loss:.3f}, "
            f"{si(self.mean_macs)}MACs per clip, {percent(self.share)} of the original (min {low}, max {high})"
        )


def evaluate(model: nn.Module, loader: Iterable[Any]) -> Evaluation:
    """Run a network over a loader, in evaluation mode.

    Args:
        model: a converted network, or any other, which takes the same multiply-adds for every clip. Its mode is
            restored.
        loader: batches as dicts with "video" and "label", or pairs (clips, labels).

    Returns:
        Per clip the answer and the multiply-adds it took.

    Raises:
        DataError: the loader is empty, or a batch has no clips and labels.
    """
    observed = _observed(model)
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    results: list[ClipResult] = []
    dense: dict[tuple[int, ...], int] = {}
    loss = 0.0
    model.eval()
    try:
        with torch.no_grad():
            for raw in loader:
                batch = as_batch(raw).to(device)
                output, decisions = observed(*model_args(batch))
                shape = clip_shape(batch)
                if shape not in dense:
                    dense[shape] = dense_macs(model, model_args(batch))
                loss += float(F.cross_entropy(output.float(), batch.labels, reduction="sum"))
                rows = zip(
                    batch.names or [""] * len(batch.labels),
                    batch.labels.tolist(),
                    output.argmax(1).tolist(),
                    clip_macs(decisions, dense[shape]).expand(len(batch.labels)).tolist(),
                    strict=True,
                )
                results.extend(ClipResult(name=n, label=y, prediction=p, macs=m) for n, y, p, m in rows)
    finally:
        for module, training in modes.items():
            module.training = training
    if not results:
        raise DataError("evaluate: the loader gave no clips.")
    return Evaluation(clips=tuple(results), loss=loss / len(results), dense_macs=max(dense.values()))


def _observed(model: nn.Module) -> Callable[..., tuple[Tensor, dict[str, Decision]]]:
    if isinstance(model, fx.GraphModule) and regions(model):
        return with_decisions(model).eval()
    return lambda *args: (model(*args), {})


def model_args(batch: Batch) -> tuple[Any, ...]:
    """The network's arguments for a batch: its clips are one."""
    return (batch.clips,)


def clip_shape(batch: Batch) -> tuple[int, ...]:
    """Shape of one clip of a batch, the largest pathway's where there are several."""
    clips = batch.clips if isinstance(batch.clips, Sequence) else [batch.clips]
    return max(tuple(clip.shape[1:]) for clip in clips)
