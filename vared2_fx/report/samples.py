"""What is measured on a few clips alone: times, rebuild errors, and drift; one clip at a time.

The dense form of a region is its plain convolution, that of the network all regions in full and no gates.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from vared2_fx.layers import FULL, Choice, DynamicRegion
from vared2_fx.packing import packer
from vared2_fx.passes.leaves import inner_regions
from vared2_fx.passes.shapes import Interpreter
from vared2_fx.policy.fix import specialize
from vared2_fx.report.numbers import Latency, RebuildError, Timing
from vared2_fx.turns import in_turns, wait_for


@dataclass(frozen=True, slots=True)
class Sample:
    """A clip to measure on."""

    clip: Tensor
    """(1, C, T, H, W)."""
    computed_share: float
    """Of the dense multiply-adds."""
    label: int | None


@dataclass(slots=True)
class Repetitions:
    """Repetitions of one thing in milliseconds, a list for each clip."""

    dense: list[list[float]] = field(default_factory=list)
    dynamic: list[list[float]] = field(default_factory=list)

    def timing(self) -> Timing | None:
        """Summed up; None before the first."""
        return Timing(dense=_latency(self.dense), dynamic=_latency(self.dynamic)) if self.dense else None


@dataclass(slots=True)
class Measured:
    """What was measured so far."""

    whole: Repetitions = field(default_factory=Repetitions)
    parts: dict[str, Repetitions] = field(default_factory=dict)
    """By path of the region."""
    errors: dict[str, dict[Choice, list[float]]] = field(default_factory=dict)
    """Rebuild error of each choice but the full one, for each clip."""
    drifts: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    """Computed share of each clip that was timed."""

    def rebuild_errors(self, path: str) -> tuple[RebuildError, ...]:
        """As a report holds them."""
        return tuple(
            RebuildError(
                frame_stride=choice.frame_stride,
                channel_share=choice.channel_share,
                error=fmean(errors),
                clips=len(errors),
            )
            for choice, errors in self.errors.get(path, {}).items()
        )


def measure(dynamic: fx.GraphModule, samples: Iterable[Sample], *, repeats: int, errors: bool, out: Measured) -> None:
    """Measure the network and each of its regions on real inputs.

    Regions are measured where they stand: the network runs once more on each clip, and stops at each region, whose
    input is the one that the layers before have made. So no more than one input is held at a time.

    Args:
        dynamic: a converted network in evaluation mode.
        samples: the clips.
        repeats: repetitions of what is timed for each clip, after one of each form that does not count; 0: no times.
        errors: measure rebuild errors and drift.
        out: takes what is found, clip after clip.
    """
    static, pack = specialize(dynamic, {"*": FULL}), packer(dynamic, boxes=True)
    stops = _Stops(dynamic, repeats, errors, out)
    for sample in samples:
        args = pack(sample.clip)
        if repeats:
            _in_turns(out.whole, partial(static, *args), partial(dynamic, *args), repeats, sample.clip.device)
            out.shares.append(sample.computed_share)
        output = stops.run(*args)
        if errors:
            out.drifts.append(distance(output, static(*args)))


def distance(output: Any, full: Any) -> float:
    """‖output - full‖ / ‖full‖ over all tensors of two outputs of the same form."""
    pairs = [(a, b) for a, b in zip(tree_leaves(output), tree_leaves(full), strict=True) if isinstance(b, Tensor)]
    precise = [(a.double(), b.double()) for a, b in pairs if b.is_floating_point()]
    apart, whole = (
        sum(float(t.square().sum()) for t in ts) for ts in ((a - b for a, b in precise), (b for _, b in precise))
    )
    return float((apart / max(whole, 1e-30)) ** 0.5)


class _Stops(Interpreter):
    """Runs a network, and measures each region on the input that reaches it."""

    def __init__(self, dynamic: fx.GraphModule, repeats: int, errors: bool, out: Measured) -> None:
        super().__init__(dynamic)
        self._dynamic, self._repeats, self._errors, self._out = dynamic, repeats, errors, out

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        region = self.fetch_attr(target)
        if isinstance(region, DynamicRegion):
            self._measure(target, region, args[0])
        hooks = [
            gated.register_forward_pre_hook(lambda m, inputs, path=path: self._measure(path, m.region, inputs[0]))
            for path, gated in inner_regions(self._dynamic, target).items()
        ]
        try:
            return super().call_module(target, args, kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def _measure(self, path: str, region: DynamicRegion, x: Tensor) -> None:
        if self._repeats:
            samples = self._out.parts.setdefault(path, Repetitions())
            _in_turns(samples, lambda: region.body(x), lambda: region(x, region.gate(x)), self._repeats, x.device)
        if self._errors:
            errors, full = self._out.errors.setdefault(path, {}), region.body(x)
            for choice in region.grid.all()[1:]:
                if choice.frame_stride <= region.out_frames(x.shape[2]):
                    errors.setdefault(choice, []).append(_error(region.variant(choice)(x), full))


def _error(part: Tensor, full: Tensor) -> float:
    """As `distance`, for maps, which are too large to be made double."""
    return float((part - full).float().norm() / full.float().norm().clamp_min(1e-20))


def _in_turns(
    samples: Repetitions, dense: Callable[[], Any], dynamic: Callable[[], Any], repeats: int, device: torch.device
) -> None:
    times = in_turns({"dense": dense, "dynamic": dynamic}, rounds=repeats, wait=partial(wait_for, device))
    samples.dense.append(times["dense"])
    samples.dynamic.append(times["dynamic"])


def _latency(clips: list[list[float]]) -> Latency:
    times = [value for repetitions in clips for value in repetitions]
    return Latency(
        ms=fmean(median(repetitions) for repetitions in clips), min_ms=min(times), max_ms=max(times), clips=len(clips)
    )
