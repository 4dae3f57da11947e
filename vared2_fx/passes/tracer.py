"""The tracer: what it follows, what it keeps whole, what it refuses because a graph would not hold it."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from vared2_fx.errors import ConvertError
from vared2_fx.modes import same_attributes
from vared2_fx.passes.hooks import has_hooks
from vared2_fx.passes.leaves import UNITS
from vared2_fx.passes.nesting import Nesting, taken_apart
from vared2_fx.passes.untraced import Untraced, is_assertion, is_torchs


class ConvTracer(fx.Tracer):
    """Traces into a module only as far as there are 3D convolutions inside.

    Whatever holds none stays one node: it is not ours to change, its control flow need not be followed, and what
    it does in training (dropout, stochastic depth) goes on following its mode instead of being frozen. Except for
    what is called with a list or dict: it may write into it, which the code around it may count on.

    An `assert` becomes a node that checks, whenever the graph runs, what the original checks.
    """

    proxy_buffer_attributes = True  # or what forward computes of buffers would be computed now, and kept for ever

    def __init__(self, untraced: Mapping[str, Untraced] | None = None, nesting: Nesting = ()) -> None:
        """Keep the modules at the paths `untraced` whole; `nesting` is that of the arguments."""
        super().__init__()
        self.untraced, self.nesting = untraced or {}, nesting
        self._failure: tuple[Exception, str] | None = None
        self._called_with_lists = False

    def failed_in(self, exc: Exception) -> str:
        """Path of the innermost module that `exc` came out of; empty for the network itself."""
        return self._failure[1] if self._failure is not None and self._failure[0] is exc else ""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Trace `root`; its attributes are afterwards what they were.

        Raises:
            ConvertError: its forward assigns a buffer anew.
        """
        self._autocast = _autocast()
        if not isinstance(root, nn.Module):
            return super().trace(root, concrete_args)
        with same_attributes(root, keep=lambda value: not isinstance(value, fx.Proxy)):  # torch.fx puts constants there
            graph = super().trace(root, concrete_args)
            self._no_assignment(root)
            return graph

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Note an operation; refuse it where its surroundings would be lost."""
        if _autocast() != self._autocast:
            raise ConvertError("it switches torch.autocast, which a graph does not hold")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` stays one node."""
        if isinstance(m, UNITS) or module_qualified_name in self.untraced:
            return True
        if self._called_with_lists:
            return False
        if type(m) is nn.Sequential and not has_hooks(m):
            return False  # so that the norm inside is seen by what looks for blocks
        if super().is_leaf_module(m, module_qualified_name):
            return True
        return not any(isinstance(child, UNITS) for child in m.modules())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follow a call, and remember what could not be followed."""
        self._called_with_lists = any(isinstance(x, (list, dict)) for x in (*args, *kwargs.values()))
        followed = not self.is_leaf_module(m, self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as exc:
            if followed and (self._failure is None or self._failure[0] is not exc):
                self._failure = exc, self.path_of_module(m)
            raise

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Hand the forward function lists, tuples and dicts of its own where it is given such."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for i, nested in enumerate(self.nesting[: len(args) - 1], start=1):  # the first is the module
            args[i] = taken_apart(args[i], nested)
        return function, args

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Follow an `assert`; refuse every other decision on a value, as torch.fx does."""
        frame = sys._getframe(1)
        while frame.f_back is not None and is_torchs(frame):
            frame = frame.f_back
        if not is_assertion(frame):
            return super().to_bool(obj)
        where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        self.create_proxy("call_function", torch._assert, (obj, f"assertion of the original network at {where}"), {})
        return True

    def _no_assignment(self, root: nn.Module) -> None:
        for path, module in root.named_modules():
            for name, value in module._buffers.items():
                if isinstance(value, fx.Proxy):
                    place = f"{path}.{name}".lstrip(".")
                    exc = ConvertError(f"it assigns the buffer `{place}` anew, which a graph does not hold")
                    self._failure = exc, path
                    raise exc


def _autocast() -> tuple[object, ...]:
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))
