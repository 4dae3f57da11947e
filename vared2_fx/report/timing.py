"""Measured time, dense and dynamic in turns; one clip at a time.

The dense form of a region is its plain convolution, that of the network all regions in full and no gates.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, fx

from vared2_fx.layers import FULL, DynamicRegion
from vared2_fx.packing import packer
from vared2_fx.passes.leaves import inner_regions
from vared2_fx.passes.shapes import Interpreter
from vared2_fx.policy.fix import specialize
from vared2_fx.report.numbers import Latency, Timing
from vared2_fx.turns import in_turns, wait_for


@dataclass(slots=True)
class Samples:
    """Repetitions of one thing in milliseconds, a list for each clip."""

    dense: list[list[float]] = field(default_factory=list)
    dynamic: list[list[float]] = field(default_factory=list)

    def timing(self) -> Timing:
        """Summed up."""
        return Timing(dense=_latency(self.dense), dynamic=_latency(self.dynamic))


def measure(dynamic: fx.GraphModule, clips: Iterable[Tensor], *, repeats: int) -> tuple[Timing, dict[str, Timing]]:
    """Time the network and each of its regions on real inputs.

    Regions are timed where they stand: the network runs once more on each clip, and stops at each region, whose
    input is the one that the layers before have made. So no more than one input is held at a time.

    Args:
        dynamic: a converted network in evaluation mode.
        clips: (1, C, T, H, W) each.
        repeats: repetitions for each clip, after one of each form that does not count.

    Returns:
        The whole network's, and each region's by path.
    """
    static, whole = specialize(dynamic, {"*": FULL}), Samples()
    stops, pack = _Stops(dynamic, repeats), packer(dynamic, boxes=True)
    for clip in clips:
        args = pack(clip)
        _in_turns(whole, partial(static, *args), partial(dynamic, *args), repeats, clip.device)
        stops.run(*args)
    return whole.timing(), {path: samples.timing() for path, samples in stops.samples.items()}


class _Stops(Interpreter):
    """Runs a network, and times each region on the input that reaches it."""

    def __init__(self, dynamic: fx.GraphModule, repeats: int) -> None:
        super().__init__(dynamic)
        self._dynamic, self._repeats, self.samples = dynamic, repeats, dict[str, Samples]()

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        region = self.fetch_attr(target)
        if isinstance(region, DynamicRegion):
            self._time(target, region, args[0])
        hooks = [
            gated.register_forward_pre_hook(lambda m, inputs, path=path: self._time(path, m.region, inputs[0]))
            for path, gated in inner_regions(self._dynamic, target).items()
        ]
        try:
            return super().call_module(target, args, kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def _time(self, path: str, region: DynamicRegion, x: Tensor) -> None:
        samples = self.samples.setdefault(path, Samples())
        _in_turns(samples, lambda: region.body(x), lambda: region(x, region.gate(x)), self._repeats, x.device)


def _in_turns(
    samples: Samples, dense: Callable[[], Any], dynamic: Callable[[], Any], repeats: int, device: torch.device
) -> None:
    times = in_turns({"dense": dense, "dynamic": dynamic}, rounds=repeats, wait=partial(wait_for, device))
    samples.dense.append(times["dense"])
    samples.dynamic.append(times["dynamic"])


def _latency(clips: list[list[float]]) -> Latency:
    times = [value for repetitions in clips for value in repetitions]
    return Latency(ms=fmean(median(repetitions) for repetitions in clips), min_ms=min(times), max_ms=max(times))
