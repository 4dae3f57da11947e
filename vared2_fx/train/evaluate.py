"""Accuracy and multiply-adds over data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vared2_fx.batches import Batch, check_labels, read_batch, read_labelled
from vared2_fx.errors import DataError
from vared2_fx.layers import ChoiceGrid, Decision
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.counts import DecisionCounts, LayerDecisions
from vared2_fx.policy.statistics import clip_macs, dense_macs
from vared2_fx.tables import percent, si
from vared2_fx.train.views import VideoResult, ViewMeans


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipResult:
    """What the network made of one clip."""

    name: str
    label: int
    """Its class; of a clip without a label, what the original network answers."""
    prediction: int
    macs: int
    """Multiply-adds that it took, all overhead counted."""
    rank: int = 0
    """How many classes had a larger output than the label's; 0: the prediction is right."""
    loss: float = 0.0
    """Cross-entropy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCost:
    """The clips of one class."""

    clips: int
    accuracy: float
    """Top-1."""
    share: float
    """Mean multiply-adds, of the original's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A converted network on data."""

    clips: tuple[ClipResult, ...]
    dense_macs: int
    """Multiply-adds per clip of the original network."""
    agreement: bool = False
    """The clips had no labels: `accuracy` is agreement with the original network, and `loss` is against its answers."""
    layers: Mapping[str, LayerDecisions] = field(default_factory=dict)
    """What each region computed, by path; empty for a static network."""
    videos: tuple[VideoResult, ...] = ()
    """The same clips by video, answered by the mean of their probabilities; empty where batches have no names."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy per clip."""
        return sum(clip.loss for clip in self.clips) / len(self.clips)

    @property
    def accuracy(self) -> float:
        """Share of the clips whose largest output is their label's (top-1)."""
        return sum(clip.label == clip.prediction for clip in self.clips) / len(self.clips)

    @property
    def top5(self) -> float:
        """Share of the clips whose label is among the five largest outputs."""
        return sum(clip.rank < 5 for clip in self.clips) / len(self.clips)

    @property
    def video_accuracy(self) -> float:
        """Top-1 of the videos; nan where batches have no names."""
        return _mean([video.rank == 0 for video in self.videos])

    @property
    def video_top5(self) -> float:
        """Top-5 of the videos."""
        return _mean([video.rank < 5 for video in self.videos])

    @property
    def macs_per_video(self) -> float:
        """Multiply-adds of the average video, all of its clips and crops together."""
        return _mean([video.macs for video in self.videos])

    def percentile(self, percent: float) -> float:
        """Multiply-adds that this share of the clips, in percent, stays below or at; between two clips linear."""
        return float(np.percentile([clip.macs for clip in self.clips], percent))

    def video_percentile(self, percent: float) -> float:
        """The same of the videos, all of their clips and crops together; nan where batches have no names."""
        return float(np.percentile([video.macs for video in self.videos], percent)) if self.videos else float("nan")

    @property
    def spread(self) -> float:
        """Standard deviation of the multiply-adds per clip, as a share of the original's."""
        return float(np.std([clip.macs for clip in self.clips])) / self.dense_macs

    def by_class(self) -> dict[int, ClassCost]:
        """Accuracy and multiply-adds of the clips of each label: what is dear, and whether that is what is hard."""
        found: dict[int, list[ClipResult]] = {}
        for clip in self.clips:
            found.setdefault(clip.label, []).append(clip)
        return {
            label: ClassCost(
                clips=len(clips),
                accuracy=sum(clip.label == clip.prediction for clip in clips) / len(clips),
                share=sum(clip.macs for clip in clips) / len(clips) / self.dense_macs,
            )
            for label, clips in sorted(found.items())
        }

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
        what = "agreement with the original" if self.agreement else "top-1"
        top5 = f", top-5 {percent(self.top5)}" if max(clip.label for clip in self.clips) >= 10 else ""
        return (
            f"{what} {percent(self.accuracy)}{top5} of {len(self.clips)} clips, loss {self.loss:.3f}, "
            f"{si(self.mean_macs)}MACs per clip, {percent(self.share)} of the original (min {low}, max {high})"
            + self._of_videos()
        )

    def _of_videos(self) -> str:
        if len(self.videos) in (0, len(self.clips)):
            return ""
        spent, views = [video.macs for video in self.videos], {video.views for video in self.videos}
        return (
            f"\n{len(self.videos)} videos, {'up to ' if len(views) > 1 else ''}{max(views)} views each: "
            f"top-1 {percent(self.video_accuracy)}, top-5 {percent(self.video_top5)}, {si(self.macs_per_video)}MACs "
            f"per video (min {si(min(spent))}, max {si(max(spent))})"
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def evaluate(
    model: nn.Module, loader: Iterable[Any], *, original: Callable[[Tensor], Tensor] | None = None
) -> Evaluation:
    """Run a network over a loader, in evaluation mode.

    Args:
        model: a converted network, or any other, which takes the same multiply-adds for every clip. Its mode is
            restored.
        loader: batches as dicts with "video" and "label", or pairs (clips, labels). Where dicts have "video_name",
            clips of one name are also answered together, see `Evaluation.videos` and `make_loader(clips_per_video=…)`.
        original: what to agree with where clips have no labels; from clips (N, C, T, H, W) to scores (N, classes),
            such as the original network itself.

    Returns:
        Per clip the answer and the multiply-adds it took.

    Raises:
        DataError: the loader is empty, only some of its batches have labels, none has and there is no `original`, or
            the network takes boxes.
    """
    pack = packer(model)
    like = next(model.parameters())
    results: list[ClipResult] = []
    dense: dict[tuple[int, ...], int] = {}
    counts, labelled, views = DecisionCounts(), set[bool](), ViewMeans()
    asked = evaluating(original) if isinstance(original, nn.Module) else nullcontext()
    with evaluating(model), asked:
        observed = _observed(model)
        for raw in loader:
            batch = read_batch(raw).to(like)
            if not len(batch.video):
                continue
            labels = _labels(raw, batch, original)
            labelled.add(batch.labels is not None)
            output, decisions = observed(*pack(batch.video))
            check_scores(labels, output)
            shape = tuple(batch.video.shape[1:])
            if shape not in dense:
                dense[shape] = dense_macs(model, pack(batch.video))
            counts.add(decisions)
            macs = clip_macs(decisions, dense[shape]).expand(len(labels))
            views.add(batch.names, labels, output, macs)
            rows = zip(
                batch.names or [""] * len(labels),
                labels.tolist(),
                output.argmax(1).tolist(),
                macs.tolist(),
                (output > output.gather(1, labels[:, None])).sum(1).tolist(),
                F.cross_entropy(output.float(), labels, reduction="none").tolist(),
                strict=True,
            )
            results.extend(
                ClipResult(name=n, label=y, prediction=p, macs=m, rank=r, loss=c) for n, y, p, m, r, c in rows
            )
    if not results:
        raise DataError("evaluate: the loader gave no clips.")
    if len(labelled) > 1:
        raise DataError("evaluate: some batches have labels and some have none; evaluate them apart.")
    return Evaluation(
        clips=tuple(results),
        dense_macs=max(dense.values()),
        agreement=labelled == {False},
        layers=counts.found(_grids(model)),
        videos=views.found(),
    )


def _labels(raw: Any, batch: Batch, original: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The batch's labels, or what `original` answers."""
    if batch.labels is not None:
        return batch.labels
    return read_labelled(raw)[1] if original is None else original(batch.video).argmax(1)


def _grids(model: nn.Module) -> dict[str, ChoiceGrid]:
    found = regions(model) if isinstance(model, fx.GraphModule) else {}
    return {path: region.grid for path, region in found.items()}


def _observed(model: nn.Module) -> Callable[..., tuple[Tensor, dict[str, Decision]]]:
    if isinstance(model, fx.GraphModule) and regions(model):
        return with_decisions(model).eval()
    return lambda *args: (model(*args), {})


def check_scores(labels: Tensor, output: Any) -> None:
    """Refuse an output that is no class scores (N, classes), or labels that these have no place for.

    Raises:
        DataError: saying which.
    """
    if not isinstance(output, Tensor) or output.dim() != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise DataError(f"The network gives {shape}; classification needs one row of class scores per clip.")
    check_labels(labels, output)
