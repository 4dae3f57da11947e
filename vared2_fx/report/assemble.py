"""From what was counted and measured to a report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import fx

from vared2_fx.convert import Conversion
from vared2_fx.layers import DynamicConv, DynamicRegion
from vared2_fx.passes.rewrite import regions
from vared2_fx.report.collect import Collected, Costs, LayerCounts
from vared2_fx.report.document import (
    CONVENTION,
    CompressionReport,
    Failure,
    InputShape,
    OperationCount,
    Totals,
)
from vared2_fx.report.entropy import EntropyWatch
from vared2_fx.report.environment import environment
from vared2_fx.report.examples import Extremes
from vared2_fx.report.numbers import ChoiceCount, LayerReport, PerClip
from vared2_fx.report.profile import Operation, added_bytes, added_params
from vared2_fx.report.samples import Measured, Repetitions
from vared2_fx.report.sensitivity import Sensitivities


@dataclass(frozen=True, slots=True)
class Found:
    """All that a report is made from."""

    counted: Collected
    measured: Measured
    entropy: EntropyWatch
    sensitivities: Sensitivities
    repeats: int


def assemble(
    dynamic: fx.GraphModule,
    made: Conversion,
    found: Found,
    examples: Extremes,
    classes: tuple[str, ...],
    notes: tuple[str, ...],
    missing: tuple[str, ...],
) -> CompressionReport:
    """The report, without its alarms."""
    counted = found.counted
    ((shape, _), *_) = counted.shapes.most_common(1)
    return CompressionReport(
        network=str(made.source["name"]) if made.source else made.plan.network,
        granularity=made.config.granularity,
        notes=notes,
        missing=missing,
        alarms=(),
        convention=CONVENTION,
        not_counted=tuple(
            OperationCount(operation=operation, calls=n)
            for operation, n in counted.profiles[shape].not_counted.most_common()
        ),
        inputs=tuple(InputShape(shape=shape, clips=n) for shape, n in counted.shapes.most_common()),
        layers=tuple(_layers(dynamic, made, found)),
        graph=counted.profiles[shape].graph,
        totals=_totals(dynamic, found),
        classes=classes,
        clips=tuple(counted.clips),
        examples=examples.found(len(counted.clips)),
        failures=tuple(Failure(name=name, reason=reason) for name, reason in counted.failures.items()),
        environment=environment(dynamic),
    )


def _layers(dynamic: fx.GraphModule, made: Conversion, found: Found) -> Iterable[LayerReport]:
    """Every operation that ran at any clip shape, and every region that ran at none."""
    entropies, sensitivities = found.entropy.found(), found.sensitivities.found()
    about = _About(dynamic, made)
    for operation in _operations(found.counted, regions(dynamic)):
        path, region = operation.path, about.regions.get(operation.path)
        counts = found.counted.layers.get(path, LayerCounts())
        yield LayerReport(
            path=path,
            in_shape=operation.in_shape,
            out_shape=operation.out_shape,
            **about.of(operation),
            **_per_clip(counts.cost),
            **_of_region(region, counts),
            gate_entropy=entropies.get(path),
            params=operation.params,
            timing=found.measured.parts.get(path, Repetitions()).timing(),
            rebuild_errors=found.measured.rebuild_errors(path),
            sensitivity=sensitivities.get(path),
        )


def _operations(counted: Collected, found: dict[str, DynamicRegion]) -> Iterable[Operation]:
    """Those of the most frequent clip shape first, as shapes in the report are that one's."""
    operations: dict[str, Operation] = {}
    for shape, _ in counted.shapes.most_common():
        for operation in counted.profiles[shape].operations:
            operations.setdefault(operation.path, operation)
    for path, region in found.items():
        params = sum(parameter.numel() for parameter in region.body.parameters())
        operations.setdefault(path, Operation(path, type(region.body).__name__, None, None, 0, params))
    return operations.values()


class _About:
    """What is known of an operation from the conversion."""

    def __init__(self, dynamic: fx.GraphModule, made: Conversion) -> None:
        self.regions = regions(dynamic)
        self._entries = {entry.path: entry for entry in made.plan.entries}
        self._runs = {region.path: region for region in made.plan.regions if region.nodes}
        self._members = {region.path: region.convs for region in made.plan.regions}

    def of(self, operation: Operation) -> dict[str, Any]:
        """Name, kind and reason."""
        path = operation.path
        entry, run, region = self._entries.get(path), self._runs.get(path), self.regions.get(path)
        members = self._members.get(path, ()) if region is not None else ()
        facts = {"source_class": operation.kind, "members": members, "reason": "", "detail": ""}
        if run is not None and region is not None:
            classes = _classes(region, run.convs)
            return facts | {"operation": run.operation, "kind": "dynamic", "source_class": classes}
        if entry is None:
            return facts | {"operation": operation.kind, "kind": "other"}
        if region is not None:
            name = type(region.body).__name__ if isinstance(region, DynamicConv) else operation.kind
            return facts | {"operation": entry.operation, "kind": "dynamic", "source_class": name}
        static = {"operation": entry.operation, "kind": "static", "reason": entry.reason, "detail": entry.detail}
        return facts | static


def _classes(region: DynamicRegion, convs: Sequence[str]) -> str:
    """Classes of the convolutions in a run of layers, each once."""
    names = {name: type(module).__name__ for name, module in region.body.named_modules()}
    found = [kind for name, kind in names.items() if any(path.endswith(name) for path in convs) and name]
    return ", ".join(dict.fromkeys(found))


def _of_region(region: DynamicRegion | None, counts: LayerCounts) -> dict[str, Any]:
    if region is None:
        return {"choices": (), "params_added": 0, "bytes_added": 0}
    choices = tuple(
        ChoiceCount(frame_stride=c.frame_stride, channel_share=c.channel_share, clips=counts.choices[c])
        for c in region.grid.all()
    )
    return {"choices": choices, "params_added": added_params(region), "bytes_added": added_bytes(region)}


def _per_clip(cost: Costs) -> dict[str, Any]:
    return {
        "dense_macs": PerClip.of(cost.dense),
        "computed_macs": PerClip.of(cost.computed),
        "cheap_macs": PerClip.of(cost.cheap),
        "gate_macs": PerClip.of(cost.gate),
    }


def _totals(dynamic: fx.GraphModule, found: Found) -> Totals:
    counted, measured = found.counted, found.measured
    labelled = [clip for clip in counted.clips if clip.label is not None and clip.prediction is not None]
    added = sum(added_params(region) for region in regions(dynamic).values())
    sums = _per_clip(counted.cost)
    timing = measured.whole.timing()
    return Totals(
        **sums,
        saved_share=1 - sums["computed_macs"].total / max(1, sums["dense_macs"].total),
        params=sum(parameter.numel() for parameter in dynamic.parameters()) - added,
        params_added=added,
        bytes_added=sum(added_bytes(region) for region in regions(dynamic).values()),
        num_clips=len(counted.clips),
        num_failed_clips=counted.num_failed,
        num_labelled=len(labelled),
        top1=sum(clip.label == clip.prediction for clip in labelled) / len(labelled) if labelled else None,
        timing=timing,
        num_timed_clips=len(measured.shares),
        num_timing_repeats=found.repeats if timing else 0,
        timed_computed_share=fmean(measured.shares) if measured.shares else None,
        drift=fmean(measured.drifts) if measured.drifts else None,
        num_drift_clips=len(measured.drifts),
    )
