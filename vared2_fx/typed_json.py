"""Values from JSON as the types that a dataclass says they have, and checksums over a document."""

import json
import math
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vared2_fx.errors import ConvertError, Vared2Error
from vared2_fx.runtime import digest as digest  # written there, as a bundle's runtime stands alone


def read_document(
    path: Path, *, where: str, version: int, keys: set[str], remedy: str, error: type[Vared2Error]
) -> dict[str, Any]:
    """Read a JSON document that a release of this package wrote, its own checksum checked and taken off.

    Args:
        path: of the file.
        where: the call that reads it, for errors.
        version: the format version that is read.
        keys: what it has to hold.
        remedy: what to do about another version.
        error: what to raise: it cannot be read, is of another version, lacks a key, or was changed since.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise error(f"{where}: {path} cannot be read: {exc.strerror or exc}.") from exc
    except (ValueError, RecursionError) as exc:
        raise error(f"{where}: {path} is no valid JSON ({exc}); the file is damaged.") from exc
    found = document.get("format_version") if isinstance(document, dict) else None
    if type(found) is not int or found != version:
        raise error(f"{where}: {path} has format version {found!r}, this release reads {version}; {remedy}.")
    if missing := keys - document.keys():
        raise error(f"{where}: {path} lacks {', '.join(sorted(missing))}; the file is damaged.")
    if document.pop("sha256") != digest(document):
        raise error(f"{where}: {path} was changed after it was written, or is damaged: its checksum is another.")
    return dict(document)


def as_type(kind: Any, value: Any, where: str) -> Any:
    """`value`, which comes from JSON, as `kind`: a dataclass, a literal, a union, a tuple, or a plain type.

    Raises:
        ConvertError: it is not of that kind; the text names `where`.
    """
    origin = get_origin(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _make(kind, value, where)
    if origin is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if origin in (Union, types.UnionType):
        for option in get_args(kind):
            try:
                return as_type(option, value, where)
            except ConvertError:
                continue
    if kind is Any:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(as_type(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
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
    return kind(**{name: as_type(hints[name], value, f"{where}.{name}") for name, value in values.items()})
