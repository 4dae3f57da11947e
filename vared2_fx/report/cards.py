"""What the page says of one layer when it is clicked: lists and tables of texts, laid out by the page's script."""

from typing import Any

from vared2_fx.report.document import CompressionReport
from vared2_fx.report.numbers import LayerReport
from vared2_fx.tables import by, percent, si


def cards(report: CompressionReport) -> list[dict[str, Any]]:
    """A card for each layer, in the order of the report: `title`, `facts`, `choices`, `alarms`."""
    alarms: dict[str, list[str]] = {}
    for alarm in report.alarms:
        alarms.setdefault(alarm.path, []).append(f"{alarm.code.replace('_', ' ')}: {alarm.text}")
    dense = max(1, report.totals.dense_macs.total)
    return [
        {
            "title": layer.path,
            "facts": [[name, value] for name, value in _facts(layer, dense) if value],
            "choices": _choices(layer),
            "alarms": alarms.get(layer.path, []),
        }
        for layer in report.layers
    ]


def _facts(layer: LayerReport, dense: int) -> list[tuple[str, str]]:
    computed = layer.computed_macs
    facts = [
        ("operation", layer.operation),
        ("class", layer.source_class),
        ("kind", layer.kind),
        ("why static", f"{layer.reason}: {layer.detail}" if layer.reason else ""),
        ("input → output", f"{by(layer.in_shape or ())} → {by(layer.out_shape or ())}" if layer.out_shape else ""),
        ("convolutions inside", ", ".join(layer.members) if len(layer.members) > 1 else ""),
        ("original", f"{si(layer.dense_macs.mean)}MACs, {percent(layer.dense_macs.total / dense)} of the network"),
        ("parameters", si(layer.params)),
    ]
    if layer.kind != "dynamic":
        return facts
    facts += [
        ("expected", f"{si(computed.mean)}MACs, {percent(layer.computed_share)} of the original"),
        ("min / p50 / p95 / max", " / ".join(si(n) for n in (computed.min, computed.p50, computed.p95, computed.max))),
        ("of it rebuilding", f"{si(layer.cheap_macs.mean)}MACs"),
        ("of it the gate", f"{si(layer.gate_macs.mean)}MACs"),
        ("added", f"{si(layer.params_added)} parameters, {si(layer.bytes_added)}B"),
    ]
    if layer.choice_entropy is not None:
        facts.append(("entropy over clips", f"{layer.choice_entropy:.2f} bits (0: all clips alike)"))
    if layer.gate_entropy is not None:
        facts.append(("gate's entropy", f"{layer.gate_entropy.bits:.2f} bits per clip (0: certain)"))
    if layer.timing is not None:
        for name, time in (("time, original", layer.timing.dense), ("time, dynamic", layer.timing.dynamic)):
            facts.append((name, f"{time.ms:.2f} ms ({time.min_ms:.2f} to {time.max_ms:.2f})"))
    if layer.mean_rebuild_error is not None:
        facts.append(("rebuild error", f"{percent(layer.mean_rebuild_error)} at what was picked"))
    if (alone := layer.sensitivity) is not None:
        facts.append(
            (
                "cheapest alone",
                f"R={alone.frame_stride} r={alone.channel_share:g}: output {percent(alone.drift)} away"
                + ("" if alone.changed_answers is None else f", {percent(alone.changed_answers)} other answers")
                + ("" if alone.accuracy_change is None else f", top-1 {100 * alone.accuracy_change:+.1f} points")
                + f" ({alone.clips} clips)",
            )
        )
    return facts


def _choices(layer: LayerReport) -> list[list[str]]:
    """Rows of choice, clips, their share, rebuild error."""
    total = max(1, sum(choice.clips for choice in layer.choices))
    errors = {(e.frame_stride, e.channel_share): percent(e.error) for e in layer.rebuild_errors}
    return [
        [
            f"R={choice.frame_stride} r={choice.channel_share:g}",
            str(choice.clips),
            percent(choice.clips / total),
            errors.get((choice.frame_stride, choice.channel_share), "0" if n == 0 and layer.rebuild_errors else ""),
        ]
        for n, choice in enumerate(layer.choices)
    ]
