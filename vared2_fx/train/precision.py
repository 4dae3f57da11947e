"""Reduced precision that is checked: convolutions that it gets wrong are computed in fp32 [ours].

N clips, C channels, T frames, H height, W width.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vared2_fx.tables import percent

log = logging.getLogger(__name__)

TOLERANCE = 0.1
"""Largest relative error. A correct bf16 convolution has 0.01 at most, the wrong ones that we met 2.5 and more."""

_PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

Call = dict[str, Any]
Signature = tuple[object, ...]


class CheckedConvs(TorchFunctionMode):
    """Inside the block every 3D convolution under autocast is checked once, when its shape is first met.

    On some processors the weight gradient of a 3×3×3 convolution over two frames is wrong in bf16, and such clips are
    what skipping frames makes; training is lost within a few steps. So output and both gradients of the shape are
    compared with fp32's, on this machine, for random clips and weights. A shape that fails is computed in fp32 from
    then on, and the log says so. Without autocast nothing is changed.
    """

    def __init__(self) -> None:
        """Begin with no shape known."""
        super().__init__()
        self.failed: dict[Signature, str] = {}
        """What is computed in fp32, and why."""
        self._passed: set[Signature] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv3d:
            return func(*args, **kwargs)
        call: Call = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
        device = call["input"].device.type
        if not torch.is_autocast_enabled(device) or self._is_right(func, call):
            return func(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            exact: Call = {key: value.float() if isinstance(value, Tensor) else value for key, value in call.items()}
            return func(**exact)

    def _is_right(self, func: Callable[..., Tensor], call: Call) -> bool:
        signature = _signature(call)
        if signature not in self._passed and signature not in self.failed:
            wrong = {name: error for name, error in relative_errors(func, call).items() if not error <= TOLERANCE}
            if not wrong:
                self._passed.add(signature)
            else:
                self.failed[signature] = _described(call, wrong)
                log.warning("%s", self.failed[signature])
        return signature in self._passed


def relative_errors(func: Callable[..., Tensor], call: Call) -> dict[str, float]:
    """How far autocast takes a convolution's output and gradients from fp32's, for random values in these shapes.

    Args:
        func: the convolution, with the parameters of `torch.conv3d`.
        call: its arguments; "input" is (N, C, T, H, W).

    Returns:
        ‖difference‖ / ‖fp32's‖ of "output", "input gradient" and "weight gradient"; infinite for what is not finite.
    """
    like: Tensor = call["input"]
    generator = torch.Generator(like.device).manual_seed(0)  # its own: the run's random numbers stay what they are

    def drawn(shape: Tensor) -> Tensor:
        return torch.empty_like(shape, dtype=torch.float32, requires_grad=False).normal_(generator=generator)

    def kept(tensor: Tensor) -> Tensor:
        return tensor

    # The hooks keep the check out of sight of gradient checkpointing, which would look for it when it recomputes.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(kept, kept):
        values = [drawn(like.detach()[:2]).requires_grad_(), drawn(call["weight"].detach()).requires_grad_()]
        rest = {key: call[key] for key in _PARAMETERS[3:] if key in call}
        results, pull = [], None
        for enabled in (False, True):
            with torch.autocast(like.device.type, enabled=enabled):
                output = func(*values, None, **rest)
            pull = drawn(output.detach()) if pull is None else pull
            gradients = torch.autograd.grad(output, values, pull.to(output.dtype))
            results.append([tensor.detach().float() for tensor in (output, *gradients)])
    names = ("output", "input gradient", "weight gradient")
    return {name: _relative(a, b) for name, a, b in zip(names, results[1], results[0], strict=True)}


def _relative(value: Tensor, exact: Tensor) -> float:
    error = float((value - exact).norm() / exact.norm().clamp_min(1e-12))
    return error if math.isfinite(error) else math.inf


def _signature(call: Call) -> Signature:
    settings = (str(call.get(key)) for key in _PARAMETERS[3:])
    return tuple(call["input"].shape[1:]), tuple(call["weight"].shape), *settings


def _described(call: Call, wrong: dict[str, float]) -> str:
    kernel = "×".join(map(str, call["weight"].shape[2:]))
    shown = {name: percent(error) if math.isfinite(error) else "∞" for name, error in wrong.items()}
    what = ", ".join(f"the {name} by {error}" for name, error in shown.items())
    return (
        f"mixed precision: this device gets a {kernel} convolution over {tuple(call['input'].shape[1:])} wrong, "
        f"{what}; it is computed in fp32."
    )
