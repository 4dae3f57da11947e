"""Values from JSON as the types that a dataclass says they have, and checksums over a document."""

import math
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vared2_fx.errors import ConvertError
from vared2_fx.runtime import digest as digest  # written there, as a bundle's runtime stands alone
from vared2_fx.runtime import read_document as read_document


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
