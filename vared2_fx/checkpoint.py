"""Converted networks on disk: a JSON config with a format version, and a state dict in safetensors."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from vared2_fx import zoo
from vared2_fx.config import ConvertConfig
from vared2_fx.convert import apply_plan, conversion
from vared2_fx.errors import CheckpointError, ZooError
from vared2_fx.layers import ChoiceGrid
from vared2_fx.passes.plan import Plan, PlanEntry
from vared2_fx.passes.rewrite import regions
from vared2_fx.passes.trace import copy_model, trace
from vared2_fx.passes.untraced import Untraced

FORMAT_VERSION = 1
CONFIG_FILE = "vared2.json"
WEIGHTS_FILE = "model.safetensors"


def save(dynamic: fx.GraphModule, folder: str | Path) -> Path:
    """Write a converted network into `folder`: `vared2.json` and `model.safetensors`.

    A process that is killed meanwhile, or a full disk, leaves what was saved there before.

    Args:
        dynamic: what `convert` returned, trained or not.
        folder: made if missing; an earlier save in it is replaced.

    Returns:
        The folder.

    Raises:
        ConvertError: `dynamic` is not a converted network.
        CheckpointError: the folder cannot be written, or `dynamic` was specialised or has no values.
    """
    made = conversion(dynamic)
    if regions(dynamic).keys() != {entry.path for entry in made.plan.converted}:
        raise CheckpointError("save: this network was specialised; save the dynamic one that it was made from.")
    state = dynamic.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise CheckpointError("save: this network is on the meta device, it has no values that could be saved.")
    document = {
        "format_version": FORMAT_VERSION,
        "source": made.source,
        "config": asdict(made.config),
        "plan": asdict(made.plan),
        "training": dynamic.training,
    }
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
    document = _read_config(folder / CONFIG_FILE)
    state = _read_weights(folder, document)
    source = document["source"]
    if base is None and source is None:
        raise CheckpointError(
            f"load: {folder} holds a network that is not the zoo's; pass the original as load(folder, base=model)."
        )
    try:
        base = zoo.load(source["name"], num_classes=source["num_classes"]) if base is None else base
        config, plan = _config(document["config"]), _plan(document["plan"])
        dynamic = apply_plan(trace(copy_model(base), plan.nesting), plan, config, source)
        _take_dtypes(dynamic, state)
        dynamic.load_state_dict(state, strict=True)
        return dynamic.train(document["training"])
    except ZooError:
        raise
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as exc:
        kind = "the network that it names" if base is None else type(base).__name__
        raise CheckpointError(
            f"load: {folder} does not fit {kind}; pass the network that was converted as load(folder, base=model). "
            f"{exc}"
        ) from exc


def _write(folder: Path, document: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Write the weights under a name that holds their checksum, then the config that states it.

    The one step that replaces the config is the one from which the new save counts; `_settle` does the rest.
    """
    part = folder / f"{WEIGHTS_FILE}.part"
    part.touch()
    usual_mode = part.stat().st_mode  # safetensors lets nobody else read what it writes
    save_file(state, part)
    part.chmod(usual_mode)
    document["weights_sha256"] = _sha256(part)
    os.replace(part, _unsettled(folder, document))
    part = folder / f"{CONFIG_FILE}.part"
    part.write_text(json.dumps(document, indent=1), encoding="utf-8")
    os.replace(part, folder / CONFIG_FILE)


def _settle(folder: Path) -> None:
    """Give the weights that the config belongs to their usual name, and remove what an interrupted save left."""
    try:
        ready = _unsettled(folder, json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        ready = None
    if ready is not None and ready.exists():
        os.replace(ready, folder / WEIGHTS_FILE)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        for stale in folder.glob(f"{name}.*"):
            stale.unlink(missing_ok=True)


def _unsettled(folder: Path, document: dict[str, Any]) -> Path:
    return folder / f"{WEIGHTS_FILE}.{document['weights_sha256']}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies where two names share memory, which safetensors refuses."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        out[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
    return out


def _read_config(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise CheckpointError(f"load: {path} cannot be read: {exc.strerror or exc}.") from exc
    except ValueError as exc:
        raise CheckpointError(f"load: {path} is no valid JSON ({exc}); the file is damaged.") from exc
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"load: {path} has format version {version!r}, this release reads {FORMAT_VERSION}; "
            "load it with the release that wrote it."
        )
    missing = {"source", "config", "plan", "training", "weights_sha256"} - document.keys()
    if missing:
        raise CheckpointError(f"load: {path} lacks {', '.join(sorted(missing))}; the file is damaged.")
    return dict(document)


def _read_weights(folder: Path, document: dict[str, Any]) -> dict[str, Tensor]:
    ready = _unsettled(folder, document)
    path = ready if ready.exists() else folder / WEIGHTS_FILE
    try:
        if _sha256(path) != document["weights_sha256"]:
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


def _config(values: dict[str, Any]) -> ConvertConfig:
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return ConvertConfig(**fields)


def _plan(values: dict[str, Any]) -> Plan:
    entries = []
    for entry in values["entries"]:
        grid = ChoiceGrid(tuple(entry["grid"]["frame_strides"]), tuple(entry["grid"]["channel_shares"]))
        shapes = {key: entry[key] and tuple(entry[key]) for key in ("in_shape", "out_shape")}
        entries.append(PlanEntry(**{**entry, **shapes, "grid": grid}))
    shape = values["input_shape"]
    untraced = tuple(Untraced(**where) for where in values.get("untraced", ()))
    return Plan(
        **{
            **values,
            "entries": tuple(entries),
            "input_shape": shape and tuple(shape),
            "untraced": untraced,
            "nesting": _tuples(values.get("nesting", [])),
        }
    )


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
