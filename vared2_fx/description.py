"""The JSON beside saved weights: written from a conversion, read back with every value checked."""

import hashlib
import json
import math
import re
import types
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vared2_fx.config import ConvertConfig
from vared2_fx.convert import Conversion
from vared2_fx.errors import CheckpointError, ConvertError
from vared2_fx.passes.fingerprint import Fingerprint
from vared2_fx.passes.nesting import read_nesting
from vared2_fx.passes.plan import Plan

FORMAT_VERSION = 3

_KEYS = {"format_version", "source", "config", "plan", "graph", "training", "weights_sha256", "sha256"}


def describe(made: Conversion, graph: Fingerprint, *, training: bool) -> dict[str, Any]:
    """What is saved of a network besides its weights; the checksums are still missing."""
    return {
        "format_version": FORMAT_VERSION,
        "source": made.source,
        "config": asdict(made.config),
        "plan": asdict(made.plan),
        "graph": graph,
        "training": training,
    }


def to_json(description: dict[str, Any]) -> str:
    """The text to save, with a checksum of its own."""
    return json.dumps({**description, "sha256": _digest(description)}, indent=1, allow_nan=False)


def read_description(path: Path) -> dict[str, Any]:
    """Read what `to_json` wrote.

    Raises:
        CheckpointError: it cannot be read, is of another version, or was changed since.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise CheckpointError(f"load: {path} cannot be read: {exc.strerror or exc}.") from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"load: {path} is no valid JSON ({exc}); the file is damaged.") from exc
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise CheckpointError(
            f"load: {path} has format version {version!r}, this release reads {FORMAT_VERSION}; "
            "load it with the release that wrote it."
        )
    if missing := _KEYS - document.keys():
        raise CheckpointError(f"load: {path} lacks {', '.join(sorted(missing))}; the file is damaged.")
    if document.pop("sha256") != _digest(document):
        raise CheckpointError(f"load: {path} was changed after it was written, or is damaged: its checksum is another.")
    return dict(document)


def read_conversion(path: Path, document: dict[str, Any]) -> Conversion:
    """The conversion that a description tells of.

    Args:
        path: of the file, for errors.
        document: from `read_description`.

    Raises:
        CheckpointError: a value is missing or not of its kind.
    """
    try:
        config, plan = _as(ConvertConfig, document["config"], "config"), _as(Plan, document["plan"], "plan")
        plan = replace(plan, nesting=read_nesting("plan.nesting", plan.nesting))
        for region in plan.regions:
            ConvertConfig(frame_strides=region.grid.frame_strides, channel_shares=region.grid.channel_shares)
        source = _as(dict[str, Any] | None, document["source"], "source")
        if source is not None:
            _as(str, source.get("name"), "source.name")
            _as(int, source.get("num_classes"), "source.num_classes")
        _as(bool, document["training"], "training")
        if not re.fullmatch("[0-9a-f]{64}", _as(str, document["weights_sha256"], "weights_sha256")):
            raise ConvertError(f"weights_sha256 is {document['weights_sha256']!r:.80}.")
        _as(tuple[str, ...], _as(dict[str, Any], document["graph"], "graph").get("nodes"), "graph.nodes")
        for key, settings in _as(dict[str, Any], document["graph"].get("modules"), "graph.modules").items():
            _as(str, _as(dict[str, Any], settings, f"graph.modules.{key}").get("type"), f"graph.modules.{key}.type")
    except ConvertError as exc:
        raise CheckpointError(f"load: {path} holds what cannot be: {exc}") from exc
    return Conversion(config=config, plan=plan, source=source)


def _digest(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _as(kind: Any, value: Any, where: str) -> Any:
    """`value`, which comes from JSON, as `kind`: a dataclass, a literal, a union, a tuple, or a plain type."""
    origin = get_origin(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _make(kind, value, where)
    if origin is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if origin in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return _as(option, value, where)
            except ConvertError:
                continue
    if kind is Any:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_as(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool, type(None)) and type(value) is kind:
        return value
    raise ConvertError(f"{where} is {value!r:.60}.")


def _make(kind: Any, values: dict[str, Any], where: str) -> Any:
    hints, known = get_type_hints(kind), [field.name for field in fields(kind)]
    if unknown := values.keys() - set(known):
        raise ConvertError(f"{where} has {', '.join(sorted(unknown))}, which this release does not know.")
    if missing := [name for name in known if name not in values]:
        raise ConvertError(f"{where} lacks {', '.join(missing)}.")
    return kind(**{name: _as(hints[name], value, f"{where}.{name}") for name, value in values.items()})
