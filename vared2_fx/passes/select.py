"""Which convolutions the config's include, exclude and filter choose."""

import difflib
from collections.abc import Callable, Iterator, Mapping

from torch import nn

from vared2_fx.config import TYPE, ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.passes.regions import Reason
from vared2_fx.patterns import matching, no_match

Deselected = Mapping[str, tuple[Reason, str]]
"""Reason code and sentence of every path that is not to be converted."""


def select(paths: list[str], config: ConvertConfig, source: nn.Module) -> Deselected:
    """Say which of the convolutions at `paths` the config leaves out.

    Args:
        paths: of all 3D convolutions.
        config: its include, exclude and filter.
        source: the network as it was before it was traced, whose modules have their types.

    Raises:
        ConvertError: an entry matches nothing, or the filter fails or answers neither True nor False.
    """
    chosen = {name: _named(f"ConvertConfig.{name}", getattr(config, name), paths, source) for name in _FIELDS}
    out: dict[str, tuple[Reason, str]] = {}
    for path in paths:
        if path not in chosen["include"]:
            out[path] = ("excluded", "none of the entries of include names it")
        elif path in chosen["exclude"]:
            out[path] = ("excluded", f"exclude names it by {chosen['exclude'][path]!r}")
        elif config.filter is not None and not _answer(config.filter, _module(source, path), path):
            out[path] = ("filtered", "the config's filter returned False")
    return out


_FIELDS = ("include", "exclude")


def _named(where: str, entries: tuple[str, ...], paths: list[str], source: nn.Module) -> dict[str, str]:
    """The entry that names each path."""
    named: dict[str, str] = {}
    for entry in entries:
        found = _of_type(where, entry, paths, source) if entry.startswith(TYPE) else matching(entry, paths)
        if not found and entry != "*":
            raise no_match(where, entry, paths, "3D convolutions")
        named |= {path: entry for path in found if path not in named}
    return named


def _of_type(where: str, entry: str, paths: list[str], source: nn.Module) -> list[str]:
    """Paths of convolutions that are, or are inside, a module of the type."""
    name = entry.removeprefix(TYPE)
    names = {path: {name for module in _chain(source, path) for name in _type_names(type(module))} for path in paths}
    found = [path for path in paths if name in names[path]]
    if not found:
        known = sorted({name for some in names.values() for name in some if "." not in name})
        near = difflib.get_close_matches(name.rpartition(".")[2], known, n=3, cutoff=0.4)
        hint = f"; types that do are {', '.join(near or known)}" if known else ""
        raise ConvertError(
            f"{where}: no module of type {name!r} is or holds one of the {len(paths)} 3D convolutions{hint}."
        )
    return found


def _chain(source: nn.Module, path: str) -> Iterator[nn.Module]:
    """The modules on the way to `path`, from outside to inside."""
    module: object = source
    for part in ("", *path.split(".")):
        module = getattr(module, part, None) if part else module
        if not isinstance(module, nn.Module):
            return
        yield module


def _module(source: nn.Module, path: str) -> nn.Module | None:
    chain = list(_chain(source, path))
    return chain[-1] if len(chain) == path.count(".") + 2 else None


def _type_names(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        if base in (nn.Module, object):
            return
        yield base.__name__
        yield f"{base.__module__}.{base.__qualname__}"


def _answer(keep: Callable[[nn.Module, str], bool], module: nn.Module | None, path: str) -> bool:
    if module is None:  # a function call: static in any case
        return True
    try:
        answer = keep(module, path)
    except Exception as exc:
        raise ConvertError(f"ConvertConfig.filter failed on `{path}` ({type(exc).__name__}: {exc}).") from exc
    if not isinstance(answer, bool):
        raise ConvertError(f"ConvertConfig.filter returned {answer!r} for `{path}`; return True or False.")
    return answer
