"""Torch itself: the folded graph in `channels_last_3d`, with oneDNN's convolutions."""

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_unflatten
from typing_extensions import Self

from vared2_fx.config import EngineName
from vared2_fx.deploy.engines.base import NO_BF16, Engine, Settings
from vared2_fx.deploy.program import Program
from vared2_fx.errors import DeployError
from vared2_fx.passes.deploy.fused_convs import fuse_convs, pack_weights
from vared2_fx.passes.deploy.onednn import onednn_convs
from vared2_fx.passes.deploy.skipping_convs import skipping_convs

FILE = "program.pt2"


class TorchEngine(Engine):
    """Runs the program operator by operator."""

    name: EngineName = "torch"
    packages = ("torch",)

    def __init__(self, exported: ExportedProgram, settings: Settings) -> None:
        """Run `exported`."""
        super().__init__(settings)
        self.exported = exported
        self.module = self._runnable(exported)
        spec = exported.call_spec.in_spec
        assert spec is not None
        self._in_spec = spec

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Look whether it can work.

        Raises:
            DeployError: oneDNN's convolutions have no bf16 on this processor.
        """
        if settings.precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise DeployError(NO_BF16)

    @classmethod
    def build(cls, program: Program, settings: Settings) -> Self:
        """Take over a program."""
        return cls(program.exported, settings)

    @classmethod
    def read(cls, files: Mapping[str, Path], settings: Settings) -> Self:
        """Read a saved program."""
        return cls(torch.export.load(files[FILE]), settings)

    def write(self, folder: Path) -> None:
        """Write the program: a graph as JSON, and its weights."""
        with warnings.catch_warnings():
            # torch 2.14 says this of every weight in channels_last_3d, which it writes as a whole nevertheless
            warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
            torch.export.save(self.exported, folder / FILE)

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """From the tensors of a call to those of its answer."""
        args, kwargs = tree_unflatten(list(tensors), self._in_spec)
        # A network in autocast would round, and its convolutions would be given two dtypes
        with torch.no_grad(), torch.autocast("cpu", enabled=False), _threads(self.settings.threads):
            return tree_leaves(self._call(args, kwargs))

    def _runnable(self, exported: ExportedProgram) -> Any:
        # No guards: the signature has looked at the shapes
        gm = onednn_convs(exported.module(check_guards=False))
        return pack_weights(fuse_convs(skipping_convs(gm)))

    def _call(self, args: Any, kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


@dataclass
class _Calls:
    """The calls under way that have set torch's number of threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    number: int = 0
    outside: int = 0
    """Torch's number of threads before the first of them."""


_calls = _Calls()


@contextmanager
def _threads(wanted: int | None) -> Iterator[None]:
    """Let torch use so many threads for what this thread computes inside the block.

    Torch has a number for each thread, and one that threads begin with; setting the first changes the second as well.
    So a thread that begins while others are in the block may have theirs, and leaves with the number from outside.
    """
    if wanted is None:
        yield
        return
    with _calls.lock:
        if _calls.number == 0:
            _calls.outside = torch.get_num_threads()
        _calls.number += 1
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        with _calls.lock:
            _calls.number -= 1
            torch.set_num_threads(_calls.outside)
