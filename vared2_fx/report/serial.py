"""Reports as JSON and CSV, and back from JSON."""

import csv
import io
import json
import types
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vared2_fx.errors import ReportError
from vared2_fx.report.numbers import CompressionReport, LayerReport

SCHEMA = "vared2_fx.report"
VERSION = 1


def to_json(report: CompressionReport, *, indent: int | None = 1) -> str:
    """The fields of the report, after `schema` and `version`."""
    return json.dumps({"schema": SCHEMA, "version": VERSION, **asdict(report)}, indent=indent, allow_nan=False)


def from_json(text: str) -> CompressionReport:
    """Read what `to_json` wrote.

    Raises:
        ReportError: not JSON, another schema or version, or a field that is missing or of the wrong kind.
    """
    try:
        document = json.loads(text)
    except ValueError as exc:
        raise ReportError(f"report: this is no JSON ({exc}).") from exc
    if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
        raise ReportError(f'report: this JSON is no report; one has "schema": "{SCHEMA}" at its top.')
    if (version := document.pop("version", None)) != VERSION:
        raise ReportError(
            f"report: the file has version {version!r}, this release reads {VERSION}; "
            "read it with the release that wrote it."
        )
    built: CompressionReport = _build(CompressionReport, document, "report")
    return built


def to_csv(report: CompressionReport) -> str:
    """A header, then a row per layer; multiply-adds are per clip (mean), `clips_R…_r…` count the choices.

    No row of totals, so that sums over a column are right.
    """
    choices = sorted({(c.frame_stride, -c.channel_share) for layer in report.layers for c in layer.choices})
    columns = {(stride, -share): f"clips_R{stride}_r{-share:g}" for stride, share in choices}
    rows = [_row(layer, columns) for layer in report.layers]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _row(layer: LayerReport, columns: dict[tuple[int, float], str]) -> dict[str, Any]:
    picked = {(c.frame_stride, c.channel_share): c.clips for c in layer.choices}
    row = {
        "path": layer.path,
        "operation": layer.operation,
        "kind": layer.kind,
        "reason": layer.reason,
        "in_shape": "x".join(map(str, layer.in_shape or ())),
        "out_shape": "x".join(map(str, layer.out_shape or ())),
        "dense_macs": _number(layer.dense_macs.mean),
        "computed_macs": _number(layer.computed_macs.mean),
        "computed_macs_min": layer.computed_macs.min,
        "computed_macs_max": layer.computed_macs.max,
        "computed_share": layer.computed_share,
        "cheap_macs": _number(layer.cheap_macs.mean),
        "gate_macs": _number(layer.gate_macs.mean),
        "params": layer.params,
        "params_added": layer.params_added,
        "dense_ms": "" if layer.timing is None else layer.timing.dense.ms,
        "dynamic_ms": "" if layer.timing is None else layer.timing.dynamic.ms,
    }
    return row | {name: picked.get(choice, "") for choice, name in columns.items()}


def _number(mean: float) -> float | int:
    return int(mean) if mean.is_integer() else mean


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gives it, as an object of the annotated type `kind`."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in get_args(kind) if arg is not type(None))
        return None if value is None else _build(inner, value, where)
    if origin is tuple and isinstance(value, list):
        inner = get_args(kind)[0]
        return tuple(_build(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        names, hints = {field.name for field in fields(kind)}, get_type_hints(kind)
        if names != value.keys():
            raise ReportError(
                f"report: {where} should have the fields {', '.join(sorted(names))}; "
                f"different: {', '.join(sorted(names ^ value.keys()))}. The file is damaged."
            )
        return kind(**{name: _build(hints[name], item, f"{where}.{name}") for name, item in value.items()})
    if origin is Literal and value in get_args(kind):
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    raise ReportError(
        f"report: {where} is {str(value)[:40]!r}; expected {getattr(kind, '__name__', kind)}. The file is damaged."
    )
