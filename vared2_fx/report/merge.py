"""One report from reports of parts of the data."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from vared2_fx.errors import ReportError
from vared2_fx.report.alarms import alarms
from vared2_fx.report.document import CompressionReport, Example, Failure, InputShape, Totals
from vared2_fx.report.examples import EACH, without_repeats
from vared2_fx.report.numbers import (
    GateEntropy,
    Latency,
    LayerReport,
    PerClip,
    RebuildError,
    Sensitivity,
    Timing,
)


def merge(reports: Iterable[CompressionReport]) -> CompressionReport:
    """Make one report from several on parts of the data, such as those of several machines.

    What is counted (multiply-adds, choices, clips, accuracy) is as if one report had seen all the clips, to the last
    digit. What is measured on samples (times, rebuild errors, drift, sensitivity) is the mean over the samples of all.

    Args:
        reports: of the same network, in the order of the data.

    Raises:
        ReportError: there is none, or they are not of the same network.
    """
    parts = tuple(reports)
    if not parts:
        raise ReportError("merge: no report was given.")
    _check(parts)
    counts: Counter[tuple[int, ...]] = Counter()
    for part in parts:
        counts.update({item.shape: item.clips for item in part.inputs})
    ((shape, _), *_) = counts.most_common(1)
    first = next(part for part in parts if part.inputs[0].shape == shape)
    places = list(dict.fromkeys(part.environment for part in parts))
    moved = ("times are from several machines or settings.",) if len(places) > 1 else ()
    merged = CompressionReport(
        network=first.network,
        granularity=first.granularity,
        notes=tuple(dict.fromkeys((*(note for part in parts for note in part.notes), *moved))),
        missing=tuple(text for part in parts for text in part.missing),
        alarms=(),
        convention=first.convention,
        not_counted=first.not_counted,
        inputs=tuple(InputShape(shape=shape, clips=n) for shape, n in counts.most_common()),
        layers=_layers(first, parts),
        graph=first.graph,
        totals=_totals(parts),
        classes=first.classes,
        clips=tuple(clip for part in parts for clip in part.clips),
        examples=_examples(parts),
        failures=tuple(
            Failure(name=name, reason=reason)
            for name, reason in {f.name: f.reason for part in parts for f in part.failures}.items()
        ),
        environment=places[0],
    )
    return replace(merged, alarms=alarms(merged))


def _check(parts: Sequence[CompressionReport]) -> None:
    first = parts[0]
    for number, part in enumerate(parts[1:], start=2):
        for what in ("network", "granularity", "classes"):
            if getattr(part, what) != getattr(first, what):
                raise ReportError(
                    f"merge: report {number} has another {what} than the first: {getattr(part, what)!r}, "
                    f"{getattr(first, what)!r}."
                )
        ours, theirs = ({layer.path: _offered(layer) for layer in r.dynamic} for r in (first, part))
        if ours != theirs:
            paths = [path for path in {**ours, **theirs} if ours.get(path) != theirs.get(path)]
            raise ReportError(f"merge: report {number} is of another conversion: {paths[0]} differs from the first's.")


def _offered(layer: LayerReport) -> tuple[tuple[int, float], ...]:
    return tuple((choice.frame_stride, choice.channel_share) for choice in layer.choices)


def _layers(first: CompressionReport, parts: Sequence[CompressionReport]) -> tuple[LayerReport, ...]:
    rows: dict[str, list[LayerReport]] = {layer.path: [] for part in (first, *parts) for layer in part.layers}
    for part in parts:
        for layer in part.layers:
            rows[layer.path].append(layer)
    by_path = {layer.path: layer for layer in first.layers}
    return tuple(_layer(by_path.get(path, layers[0]), layers) for path, layers in rows.items())


def _layer(first: LayerReport, layers: Sequence[LayerReport]) -> LayerReport:
    choices: Counter[tuple[int, float]] = Counter()
    for layer in layers:
        choices.update({(c.frame_stride, c.channel_share): c.clips for c in layer.choices})
    return replace(
        first,
        **_sums(layers),
        choices=tuple(
            replace(choice, clips=choices[choice.frame_stride, choice.channel_share]) for choice in first.choices
        ),
        gate_entropy=_entropy([layer.gate_entropy for layer in layers if layer.gate_entropy is not None]),
        timing=_timing([layer.timing for layer in layers if layer.timing is not None]),
        rebuild_errors=_rebuild_errors(layers),
        sensitivity=_sensitivity([layer.sensitivity for layer in layers if layer.sensitivity is not None]),
    )


_MACS = ("dense_macs", "computed_macs", "cheap_macs", "gate_macs")


def _sums(parts: Sequence[LayerReport] | Sequence[Totals]) -> dict[str, Any]:
    return {name: _per_clip(getattr(part, name) for part in parts) for name in _MACS}


def _per_clip(parts: Iterable[PerClip]) -> PerClip:
    counts: Counter[int] = Counter()
    for part in parts:
        counts.update(part.counts)
    return PerClip.of(counts)


def _mean(parts: Sequence[Any], value: Callable[[Any], float | None]) -> Any:
    """Mean over the clips of all parts that have a value; None where none has."""
    known = [(found, part.clips) for part in parts if (found := value(part)) is not None]
    return sum(v * n for v, n in known) / sum(n for _, n in known) if known else None


def _entropy(parts: Sequence[GateEntropy]) -> GateEntropy | None:
    if not parts:
        return None
    return GateEntropy(bits=round(_mean(parts, lambda part: part.bits), 6), clips=sum(part.clips for part in parts))


def _timing(parts: Sequence[Timing]) -> Timing | None:
    if not parts:
        return None
    return Timing(dense=_latency([part.dense for part in parts]), dynamic=_latency([part.dynamic for part in parts]))


def _latency(parts: Sequence[Latency]) -> Latency:
    return Latency(
        ms=_mean(parts, lambda part: part.ms),
        min_ms=min(part.min_ms for part in parts),
        max_ms=max(part.max_ms for part in parts),
        clips=sum(part.clips for part in parts),
    )


def _rebuild_errors(layers: Sequence[LayerReport]) -> tuple[RebuildError, ...]:
    by_choice: dict[tuple[int, float], list[RebuildError]] = {}
    for layer in layers:
        for error in layer.rebuild_errors:
            by_choice.setdefault((error.frame_stride, error.channel_share), []).append(error)
    return tuple(
        replace(errors[0], error=_mean(errors, lambda e: e.error), clips=sum(e.clips for e in errors))
        for errors in by_choice.values()
    )


def _sensitivity(parts: Sequence[Sensitivity]) -> Sensitivity | None:
    if not parts:
        return None
    return replace(
        parts[0],
        drift=_mean(parts, lambda part: part.drift),
        changed_answers=_mean(parts, lambda part: part.changed_answers),
        accuracy_change=_mean(parts, lambda part: part.accuracy_change),
        clips=sum(part.clips for part in parts),
    )


def _totals(parts: Sequence[CompressionReport]) -> Totals:
    all_totals = [part.totals for part in parts]
    sums = _sums(all_totals)
    labelled = sum(totals.num_labelled for totals in all_totals)
    right = sum(
        c.label == c.prediction for p in parts for c in p.clips if c.label is not None and c.prediction is not None
    )
    timed = sum(totals.num_timed_clips for totals in all_totals)
    drifted = sum(totals.num_drift_clips for totals in all_totals)
    return replace(
        all_totals[0],
        **sums,
        saved_share=1 - sums["computed_macs"].total / max(1, sums["dense_macs"].total),
        num_clips=sum(totals.num_clips for totals in all_totals),
        num_failed_clips=sum(totals.num_failed_clips for totals in all_totals),
        num_labelled=labelled,
        top1=right / labelled if labelled else None,
        timing=_timing([totals.timing for totals in all_totals if totals.timing is not None]),
        num_timed_clips=timed,
        num_timing_repeats=max(totals.num_timing_repeats for totals in all_totals),
        timed_computed_share=_weighted([(t.timed_computed_share, t.num_timed_clips) for t in all_totals]),
        drift=_weighted([(t.drift, t.num_drift_clips) for t in all_totals]),
        num_drift_clips=drifted,
    )


def _weighted(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, count) for value, count in pairs if value is not None]
    return sum(value * count for value, count in known) / sum(count for _, count in known) if known else None


def _examples(parts: Sequence[CompressionReport]) -> tuple[Example, ...]:
    """The extremes among those of the parts."""
    pool: list[tuple[int, Example]] = []
    before = 0
    for part in parts:
        pool += [(part.clips[e.clip].macs, replace(e, clip=before + e.clip)) for e in part.examples]
        before += len(part.clips)
    cheap = sorted(pool, key=lambda item: (item[0], item[1].clip))
    dear = sorted(pool, key=lambda item: (-item[0], item[1].clip))
    return without_repeats(
        [replace(example, extreme="cheap") for _, example in cheap[:EACH]],
        [replace(example, extreme="dear") for _, example in dear[:EACH]],
        before,
    )
