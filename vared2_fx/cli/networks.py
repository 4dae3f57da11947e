"""From what a user types to a network: a name of the zoo, a saved folder, or `module:function`."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import fx, nn

from vared2_fx import checkpoint, zoo
from vared2_fx.cli.output import say
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError, Vared2Error

Kind = Literal["zoo", "folder", "function"]

CLASSES_FILE = "classes.txt"
"""Beside a fine-tuned network: the names of its classes, in its order."""
CLIP_FILE = "clip.json"
"""Beside a fine-tuned network: how its clips were cut from videos, a `ClipConfig`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A network, and what is known of it."""

    model: nn.Module
    spec: zoo.Spec | None
    """The clips it expects; None for the user's own."""
    folder: Path | None = None
    """Where it was saved; what fine-tuning wrote beside it goes before `spec`."""
    notes: tuple[str, ...] = ()
    """What a reader of results should know, such as that weights are random."""

    @property
    def converted(self) -> fx.GraphModule | None:
        """The model, where it is a converted one."""
        try:
            conversion(self.model)
        except ConvertError:
            return None
        return self.model if isinstance(self.model, fx.GraphModule) else None


def open_network(
    text: str,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    num_classes: int | None = None,
    base: str | None = None,
) -> Network:
    """Find the network that `text` names.

    Args:
        text: a name of the zoo, a folder that `save` wrote, or `module:function`, whose function returns a network.
        pretrained: zoo only, with its library's weights.
        weights: zoo only, a checkpoint file.
        num_classes: zoo only.
        base: folder only, `module:function` that builds the network that was converted, if it is not the zoo's.

    Raises:
        Vared2Error: there is none, or the other arguments do not go with it.
    """
    kind = kind_of(text)
    given = {"--pretrained": pretrained, "--weights": weights, "--num-classes": num_classes, "--base": base}
    fitting = {"zoo": ("--pretrained", "--weights", "--num-classes"), "folder": ("--base",), "function": ()}[kind]
    for option, value in given.items():
        if value and option not in fitting:
            what = {"zoo": "a network of the zoo", "folder": "a saved network", "function": "a network of your own"}
            raise Vared2Error(f"{option} does not go with {text}, which is {what[kind]}; leave it out.")
    if kind == "folder":
        return _saved(Path(text), base)
    if kind == "function":
        return Network(model=call_builder(text), spec=None)
    if Path(text, checkpoint.CONFIG_FILE).exists():
        say(f"{text} is the zoo's network; write ./{text} for the folder.")
    notes = () if pretrained or weights else ("the weights are random: what the network answers means nothing.",)
    model = zoo.load(text, pretrained=pretrained, weights=weights, num_classes=num_classes)
    return Network(model=model, spec=zoo.spec(text), notes=notes)


def classes_file_of(network: str) -> Path | None:
    """The class names that fine-tuning wrote beside a saved network; None where there are none."""
    path = Path(network, CLASSES_FILE)
    if not path.is_file():
        return None
    say(f"class names from {path}")
    return path


def num_classes_of(network: Network) -> int | None:
    """Length of the network's answer; None where only running it would tell."""
    source = getattr(network.model, "vared2_source", None)
    if network.converted is not None:
        source = conversion(network.converted).source
    return int(source["num_classes"]) if source else None


def place(model: nn.Module, device: str) -> None:
    """Move `model` to `device`; `auto` is the first accelerator, or the processor.

    Raises:
        Vared2Error: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as exc:
        raise Vared2Error(f"--device {device}: {str(exc).splitlines()[0]}. Try cpu.") from exc


def call_builder(text: str) -> nn.Module:
    """Import `module:function`, the current folder included, and call it.

    Raises:
        Vared2Error: it cannot be imported or called, or returns something else.
    """
    module_name, _, name = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: the user's file is in the current folder
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:
        hint = ""
        if isinstance(exc, ModuleNotFoundError) and exc.name in (module_name, module_name.split(".")[0]):
            hint = f" Is there a {module_name.replace('.', '/')}.py in {Path.cwd()}?"
        raise Vared2Error(f"{text}: cannot import {module_name} ({type(exc).__name__}: {exc}).{hint}") from exc
    build = getattr(module, name, None)
    if not callable(build):
        what = "no" if build is None else "something not callable as"
        raise Vared2Error(f"{text}: {module_name} has {what} `{name}`; name a function that returns a network.")
    try:
        model = build()
    except Exception as exc:
        raise Vared2Error(
            f"{text}: {name}() failed ({type(exc).__name__}: {exc}); it is called without arguments."
        ) from exc
    if not isinstance(model, nn.Module):
        raise Vared2Error(f"{text}: {name}() returned {type(model).__name__}, no torch.nn.Module.")
    return model


def kind_of(text: str) -> Kind:
    """Say what `text` names, without opening it.

    Raises:
        Vared2Error: nothing that is there.
    """
    if text in zoo.names():
        return "zoo"
    path = Path(text)
    if (path / checkpoint.CONFIG_FILE).is_file():
        return "folder"
    if ":" in text and not path.exists():
        return "function"
    if path.is_dir():
        inside = sorted(p.parent.name for p in path.glob(f"*/{checkpoint.CONFIG_FILE}"))
        hint = f" Did you mean {path / inside[0]}?" if inside else " `vared2 convert` and `vared2 finetune` write one."
        raise Vared2Error(f"{text} is a folder without a saved network ({checkpoint.CONFIG_FILE}).{hint}")
    if path.exists() or "/" in text:
        raise Vared2Error(
            f"{text} is no folder with a saved network. Give a name that `vared2 zoo` lists, a folder that `vared2 "
            "convert` or `vared2 finetune` wrote, or module:function for a network of your own."
        )
    zoo.spec(text)  # raises, naming the nearest
    raise AssertionError(text)


def _saved(folder: Path, base: str | None) -> Network:
    if base is None and _is_own(folder):
        raise Vared2Error(
            f"{folder} holds a converted network of your own; say with --base module:function what builds the original."
        )
    model = checkpoint.load(folder, base=call_builder(base) if base else None)
    source = conversion(model).source
    return Network(model=model, spec=zoo.spec(str(source["name"])) if source else None, folder=folder)


def _is_own(folder: Path) -> bool:
    try:
        document = json.loads((folder / checkpoint.CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False  # loading will say what is wrong with it
    return isinstance(document, dict) and document.get("source", "") is None
