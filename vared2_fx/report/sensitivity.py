"""What each layer's cheapest choice costs alone."""

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor, fx

from vared2_fx.layers import FULL, Choice, fixed_decisions
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions
from vared2_fx.report.numbers import Sensitivity
from vared2_fx.report.samples import Sample, distance


@dataclass(slots=True)
class _Effect:
    """Of one layer's cheapest choice, clip after clip."""

    choice: Choice
    drifts: list[float] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)
    gains: list[int] = field(default_factory=list)
    """1: the answer became right; -1: it became wrong."""


class Sensitivities:
    """Runs sampled clips in full, and with each layer alone at its cheapest choice."""

    def __init__(self, dynamic: fx.GraphModule) -> None:
        """Measure on `dynamic`, in evaluation mode."""
        self._dynamic, self._regions, self._pack = dynamic, regions(dynamic), packer(dynamic, boxes=True)
        self._effects: dict[str, _Effect] = {}
        self._reference: tuple[Sample, Any] | None = None

    def add(self, sample: Sample, path: str, choice: Choice) -> None:
        """Run one clip with the region at `path` alone at `choice`; in full before, if the last one was another."""
        args = self._pack(sample.clip)
        full = {region.gate: region.grid.index(FULL) for region in self._regions.values()}
        with fixed_decisions(full):
            if self._reference is None or self._reference[0] is not sample:
                self._reference = sample, self._dynamic(*args)
            region, reference = self._regions[path], self._reference[1]
            with fixed_decisions({region.gate: region.grid.index(choice)}):
                output = self._dynamic(*args)
        effect = self._effects.setdefault(path, _Effect(choice))
        effect.drifts.append(distance(output, reference))
        if _answer(output) is not None:
            effect.changed.append(_answer(output) != _answer(reference))
            if sample.label is not None:
                effect.gains.append((_answer(output) == sample.label) - (_answer(reference) == sample.label))

    def found(self) -> dict[str, Sensitivity]:
        """Means over the clips so far, by path."""
        return {
            path: Sensitivity(
                frame_stride=effect.choice.frame_stride,
                channel_share=effect.choice.channel_share,
                drift=fmean(effect.drifts),
                changed_answers=fmean(effect.changed) if effect.changed else None,
                accuracy_change=fmean(effect.gains) if effect.gains else None,
                clips=len(effect.drifts),
            )
            for path, effect in self._effects.items()
        }


def _answer(output: Any) -> int | None:
    """The largest entry of the scores (1, classes) of one clip."""
    return int(output.argmax(1)) if isinstance(output, Tensor) and output.dim() == 2 and len(output) == 1 else None
