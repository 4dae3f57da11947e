"""`torch.compile` with frozen weights."""

import os
import shutil
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map_only

from vared2_fx.config import EngineName
from vared2_fx.deploy.engines.base import Settings
from vared2_fx.deploy.engines.eager import TorchEngine
from vared2_fx.errors import DeployError

MAX_SHAPES = 8
"""As many shapes as torch compiles for one function before it runs others uncompiled (`recompile_limit`)."""


class CompileEngine(TorchEngine):
    """Compiles the program as a whole for each input shape, when it meets the shape first; needs a C++ compiler.

    Weights are constants of what is compiled (`freezing`), so that oneDNN gets them in the layout that it wants.
    """

    name: EngineName = "compile"

    @classmethod
    def check(cls, settings: Settings) -> None:
        """Look whether it can work.

        Raises:
            DeployError: there is no C++ compiler.
        """
        names = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++", "cl") if name]
        if not any(shutil.which(name) for name in names):
            raise DeployError(
                "deploy: engine 'compile' needs a C++ compiler, and there is no g++ or clang++. Install one, name it "
                "in the environment variable CXX, or take engine='torch'."
            )

    def __init__(self, exported: ExportedProgram, settings: Settings) -> None:
        """Compile `exported` when it is called first."""
        super().__init__(exported, settings)
        self._shapes, self._compiling = set[tuple[Any, ...]](), threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it computes."""
        return (f"compiled for each input shape at the first call with it, for at most {MAX_SHAPES} shapes",)

    def _runnable(self, exported: ExportedProgram) -> Any:
        module = exported.module(check_guards=False)
        return torch.compile(module, fullgraph=True, dynamic=False, options={"freezing": True})

    def _call(self, args: Any, kwargs: Any) -> Any:
        with torch.inference_mode(False):
            return self._plain_call(*tree_map_only(Tensor, _plain, (args, kwargs)))

    def _plain_call(self, args: Any, kwargs: Any) -> Any:
        shape = _key(tree_leaves((args, kwargs)))
        if shape in self._shapes:
            return self.module(*args, **kwargs)
        with self._compiling:
            if shape not in self._shapes and len(self._shapes) == MAX_SHAPES:
                raise DeployError(
                    f"deploy: engine 'compile' has compiled {MAX_SHAPES} input shapes; torch compiles no more for "
                    "one network. Use few shapes (pad the last batch), or engine='torch'."
                )
            answer = self.module(*args, **kwargs)
            self._shapes.add(shape)
            return answer


def _plain(x: Tensor) -> Tensor:
    """As torch compiled for: it would compile anew for other strides, and for tensors of inference mode."""
    x = x.contiguous()
    return x.clone() if x.is_inference() else x


def _key(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """All that torch compiles anew for."""
    return (torch.get_num_threads(), *(tuple(x.shape) for x in tensors))
