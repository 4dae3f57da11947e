"""Converted networks on disk: a JSON config with a format version, and a state dict in safetensors."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from vared2_fx import zoo
from vared2_fx.config import ConvertConfig
from vared2_fx.convert import apply_plan, conversion
from vared2_fx.errors import CheckpointError
from vared2_fx.layers import ChoiceGrid
from vared2_fx.passes.plan import Plan, PlanEntry
from vared2_fx.passes.trace import copy_model, trace

FORMAT_VERSION = 1
CONFIG_FILE = "vared2.json"
WEIGHTS_FILE = "model.safetensors"


def save(dynamic: fx.GraphModule, folder: str | Path) -> Path:
    """Write a converted network into `folder`: `vared2.json` and `model.safetensors`.

    Args:
        dynamic: what `convert` returned, trained or not.
        folder: made if missing; files of an earlier save are replaced, each in one step.

    Returns:
        The folder.

    Raises:
        ConvertError: `dynamic` is not a converted network.
        CheckpointError: the folder cannot be written.
    """
    made = conversion(dynamic)
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
        with _replacing(folder / WEIGHTS_FILE) as part:
            save_file(_unshared(dynamic.state_dict()), part)
        with _replacing(folder / CONFIG_FILE) as part:
            part.write_text(json.dumps(document, indent=1))
    except OSError as exc:
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
    state = _read_weights(folder / WEIGHTS_FILE)
    source = document["source"]
    if base is None:
        if source is None:
            raise CheckpointError(
                f"load: {folder} holds a network that is not the zoo's; pass the original as load(folder, base=model)."
            )
        base = zoo.load(source["name"], num_classes=source["num_classes"])
    try:
        config, plan = _config(document["config"]), _plan(document["plan"])
        dynamic = apply_plan(trace(copy_model(base)), plan, config, source)
        dynamic.load_state_dict(state, strict=True)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"load: {folder} does not fit {type(base).__name__}: {exc}") from exc
    return dynamic.train(document["training"])


class _replacing:  # noqa: N801  reads as a verb in a with statement
    """A temporary file beside `path` that takes its place when the block ends well, and goes when it does not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        os.close(handle)
        self.part = Path(name)
        return self.part

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)


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
        document = json.loads(path.read_text())
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
    missing = {"source", "config", "plan", "training"} - document.keys()
    if missing:
        raise CheckpointError(f"load: {path} lacks {', '.join(sorted(missing))}; the file is damaged.")
    return dict(document)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except OSError as exc:
        raise CheckpointError(f"load: {path} cannot be read: {exc.strerror or exc}.") from exc
    except safetensors.SafetensorError as exc:
        raise CheckpointError(f"load: {path} is damaged: {exc}.") from exc


def _config(values: dict[str, Any]) -> ConvertConfig:
    return ConvertConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _plan(values: dict[str, Any]) -> Plan:
    entries = []
    for entry in values["entries"]:
        grid = ChoiceGrid(tuple(entry["grid"]["frame_strides"]), tuple(entry["grid"]["channel_shares"]))
        shapes = {key: entry[key] and tuple(entry[key]) for key in ("in_shape", "out_shape")}
        entries.append(PlanEntry(**{**entry, **shapes, "grid": grid}))
    shape = values["input_shape"]
    return Plan(**{**values, "entries": tuple(entries), "input_shape": shape and tuple(shape)})
