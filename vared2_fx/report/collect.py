"""Running a converted network over data, and counting what it computed.

N clips, C channels, T frames, H height, W width; L regions.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from vared2_fx.batches import Batch, check_labels, read_batch
from vared2_fx.errors import ReportError
from vared2_fx.layers import Choice, Decision
from vared2_fx.packing import packer
from vared2_fx.passes.leaves import called_path
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.statistics import computed_choices, computed_macs
from vared2_fx.report.document import ClipChoice, ClipReport
from vared2_fx.report.examples import Extremes
from vared2_fx.report.profile import Profile, profile
from vared2_fx.report.samples import Sample


@dataclass(slots=True)
class ClipCost:
    """Multiply-adds of one clip."""

    dense: int = 0
    computed: int = 0
    cheap: int = 0
    gate: int = 0

    def add(self, other: "ClipCost") -> None:
        """Add those of another operation."""
        self.dense += other.dense
        self.computed += other.computed
        self.cheap += other.cheap
        self.gate += other.gate


@dataclass(slots=True)
class Costs:
    """Multiply-adds over clips: how many clips had each value."""

    dense: Counter[int] = field(default_factory=Counter)
    computed: Counter[int] = field(default_factory=Counter)
    cheap: Counter[int] = field(default_factory=Counter)
    gate: Counter[int] = field(default_factory=Counter)

    def add(self, clip: ClipCost) -> None:
        """Count one clip."""
        self.dense[clip.dense] += 1
        self.computed[clip.computed] += 1
        self.cheap[clip.cheap] += 1
        self.gate[clip.gate] += 1


@dataclass(slots=True)
class LayerCounts:
    """What is counted for one operation."""

    cost: Costs = field(default_factory=Costs)
    choices: Counter[Choice] = field(default_factory=Counter)


@dataclass(slots=True)
class Collected:
    """Everything counted over the data so far."""

    layers: dict[str, LayerCounts] = field(default_factory=dict)
    cost: Costs = field(default_factory=Costs)
    """Of the whole network."""
    profiles: dict[tuple[int, ...], Profile] = field(default_factory=dict)
    """By clip shape."""
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    clips: list[ClipReport] = field(default_factory=list)
    num_failed: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    """Clips picked at random, each as likely, to measure on."""


class Collector:
    """Counts batch after batch; of what the gates decided only counts are kept."""

    def __init__(
        self, dynamic: fx.GraphModule, *, num_samples: int, use_labels: bool = True, thumbnails: bool = False
    ) -> None:
        """Count for `dynamic`, and pick `num_samples` clips to measure on."""
        self._use_labels = use_labels
        self.examples = Extremes(pictures=thumbnails)
        self.dynamic, self.observed, self.pack = dynamic, with_decisions(dynamic), packer(dynamic, boxes=True)
        self.grids = {path: region.grid for path, region in regions(dynamic).items()}
        self.like = next(dynamic.parameters())
        self.out = Collected()
        self._num_samples, self._random = num_samples, random.Random(0)

    def add(self, raw: Any) -> None:
        """Run one batch.

        Raises:
            ReportError: it is no batch, or the network's output has NaN or infinite values.
            ConvertError: the network does not run on clips of this shape.
        """
        batch = read_batch(raw).to(self.like)
        self.out.num_failed += batch.num_failed
        self.out.failures.update(batch.failures)
        if not len(batch.video):
            return
        video = batch.video
        shape = tuple(video.shape[1:])
        if shape not in self.out.profiles:
            self.out.profiles[shape] = profile(self.dynamic, self.pack(video[:1]))
        output, decisions = self.observed(*self.pack(video))
        _check_finite(output, len(self.out.clips), batch)
        macs = self._count(decisions, self.out.profiles[shape], len(video))
        self.out.shapes[shape] += len(video)
        predictions = output.argmax(1).tolist() if _is_scores(output, len(video)) else None
        labels: list[int] | None = None
        if batch.labels is not None and self._use_labels:
            labels = batch.labels.tolist()
            if predictions is not None:
                check_labels(batch.labels, output)
        self._sample(video, macs, labels, self.out.profiles[shape])
        for i, value in enumerate(macs):
            self.examples.add(len(self.out.clips), value, video[i], partial(self._choices_of, decisions, i))
            clip = ClipReport(
                name=batch.names[i] if batch.names else "",
                label=labels[i] if labels else None,
                prediction=predictions[i] if predictions else None,
                macs=value,
            )
            self.out.clips.append(clip)

    def _count(self, decisions: Mapping[str, Decision], costs: Profile, num_clips: int) -> list[int]:
        """Count every operation; returns the multiply-adds of each clip in the whole network."""
        fetched = _fetch(decisions)
        of_clips = [ClipCost() for _ in range(num_clips)]
        for operation in costs.operations:
            counts = self.out.layers.setdefault(operation.path, LayerCounts())
            grid, cheap_macs = self.grids.get(operation.path), costs.cheap_macs.get(operation.path)
            if cheap_macs is not None and operation.path not in fetched:
                continue  # a region in a branch that this batch did not take
            for n, clip in enumerate(of_clips):
                cost = ClipCost(operation.macs, operation.macs)
                if grid is not None and cheap_macs is not None:
                    spent, index, gate = fetched[operation.path]
                    choice = grid[index[n][0], index[n][1]]
                    counts.choices[choice] += 1
                    cost = ClipCost(operation.macs, spent[n], cheap_macs[choice], gate)
                counts.cost.add(cost)
                clip.add(cost)
        for clip in of_clips:
            self.out.cost.add(clip)
        return [clip.computed for clip in of_clips]

    def _choices_of(self, decisions: Mapping[str, Decision], clip: int) -> tuple[ClipChoice, ...]:
        """What every region computed for one clip of the batch."""
        found: dict[str, Choice] = {}
        for name, decision in decisions.items():
            j, i = computed_choices(Decision(decision.weights[clip : clip + 1], *decision[1:]))[0].tolist()
            found.setdefault(called_path(name), self.grids[called_path(name)][j, i])
        return tuple(
            ClipChoice(path=path, frame_stride=choice.frame_stride, channel_share=choice.channel_share)
            for path, choice in found.items()
        )

    def _sample(self, video: Tensor, macs: Iterable[int], labels: list[int] | None, costs: Profile) -> None:
        """Keep each clip so far with equal probability (reservoir sampling)."""
        dense, samples = sum(operation.macs for operation in costs.operations), self.out.samples
        for n, value in enumerate(macs):
            seen = len(self.out.clips) + n
            place = seen if seen < self._num_samples else self._random.randrange(seen + 1)
            if place < self._num_samples:
                label = labels[n] if labels else None
                samples[place : place + 1] = [Sample(video[n : n + 1].clone(), value / max(1, dense), label)]


def _fetch(decisions: Mapping[str, Decision]) -> dict[str, tuple[list[int], list[list[int]], int]]:
    """Each region's multiply-adds (N,), choices (N, 2) and gate cost, fetched from the device in three pieces.

    Of a region that a leaf called more than once: the sums, and what the first call decided.
    """
    values = list(decisions.values())
    computed = torch.stack([computed_macs(decision) for decision in values])
    choices = torch.stack([computed_choices(decision) for decision in values])
    gates = torch.stack([decision.gate_macs for decision in values])
    rows = zip(computed.tolist(), choices.tolist(), gates.tolist(), strict=True)
    fetched: dict[str, tuple[list[int], list[list[int]], int]] = {}
    for name, (spent, index, gate) in zip(decisions, rows, strict=True):
        path = called_path(name)
        if path in fetched:
            before, index, gate_before = fetched[path]
            spent, gate = [a + b for a, b in zip(before, spent, strict=True)], gate + gate_before
        fetched[path] = spent, index, gate
    return fetched


def _is_scores(output: Any, num_clips: int) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2 and len(output) == num_clips


def _check_finite(output: Any, num_before: int, batch: Batch) -> None:
    if all(bool(torch.isfinite(tensor).all()) for tensor in tree_leaves(output) if isinstance(tensor, Tensor)):
        return
    cause = "the weights of a training that diverged do that"
    for n, clip in enumerate(batch.video):
        if not bool(torch.isfinite(clip).all()):
            name = f", {batch.names[n]}," if batch.names else ""
            cause = f"clip {num_before + n}{name} holds such values itself"
            break
    raise ReportError(f"report: the network's output has NaN or infinite values; {cause}.")
