"""The JSON schema of a report, read off the dataclasses that it is made of."""

import ast
import inspect
import json
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vared2_fx.passes import flow_graph
from vared2_fx.report import document, numbers
from vared2_fx.report.document import CompressionReport
from vared2_fx.report.serial import SCHEMA, VERSION

_PLAIN: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def json_schema() -> dict[str, Any]:
    """What `CompressionReport.to_json` writes, as a JSON schema (draft 2020-12).

    Published as docs/report.schema.json: `python -m vared2_fx.report.schema > docs/report.schema.json`.
    """
    known: dict[str, Any] = {}
    root = _object(CompressionReport, known)
    about = {"schema": {"const": SCHEMA}, "version": {"const": VERSION, "description": "Of this format."}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Report of vared2_fx",
        **root,
        "properties": {**about, **root["properties"]},
        "required": [*about, *root["required"]],
        "$defs": dict(sorted(known.items())),
    }


def _object(kind: type, known: dict[str, Any]) -> dict[str, Any]:
    hints, texts = get_type_hints(kind), _field_docs(kind)
    properties = {}
    for field in fields(kind):
        described = {"description": texts[field.name]} if field.name in texts else {}
        properties[field.name] = {**_type(hints[field.name], known), **described}
    doc = inspect.cleandoc(kind.__doc__ or "")
    return {
        "description": doc,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _type(kind: Any, known: dict[str, Any]) -> dict[str, Any]:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type(option, known) for option in get_args(kind)]}
    if origin is tuple:
        return {"type": "array", "items": _type(get_args(kind)[0], known)}
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in known:
            known[kind.__name__] = {}
            known[kind.__name__] = _object(kind, known)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    return {"type": _PLAIN[kind]}


def _field_docs(kind: type) -> dict[str, str]:
    """The text under each field, which only the source has."""
    module = next(module for module in (document, flow_graph, numbers) if module.__name__ == kind.__module__)
    (found,) = (n for n in ast.parse(inspect.getsource(module)).body if getattr(n, "name", "") == kind.__name__)
    assert isinstance(found, ast.ClassDef)
    texts = {}
    for before, after in zip(found.body, found.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(before.target, ast.Name)
            texts[before.target.id] = inspect.cleandoc(str(after.value.value)).replace("\n", " ")
    return texts


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
