"""Seeing the 3D convolutions that are called as functions, wherever that happens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FunctionalConvs(TorchFunctionMode):
    """While active, notes each call of a 3D convolution; modules make such calls, too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []
        """Name of the function, and multiply-adds for the batch."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func`, and note what it was."""
        result = func(*args, **(kwargs or {}))
        if func in (torch.conv3d, torch.conv_transpose3d) and isinstance(result, Tensor):
            given = dict(zip(("input", "weight"), args, strict=False)) | dict(kwargs or {})
            values = result if func is torch.conv3d else given["input"]  # each takes part once per weight of a filter
            self.found.append((func.__name__, values.numel() * given["weight"][0].numel()))
        return result
