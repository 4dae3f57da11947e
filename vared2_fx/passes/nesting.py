"""Lists, tuples and dicts among what a network is called with."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch.fx.immutable_collections import immutable_dict, immutable_list

from vared2_fx.errors import ConvertError

Nesting = tuple[Any, ...]
"""For each argument, how lists, tuples and dicts lie in each other in it: `("list", None, None)` for a list of two
things that are neither, None for such a thing. Empty where no argument is any of these."""


def nesting_of(args: tuple[Any, ...]) -> Nesting:
    """That of `args`."""
    nesting = tuple(_nesting(arg) for arg in args)
    return nesting if any(nesting) else ()


def leaves_of(value: Any) -> Iterator[Any]:
    """What lies in the lists, tuples and dicts of a value, and is none of these."""
    if type(value) in (list, tuple):
        yield from chain.from_iterable(map(leaves_of, value))
    elif type(value) is dict and all(isinstance(key, str) for key in value):
        yield from chain.from_iterable(map(leaves_of, value.values()))
    else:
        yield value


def read_nesting(where: str, value: Any) -> Nesting:
    """A nesting that was saved as JSON.

    Raises:
        ConvertError: it is none.
    """
    if not isinstance(value, (list, tuple)):
        raise ConvertError(f"{where} is {value!r:.60}.")
    return tuple(_read(f"{where}[{i}]", item) for i, item in enumerate(value))


def taken_apart(value: Any, nested: Any) -> Any:
    """A value that can be indexed as a list, tuple or dict of its own, nested as `nested` says."""
    if nested is None:
        return value
    kind, *items = nested
    if kind == "dict":
        return {key: taken_apart(value[key], item) for key, item in items[0].items()}
    parts = [taken_apart(value[i], item) for i, item in enumerate(items)]
    return tuple(parts) if kind == "tuple" else parts


def own_containers(value: Any) -> Any:
    """Lists and dicts, and those inside, as new ones with the same contents, which may be written into."""
    if type(value) in (list, immutable_list):
        return [own_containers(item) for item in value]
    if type(value) in (dict, immutable_dict):
        return {key: own_containers(item) for key, item in value.items()}
    return value


def _nesting(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value).__name__, *map(_nesting, value)
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return "dict", {key: _nesting(item) for key, item in value.items()}
    return None


def _read(where: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, (list, tuple)) and value and value[0] in ("list", "tuple"):
        return value[0], *(_read(f"{where}[{i}]", item) for i, item in enumerate(value[1:]))
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == "dict" and isinstance(value[1], dict):
        return "dict", {key: _read(f"{where}[{key!r}]", item) for key, item in value[1].items()}
    raise ConvertError(f"{where} is {value!r:.60}.")
