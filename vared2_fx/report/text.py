"""A report as text, at most 100 columns wide."""

import textwrap
from collections.abc import Iterator, Sequence

from vared2_fx.report.document import Alarm, CompressionReport
from vared2_fx.report.numbers import LayerReport, PerClip, Timing
from vared2_fx.report.stages import FEW, stages
from vared2_fx.tables import by, percent, si, text_table

WIDTH = 100
SMALL_SHARE = 0.005
"""Static layers below this share of the multiply-adds are put into one line per reason."""


def render(report: CompressionReport, *, fold: bool | None = None) -> str:
    """Lay out the whole report; see `CompressionReport.to_text`."""
    if fold is None:
        fold = len(report.dynamic) > FEW
    parts = [*_head(report), "", *_dynamic(report, fold), "", *_static(report), "", *_foot(report)]
    return "\n".join(parts)


def _head(report: CompressionReport) -> Iterator[str]:
    totals = report.totals
    shapes = ", ".join(by(item.shape) for item in report.inputs[:3]) + (", …" if len(report.inputs) > 3 else "")
    yield f"{report.network}: {len(report.dynamic)} dynamic layers, {_clips(totals.num_clips)} of {shapes}"
    for note in (*(f"interrupted; missing: {text}" for text in report.missing), *report.notes):
        yield from wrap(f"note: {note}")
    yield from _failures(report)
    computed, dense = totals.computed_macs, totals.dense_macs
    rows = [
        ("multiply-adds per clip", si(dense.mean), si(computed.mean), _change(computed.mean / max(1.0, dense.mean))),
        ("  of it rebuilding frames, channels", "", si(totals.cheap_macs.mean), _of(totals.cheap_macs, computed)),
        ("  of it gates", "", si(totals.gate_macs.mean), _of(totals.gate_macs, computed)),
        ("  cheapest clip", si(dense.min), si(computed.min), ""),
        ("  median clip", si(dense.p50), si(computed.p50), f"95 % of the clips: at most {si(computed.p95)}"),
        ("  dearest clip", si(dense.max), si(computed.max), ""),
        ("FLOPs per clip (2 × multiply-adds)", si(2 * dense.mean), si(report.flops), ""),
        ("parameters", si(totals.params), si(totals.params + totals.params_added), f"+{si(totals.params_added)}"),
    ]
    if totals.timing is not None:
        rows.append(_network_time(totals.timing, totals.timed_computed_share))
    if totals.top1 is not None:
        rows.append(("top-1", "", percent(totals.top1), f"of {totals.num_labelled} labelled"))
    if totals.drift is not None:
        about = f"distance from the full output, {_clips(totals.num_drift_clips)}"
        rows.append(("output drift", "", percent(totals.drift), about))
    yield text_table(("", ">original", ">dynamic", "change"), rows, width=WIDTH)
    if totals.timing is not None and totals.timed_computed_share is not None:
        yield from wrap(_about_time(report))
    yield from _alarms(report.alarms)


def _network_time(timing: Timing, ideal: float | None) -> tuple[str, str, str, str]:
    change = _change(timing.ratio) + ("" if ideal is None else f"; ideal {percent(ideal)}")
    return "time per clip, batch 1", f"{timing.dense.ms:.1f} ms", f"{timing.dynamic.ms:.1f} ms", change


def _about_time(report: CompressionReport) -> str:
    totals, place = report.totals, report.environment
    assert totals.timed_computed_share is not None
    return (
        f"Times: median of {totals.num_timing_repeats}, original and dynamic in turns, batch 1, on "
        f"{_clips(totals.num_timed_clips)} picked at random ({percent(totals.timed_computed_share)} of the original's "
        f"multiply-adds). {place.processor}, {place.device}, {place.threads} threads, {place.dtype}, {place.layout}, "
        f"torch {place.torch}."
    )


def _alarms(alarms: Sequence[Alarm]) -> Iterator[str]:
    """A line for each of the whole network; those of layers by kind, as there may be many."""
    by_code: dict[str, list[Alarm]] = {}
    for alarm in alarms:
        if alarm.path:
            by_code.setdefault(alarm.code, []).append(alarm)
        else:
            yield from wrap(f"alarm, {alarm.code.replace('_', ' ')}: {alarm.text}")
    for code, found in by_code.items():
        first = f"{found[0].path} {found[0].text}"
        others = f" ({len(found)} layers, such as this)" if len(found) > 1 else ""
        yield from wrap(f"alarm, {code.replace('_', ' ')}: {first}{others}")


def _failures(report: CompressionReport) -> Iterator[str]:
    if not report.failures and not report.totals.num_failed_clips:
        return
    yield f"{_clips(report.totals.num_failed_clips)} could not be decoded. Videos that failed: {len(report.failures)}"
    for failure in report.failures[:5]:
        yield from wrap(f"  {failure.reason}")
    if len(report.failures) > 5:
        yield f"  … and {len(report.failures) - 5} more"


def _dynamic(report: CompressionReport, fold: bool) -> Iterator[str]:
    strides = sorted({choice.frame_stride for layer in report.dynamic for choice in layer.choices})
    shares = sorted({choice.channel_share for layer in report.dynamic for choice in layer.choices}, reverse=True)
    timed = any(layer.timing is not None for layer in report.dynamic)
    columns = ["stage" if fold else "dynamic layer", ">MACs", ">cost", ">R " + "/".join(map(str, strides))]
    columns += [">r " + "/".join(f"{share:g}" for share in shares), ">+params"] + [">ms"] * timed
    rows = []
    for name, layers in _groups(report.dynamic, fold):
        dense = sum(layer.dense_macs.total for layer in layers)
        row = [
            name,
            si(sum(layer.dense_macs.mean for layer in layers)),
            f"{100 * sum(layer.computed_macs.total for layer in layers) / max(1, dense):.0f} %",
            _percentages(layers, strides, "frame_stride"),
            _percentages(layers, shares, "channel_share"),
            si(sum(layer.params_added for layer in layers)),
        ]
        rows.append(row + ([_layer_time([layer.timing for layer in layers if layer.timing])] if timed else []))
    yield text_table(columns, rows, width=WIDTH)
    folded = "Folded by stage, sums of its layers; to_text(fold=False), on the command line --unfold, shows each. "
    yield from wrap(
        (folded if fold else "Sizes are of the output. ")
        + "MACs: multiply-adds per clip in the original. cost: those computed, gate and cheap operations included, in "
        "% of them. R, r: % of the clips for which every R-th frame, a share r of the channels was computed."
        + (" ms: original→dynamic, gate included." if timed else "")
    )


def _groups(layers: Sequence[LayerReport], fold: bool) -> Iterator[tuple[str, Sequence[LayerReport]]]:
    if not fold:
        for layer in layers:
            yield f"{layer.path}\n {layer.operation}, {by(layer.out_shape or ())}", [layer]
        return
    for stage in stages(layers):
        yield f"{stage.name}, {len(stage.layers)} layer{'' if len(stage.layers) == 1 else 's'}", stage.layers


def _percentages(layers: Sequence[LayerReport], values: Sequence[float], field: str) -> str:
    """Percent of clips per value, as 62/30/8; `-` where a value is not offered."""
    choices = [choice for layer in layers for choice in layer.choices]
    num_clips = max(1, sum(choice.clips for choice in choices))
    texts = []
    for value in values:
        counts = [choice.clips for choice in choices if getattr(choice, field) == value]
        texts.append(f"{100 * sum(counts) / num_clips:.0f}" if counts else "-")
    return "/".join(texts)


def _layer_time(timings: Sequence[Timing]) -> str:
    if not timings:
        return ""
    dense, dynamic = (sum(getattr(timing, name).ms for timing in timings) for name in ("dense", "dynamic"))
    return f"{dense:.1f}→{dynamic:.1f}"


def _static(report: CompressionReport) -> Iterator[str]:
    static = [layer for layer in report.layers if layer.kind != "dynamic"]
    if not static:
        return
    by_reason: dict[str, list[LayerReport]] = {}
    for layer in static:
        if layer.dense_macs.total < SMALL_SHARE * report.totals.dense_macs.total:
            by_reason.setdefault(_why(layer), []).append(layer)
    small = {layer.path for layers in by_reason.values() if len(layers) > 1 for layer in layers}
    rows = [
        (
            layer.path,
            f"{layer.operation}, {by(layer.out_shape or ())}",
            si(layer.dense_macs.mean),
            _of(layer.dense_macs, report.totals.dense_macs),
            _why(layer),
        )
        for layer in static
        if layer.path not in small
    ]
    for reason, layers in by_reason.items():
        if len(layers) == 1:
            continue
        total = sum(layer.dense_macs.mean for layer in layers)
        share = percent(total / max(1.0, report.totals.dense_macs.mean))
        rows.append((f"{len(layers)} small ones", f"such as {layers[0].path}", si(total), share, reason))
    yield text_table(("static layer", "operation", ">MACs", ">share", "why"), rows, width=WIDTH)
    for code, detail in sorted({layer.reason: layer.detail for layer in static if layer.reason}.items()):
        yield from wrap(f"{code}: {detail}")


def _why(layer: LayerReport) -> str:
    return layer.reason or "no 3D convolution"


def _foot(report: CompressionReport) -> Iterator[str]:
    yield from wrap(
        "Counted: multiply-adds of convolutions and matrix products, cheap operations, gates. Not counted: "
        + ", ".join(f"{item.operation} × {item.calls}" for item in report.not_counted[:12])
        + (", …" if len(report.not_counted) > 12 else "")
        + "."
    )


def _clips(number: int) -> str:
    return f"{number} clip{'' if number == 1 else 's'}"


def _change(ratio: float) -> str:
    return f"{percent(ratio)} of the original"


def _of(part: PerClip, whole: PerClip) -> str:
    return percent(part.total / max(1, whole.total))


def wrap(text: str) -> list[str]:
    """Lines of at most 100 columns; those after the first are indented."""
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent + "  ", break_on_hyphens=False)
