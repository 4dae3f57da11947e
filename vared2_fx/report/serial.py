"""Reports as JSON, and back."""

import json
import types
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vared2_fx.errors import ReportError
from vared2_fx.report.document import CompressionReport

SCHEMA = "vared2_fx.report"
VERSION = 2


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
            f"report: the file has version {version!r}, this release reads {VERSION}; make the report again, "
            "or read it with the release that wrote it."
        )
    built: CompressionReport = _build(CompressionReport, document, "report")
    return built


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
