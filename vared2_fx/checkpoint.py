"""Converted networks on disk: a JSON config with a format version, and a state dict in safetensors."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from vared2_fx import zoo
from vared2_fx.convert import apply_plan, conversion
from vared2_fx.description import describe, read_conversion, read_description, to_json
from vared2_fx.disk import sha256, sync
from vared2_fx.errors import CheckpointError, ZooError
from vared2_fx.passes.decisions import without_decisions
from vared2_fx.passes.fingerprint import difference, fingerprint
from vared2_fx.passes.plan import Plan
from vared2_fx.passes.rewrite import regions
from vared2_fx.passes.trace import copy_model, trace
from vared2_fx.wrappers import unwrapped, without_prefixes

T = TypeVar("T", bound=nn.Module)

CONFIG_FILE = "vared2.json"
WEIGHTS_FILE = "model.safetensors"


def save(dynamic: nn.Module, folder: str | Path) -> Path:
    """Write a converted network into `folder`: `vared2.json` and `model.safetensors`.

    A process that is killed meanwhile, or a full disk, leaves what was saved there before.

    Args:
        dynamic: what `convert` returned, trained or not; also inside DistributedDataParallel and its kin or a
            `torch.compile` wrapper, which are not saved.
        folder: made if missing; an earlier save in it is replaced.

    Returns:
        The folder.

    Raises:
        ConvertError: `dynamic` is not a converted network.
        CheckpointError: the folder cannot be written, or `dynamic` was specialised or has no values.
    """
    network = unwrapped(dynamic)
    made = conversion(network)
    assert isinstance(network, fx.GraphModule)
    network = without_decisions(network)
    if regions(network).keys() != {region.path for region in made.plan.regions}:
        raise CheckpointError("save: this network was specialised; save the dynamic one that it was made from.")
    state = network.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError("save: this network is on the meta device, it has no values that could be saved.")
    document = describe(made, fingerprint(network), training=network.training)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _settle(folder)
        try:
            _write(folder, document, _unshared(state))
        finally:
            _settle(folder)
    except (OSError, safetensors.SafetensorError) as exc:
        raise CheckpointError(f"save: {folder} cannot be written: {exc}.") from exc
    return folder


def load(folder: str | Path, base: nn.Module | None = None) -> fx.GraphModule:
    """Read a network that `save` wrote.

    Args:
        folder: where it was saved.
        base: the network that had been converted, for one that is not the zoo's; not changed. Its weights do not
            matter, they are replaced by the saved ones.

    Returns:
        The converted network, on the CPU (or `base`'s device), in the mode in which it was saved.

    Raises:
        CheckpointError: files are missing, damaged, of another format version, or do not fit the network.
    """
    folder = Path(folder)
    document = read_description(folder / CONFIG_FILE)
    made = read_conversion(folder / CONFIG_FILE, document)
    state = _read_weights(folder, document)
    source = made.source
    if base is not None and any(tensor.is_meta for tensor in base.state_dict().values()):
        raise CheckpointError(
            "load: the base is on the meta device, where nothing can be loaded; base.to_empty(device='cpu') moves it."
        )
    if base is None and source is None:
        raise CheckpointError(
            f"load: {folder} holds a network that is not the zoo's; pass the original as load(folder, base=model)."
        )
    try:
        if base is None:
            base = zoo.load(str(source["name"]), num_classes=source["num_classes"])  # type: ignore[index,arg-type]
        dynamic = apply_plan(_trace_again(unwrapped(base), made.plan), made.plan, made.config, source)
        if (differs := difference(document["graph"], fingerprint(dynamic))) is not None:
            raise CheckpointError(differs)
        state = without_prefixes(state, dynamic.state_dict())
        _take_dtypes(dynamic, state)
        dynamic.load_state_dict(state, strict=True)
        return dynamic.train(document["training"])
    except ZooError:
        raise
    except Exception as exc:  # whatever a network that does not fit may meet on the way
        kind = "the network that it names" if base is None else type(base).__name__
        raise CheckpointError(
            f"load: {folder} does not fit {kind}; pass the network that was converted as load(folder, base=model). "
            f"{exc}"
        ) from exc


def load_weights(dynamic: T, state: Mapping[str, Any]) -> T:
    """Load a state dict into a converted network: all of it, or nothing.

    Args:
        dynamic: a converted network, maybe inside a wrapper; changed in place.
        state: the state dict of the same network. The prefixes `module.` and `_orig_mod.`, which wrappers put before
            every name, are taken off.

    Returns:
        `dynamic`.

    Raises:
        CheckpointError: a name or a shape differs; nothing was changed then.
    """
    network = unwrapped(dynamic)
    own = network.state_dict()
    given = without_prefixes(state, own)
    problems = [f"they lack {name}" for name in own if name not in given]
    problems += [f"they have {name}, which the network has not" for name in given if name not in own]
    for name in own.keys() & given.keys():
        value = given[name]
        if not isinstance(value, Tensor):
            problems.append(f"{name} is a {type(value).__name__}, no tensor")
        elif value.shape != own[name].shape:
            problems.append(f"{name} is {tuple(value.shape)} in them and {tuple(own[name].shape)} in the network")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"load_weights: these weights do not fit this {type(network).__name__}: {'; '.join(problems[:3])}{more}. "
            "Load those of a network that was converted with the same config; nothing was changed."
        )
    network.load_state_dict(given, strict=True)
    return dynamic


def _trace_again(base: nn.Module, plan: Plan) -> fx.GraphModule:
    """Trace as when `plan` was made, what could not be followed then included."""
    for where in plan.untraced:
        base.get_submodule(where.path)  # AttributeError: the plan is another network's
    return trace(copy_model(base), plan.nesting, untraced=plan.untraced)


def _write(folder: Path, document: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write the weights under a name that holds their checksum, then the config that states it.

    The one step that replaces the config is the one from which the new save counts; `_settle` does the rest.
    """
    parts = folder / f"{WEIGHTS_FILE}.parts"  # a folder: safetensors, too, begins with files of other names
    parts.mkdir()
    part = parts / WEIGHTS_FILE
    part.touch()
    usual_mode = part.stat().st_mode  # safetensors lets nobody else read what it writes
    save_file(state, part)
    part.chmod(usual_mode)
    sync(part)
    document["weights_sha256"] = sha256(part)
    os.replace(part, _unsettled(folder, document))
    part = folder / f"{CONFIG_FILE}.part"
    part.write_text(to_json(document), encoding="utf-8")
    sync(part)
    os.replace(part, folder / CONFIG_FILE)


def _settle(folder: Path) -> None:
    """Give the weights that the config belongs to their usual name, and remove what an interrupted save left."""
    try:
        ready = _unsettled(folder, json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        ready = None
    if ready is not None and ready.exists():
        os.replace(ready, folder / WEIGHTS_FILE)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        for stale in folder.glob(f"{name}.*"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)


def _unsettled(folder: Path, document: dict[str, Any]) -> Path:
    checksum = str(document["weights_sha256"])
    if not re.fullmatch("[0-9a-f]{64}", checksum):  # what an older or a damaged file says must lead to no other one
        raise ValueError(f"{checksum!r:.80} is no checksum")
    return folder / f"{WEIGHTS_FILE}.{checksum}"


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies where two names share memory, which safetensors refuses."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        out[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
    return out


def _read_weights(folder: Path, document: dict[str, Any]) -> dict[str, Tensor]:
    ready = _unsettled(folder, document)
    path = ready if ready.exists() else folder / WEIGHTS_FILE
    try:
        if sha256(path) != document["weights_sha256"]:
            raise CheckpointError(f"load: {path} is not the file that {CONFIG_FILE} belongs to, or it is damaged.")
        return dict(load_file(path))
    except OSError as exc:
        raise CheckpointError(f"load: {path} cannot be read: {exc.strerror or exc}.") from exc
    except safetensors.SafetensorError as exc:
        raise CheckpointError(f"load: {path} is damaged: {exc}.") from exc


def _take_dtypes(dynamic: fx.GraphModule, state: dict[str, Tensor]) -> None:
    """Give every tensor the dtype in which it was saved, or `load_state_dict` would round."""
    for name, tensor in dynamic.state_dict(keep_vars=True).items():
        if name in state and tensor.dtype != state[name].dtype:
            tensor.data = tensor.data.to(state[name].dtype)
