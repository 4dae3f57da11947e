"""Reports as flat rows: a dict for each layer, and CSV."""

import csv
import io
from typing import Any

from vared2_fx.report.document import CompressionReport
from vared2_fx.report.numbers import LayerReport


def to_records(report: CompressionReport) -> list[dict[str, Any]]:
    """A row per layer; multiply-adds are per clip (mean), `clips_R…_r…` count the choices, None is unknown.

    No row of totals, so that sums over a column are right.
    """
    choices = sorted({(c.frame_stride, -c.channel_share) for layer in report.layers for c in layer.choices})
    columns = {(stride, -share): f"clips_R{stride}_r{-share:g}" for stride, share in choices}
    dense = max(1, report.totals.dense_macs.total)
    return [_row(layer, columns, dense) for layer in report.layers]


def to_csv(report: CompressionReport) -> str:
    """A header, then the rows of `to_records`."""
    rows = to_records(report)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _row(layer: LayerReport, columns: dict[tuple[int, float], str], dense: int) -> dict[str, Any]:
    picked = {(c.frame_stride, c.channel_share): c.clips for c in layer.choices}
    computed, timing, sensitivity = layer.computed_macs, layer.timing, layer.sensitivity
    row = {
        "path": layer.path,
        "operation": layer.operation,
        "source_class": layer.source_class,
        "kind": layer.kind,
        "reason": layer.reason,
        "members": " ".join(layer.members),
        "in_shape": "x".join(map(str, layer.in_shape or ())),
        "out_shape": "x".join(map(str, layer.out_shape or ())),
        "dense_macs": _number(layer.dense_macs.mean),
        "dense_share": layer.dense_macs.total / dense,
        "computed_macs": _number(computed.mean),
        "computed_macs_min": computed.min,
        "computed_macs_p50": computed.p50,
        "computed_macs_p95": computed.p95,
        "computed_macs_max": computed.max,
        "computed_share": layer.computed_share,
        "cheap_macs": _number(layer.cheap_macs.mean),
        "gate_macs": _number(layer.gate_macs.mean),
        "choice_entropy": layer.choice_entropy,
        "gate_entropy": None if layer.gate_entropy is None else layer.gate_entropy.bits,
        "params": layer.params,
        "params_added": layer.params_added,
        "bytes_added": layer.bytes_added,
        "dense_ms": None if timing is None else timing.dense.ms,
        "dynamic_ms": None if timing is None else timing.dynamic.ms,
        "rebuild_error": layer.mean_rebuild_error,
        "sensitivity_drift": None if sensitivity is None else sensitivity.drift,
        "sensitivity_accuracy": None if sensitivity is None else sensitivity.accuracy_change,
    }
    return row | {name: picked.get(choice) for choice, name in columns.items()}


def _number(mean: float) -> float | int:
    return int(mean) if mean.is_integer() else mean
