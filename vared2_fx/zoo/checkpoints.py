"""Weights into networks: the libraries' own, a user's file, a fresh head."""

import contextlib
import http.client
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from vared2_fx.errors import ZooError
from vared2_fx.zoo.spec import Entry, Layout

_WRAPPERS = ("model_state", "state_dict")  # pytorchvideo and PySlowFast; Lightning and most training scripts
_PREFIX = "module."  # put before every key by DataParallel and DistributedDataParallel
_NUM_SHOWN = 5  # differing keys that an error spells out
_UNREADABLE = (  # what downloading, unpickling and loading raise between them
    OSError,
    http.client.HTTPException,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
)


def build_pretrained(entry: Entry) -> nn.Module:
    """Build a network with its library's own weights, downloaded by the library if they are not there yet.

    Raises:
        ZooError: the weights cannot be downloaded, or the file that is there is not what the library expects.
    """
    num_classes = entry.spec.num_classes
    if entry.url is None:
        return entry.build(num_classes=num_classes, pretrained=True)
    url = entry.url()
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(url).path)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub's "Downloading ..." is no answer of ours
            return entry.build(num_classes=num_classes, pretrained=True)
    except _UNREADABLE as error:
        if file.exists():
            raise ZooError(
                f"{entry.spec.name}: {file} does not hold the pretrained weights of this network "
                f"({_brief(error)}). Delete it, or replace it by the file of {url}"
            ) from error
        raise ZooError(
            f"{entry.spec.name}: the pretrained weights cannot be downloaded ({_brief(error)}). "
            f"Get the file {file.name} by other means from {url} and put it into {file.parent}; or go on "
            "without it: pretrained=False for random weights, weights=PATH for a file of your own."
        ) from error


def replace_head(model: nn.Module, path: str, num_classes: int) -> None:
    """Put a fresh last layer with `num_classes` outputs at `path`, on the old one's device and of its dtype.

    Weights are drawn from N(0, 0.01^2), biases are 0: what both libraries do for their linear heads.
    """
    old = model.get_submodule(path)
    with_bias = getattr(old, "bias", None) is not None
    new: nn.Linear | nn.Conv3d
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=with_bias)
    else:
        assert isinstance(old, nn.Conv3d), f"{path} is a {type(old).__name__}"
        assert old.kernel_size == (1, 1, 1), f"{path} has a kernel of {old.kernel_size}"
        new = nn.Conv3d(old.in_channels, num_classes, kernel_size=1, bias=with_bias)
    nn.init.normal_(new.weight, std=0.01)
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    model.set_submodule(path, new.to(device=old.weight.device, dtype=old.weight.dtype))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint: `.safetensors`, or what `torch.load(weights_only=True)` reads.

    A state dict may be wrapped as {"model_state": ...} or {"state_dict": ...}, and its keys may all begin
    with "module.".

    Raises:
        ZooError: there is no such file, it cannot be read, or it holds something else.
    """
    if not path.is_file():
        raise ZooError(f"weights={str(path)!r}: no such file.")
    content = _read(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not _is_state(content):
        raise ZooError(
            f"weights={str(path)!r}: found {_describe(content)}, expected a state dict (names and tensors), "
            f"plain or as the value of {' or '.join(map(repr, _WRAPPERS))}. "
            "Save one with torch.save(model.state_dict(), path)."
        )
    if all(key.startswith(_PREFIX) for key in content):
        return {key.removeprefix(_PREFIX): value for key, value in content.items()}
    return dict(content)


def load_file(model: nn.Module, entry: Entry, path: Path) -> None:
    """Load a user's checkpoint into `model`, all keys and shapes or nothing.

    The file may be in the network's own layout or in one of `entry.layouts`; its keys tell which. Only BatchNorm's
    counter `num_batches_tracked`, which no result depends on, may be missing from it.

    Raises:
        ZooError: the file cannot be read, or a key or shape differs; the model is untouched then.
    """
    state, own = read_state(path), model.state_dict()
    layout, names = _layout_of(state, own, entry)
    missing = [key for key in names if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in names]
    found = {ours: state[theirs] for theirs, ours in names.items() if theirs in state}
    reshaped = [
        f"{theirs}: {tuple(state[theirs].shape)} in the file, {tuple(own[ours].shape)} in the network"
        for theirs, ours in names.items()
        if ours in found and found[ours].shape != own[ours].shape
    ]
    if not (missing or unexpected or reshaped):
        model.load_state_dict(found, strict=False)
        return
    parts = [
        _listed("missing from the file", missing),
        _listed("unknown to the network", unexpected),
        _listed("of another shape", reshaped),
    ]
    read_as = f", read in the layout of {layout.source}," if layout else ""
    raise ZooError(
        f"weights={str(path)!r}{read_as} does not fit {entry.spec.name}: {'; '.join(part for part in parts if part)}. "
        f"{_advice(entry, found, own)}"
    )


def _layout_of(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], entry: Entry
) -> tuple[Layout | None, dict[str, str]]:
    """The layout that the file is in (None: the network's own), and from its names to ours.

    It is the one with most of its names in the file; the network's own, if no other has more.
    """
    best, names = None, {key: key for key in own}
    for layout in entry.layouts:
        theirs = {layout.rename(key): key for key in own}
        if len(theirs.keys() & state.keys()) > len(names.keys() & state.keys()):
            best, names = layout, theirs
    return best, names


def _is_state(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def _advice(entry: Entry, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    key = f"{entry.head}.weight"
    if key in state and state[key].ndim and (classes := state[key].shape[0]) != own[key].shape[0]:
        return f"The file has a last layer for {classes} classes: pass num_classes={classes}."
    for key, value in own.items():  # layers that see the clip itself
        if value.ndim == 5 and value.shape[1] == 3 and key in state and state[key].shape[1:2] != (3,):
            return f"{key} sees RGB, the file's has another number of channels: optical flow, of 2?"
    return "Is it a checkpoint of another network, or of one whose layers were changed?"


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file as load_safetensors

        try:
            return load_safetensors(path)
        except (OSError, SafetensorError) as error:
            raise ZooError(f"weights={str(path)!r} is no safetensors file ({_brief(error)}).") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ZooError(
            f"weights={str(path)!r} cannot be read as tensors only ({_brief(error)}). A file that holds "
            "whole Python objects is not opened, as it could run code: save the model's state_dict() instead."
        ) from error


def _listed(what: str, entries: list[str]) -> str:
    if not entries:
        return ""
    more = ", ..." if len(entries) > _NUM_SHOWN else ""
    return f"{len(entries)} {what} ({', '.join(entries[:_NUM_SHOWN])}{more})"


def _describe(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    keys = ", ".join(repr(key) for key in list(content)[:_NUM_SHOWN])
    return f"a dict with the keys {keys}" if keys else "an empty dict"


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."
