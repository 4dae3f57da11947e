"""A dynamic convolution for a place that no graph reaches: it asks its gate itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from vared2_fx.layers.conv import DynamicConv
from vared2_fx.layers.region import Decision

Record = list[tuple[DynamicConv, Decision]]

_record: ContextVar[Record | None] = ContextVar("vared2_fx_record", default=None)


@contextmanager
def recorded_decisions() -> Iterator[Record]:
    """Collect what every `SelfGated` decides inside the block, in this thread only, in the order of its calls."""
    found: Record = []
    token = _record.set(found)
    try:
        yield found
    finally:
        _record.reset(token)


class SelfGated(nn.Module):
    """A region together with its gate, called like the convolution that it stands for.

    Everywhere else gate and decision are values of the graph. Inside a module that torch.fx could not follow there
    is no graph, so gate and region are run by one call, which hands the decision to whoever records.
    """

    def __init__(self, region: DynamicConv) -> None:
        """Wrap `region`; its mode becomes this module's."""
        super().__init__()
        self.region = region
        self.training = region.training

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, T_in, H_in, W_in) → (N, C, T, H, W); the argument has the name that `nn.Conv3d` gives it."""
        weights = self.region.gate(input)
        if (record := _record.get()) is not None:
            record.append((self.region, Decision(weights, *self.region.cost(input))))
        y: Tensor = self.region(input, weights)
        return y

    def __getattr__(self, name: str) -> Any:
        """What the convolution has (`weight`, `stride`, …), for code that looks at it instead of calling it."""
        modules = self.__dict__.get("_modules", {})
        if name == "region" or "region" not in modules:
            return super().__getattr__(name)
        return getattr(modules["region"].body, name)
