"""`report`: what a converted network computes on data, layer by layer."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx

from vared2_fx.batches import batches_of
from vared2_fx.convert import Conversion, conversion
from vared2_fx.errors import ReportError
from vared2_fx.modes import evaluating
from vared2_fx.packing import takes_boxes
from vared2_fx.passes.plan import PlanEntry
from vared2_fx.passes.rewrite import regions
from vared2_fx.progress import track
from vared2_fx.report.collect import Collected, Collector, Costs, LayerCounts
from vared2_fx.report.environment import environment
from vared2_fx.report.numbers import (
    CONVENTION,
    ChoiceCount,
    CompressionReport,
    Failure,
    InputShape,
    LayerReport,
    OperationCount,
    Timing,
    Totals,
)
from vared2_fx.report.profile import Operation, added_params
from vared2_fx.report.timing import measure


def report(
    dynamic: fx.GraphModule,
    clips: Iterable[Any] | Tensor,
    *,
    labels: bool = True,
    timing: bool = True,
    timing_clips: int = 3,
    timing_repeats: int = 3,
    notes: Sequence[str] = (),
    progress: bool = True,
) -> CompressionReport:
    """Run a converted network over data and count what it computes, layer by layer.

    The network runs once over the data, in evaluation mode, without gradients; its own modes come back afterwards.

    Args:
        dynamic: what `convert` or `load` returned.
        clips: a loader (batches as dicts with "video" and, if known, "label" and "video_name"; pairs (clips, labels);
            or tensors), or one tensor of clips (N, C, T, H, W). Moved to the network's device and dtype, and packed
            as the zoo says for its networks; those that take boxes get one for each clip, the whole frame.
        labels: use the labels that batches carry; False for those of other classes than the network's.
        timing: measure times as well: one clip at a time (batch 1), each region and the whole network, the original
            form and the dynamic one in turns. Takes about (timing_repeats + 2) · timing_clips · 4 forward passes.
        timing_clips: clips to time on, picked at random from the data; all, if there are fewer.
        timing_repeats: repetitions for each of them, of which the median counts.
        notes: sentences to carry in the report.
        progress: show a bar on stderr when it takes more than two seconds and stderr is a terminal.

    Returns:
        Plain numbers; `print` them, or take `to_json()`, `to_csv()`.

    Raises:
        ConvertError: `dynamic` is not a converted network, or does not run on such clips.
        DataError: it takes lists or dicts, and is not the zoo's.
        ReportError: there is no clip, a batch is not understood, or the output has NaN or infinite values.
    """
    made = conversion(dynamic)
    if timing and (timing_clips < 1 or timing_repeats < 1):
        raise ReportError(
            f"report: timing_clips={timing_clips}, timing_repeats={timing_repeats}; at least 1 each, or timing=False."
        )
    if takes_boxes(dynamic):
        labels, notes = False, (*notes, "each clip has one box, the whole frame; the answers are that box's.")
    with evaluating(dynamic):
        collector = Collector(dynamic, num_samples=timing_clips if timing else 0, use_labels=labels)
        failed_before = getattr(getattr(clips, "log", None), "num_failed", 0)
        for batch in track(batches_of(clips), "Counting multiply-adds", enabled=progress):
            collector.add(batch)
        found = collector.out
        _add_failures(found, clips, failed_before)
        if not found.clips:
            raise ReportError(_nothing(found))
        samples = track([clip for clip, _ in found.samples], "Measuring times", enabled=progress)
        whole, parts = measure(dynamic, samples, repeats=timing_repeats) if timing else (None, {})
    return CompressionReport(
        network=str(made.source["name"]) if made.source else made.plan.network,
        notes=tuple(notes),
        convention=CONVENTION,
        not_counted=_not_counted(found),
        inputs=tuple(InputShape(shape=shape, clips=n) for shape, n in found.shapes.most_common()),
        layers=_layers(dynamic, made, found, parts),
        totals=_totals(dynamic, found, whole, timing_repeats),
        clips=tuple(found.clips),
        failures=tuple(Failure(name=name, reason=reason) for name, reason in found.failures.items()),
        environment=environment(dynamic),
    )


def _add_failures(found: Collected, loader: Any, failed_before: int) -> None:
    """Take a `VideoLoader`'s own account, which knows of batches that came out empty, and of unreadable videos."""
    log: Any = getattr(loader, "log", None)
    if hasattr(log, "num_failed"):  # a tensor has a `log` too
        found.num_failed = log.num_failed - failed_before
        found.failures |= log.failed
    found.failures |= dict(getattr(loader, "unreadable", ()))


def _nothing(found: Collected) -> str:
    text = "report: the data gave no clip."
    if found.failures:
        text += f" {len(found.failures)} videos failed, the first with: {next(iter(found.failures.values()))}"
    return text


def _layers(
    dynamic: fx.GraphModule, made: Conversion, found: Collected, times: dict[str, Timing]
) -> tuple[LayerReport, ...]:
    entries = {entry.path: entry for entry in made.plan.entries}
    runs = {region.path: region.operation for region in made.plan.regions if region.nodes}
    added = {path: added_params(region) for path, region in regions(dynamic).items()}
    grids = {path: region.grid.all() for path, region in regions(dynamic).items()}
    ((shape, _),) = found.shapes.most_common(1)
    layers = []
    for operation in found.profiles[shape].operations:
        path, counts = operation.path, found.layers[operation.path]
        layers.append(
            LayerReport(
                path=path,
                in_shape=operation.in_shape,
                out_shape=operation.out_shape,
                **_about(operation, entries.get(path), path in added, runs.get(path)),
                **_per_clip(counts.cost),
                choices=_histogram(grids.get(path, ()), counts),
                params=operation.params,
                params_added=added.get(path, 0),
                timing=times.get(path),
            )
        )
    return tuple(layers)


def _about(operation: Operation, entry: PlanEntry | None, dynamic: bool, run: str | None) -> dict[str, Any]:
    if run is not None:
        return {"operation": run, "kind": "dynamic", "reason": "", "detail": ""}
    if entry is None:
        return {"operation": operation.kind, "kind": "other", "reason": "", "detail": ""}
    reason, detail = ("", "") if dynamic else (entry.reason, entry.detail)
    kind = "dynamic" if dynamic else "static"
    return {"operation": entry.operation, "kind": kind, "reason": reason, "detail": detail}


def _per_clip(cost: Costs) -> dict[str, Any]:
    return {
        "dense_macs": cost.dense.per_clip(),
        "computed_macs": cost.computed.per_clip(),
        "cheap_macs": cost.cheap.per_clip(),
        "gate_macs": cost.gate.per_clip(),
    }


def _histogram(choices: Sequence[Any], counts: LayerCounts) -> tuple[ChoiceCount, ...]:
    return tuple(
        ChoiceCount(frame_stride=c.frame_stride, channel_share=c.channel_share, clips=counts.choices[c])
        for c in choices
    )


def _totals(dynamic: fx.GraphModule, found: Collected, timing: Timing | None, repeats: int) -> Totals:
    labelled = [clip for clip in found.clips if clip.label is not None and clip.prediction is not None]
    added = sum(added_params(region) for region in regions(dynamic).values())
    timed = [share for _, share in found.samples]
    return Totals(
        **_per_clip(found.cost),
        saved_share=1 - found.cost.computed.total / max(1, found.cost.dense.total),
        params=sum(parameter.numel() for parameter in dynamic.parameters()) - added,
        params_added=added,
        num_clips=len(found.clips),
        num_failed_clips=found.num_failed,
        num_labelled=len(labelled),
        top1=sum(clip.label == clip.prediction for clip in labelled) / len(labelled) if labelled else None,
        timing=timing,
        num_timed_clips=len(timed) if timing else 0,
        num_timing_repeats=repeats if timing else 0,
        timed_computed_share=sum(timed) / len(timed) if timing else None,
    )


def _not_counted(found: Collected) -> tuple[OperationCount, ...]:
    ((shape, _),) = found.shapes.most_common(1)
    calls = found.profiles[shape].not_counted.most_common()
    return tuple(OperationCount(operation=operation, calls=n) for operation, n in calls)
