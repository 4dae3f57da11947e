"""Tracing for deployment: deeper than for conversion."""

from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vared2_fx.layers import SlimConv, SlimNorm
from vared2_fx.passes.leaves import UNITS
from vared2_fx.passes.nesting import nesting_of
from vared2_fx.passes.shapes import measure_shapes
from vared2_fx.passes.trace import trace
from vared2_fx.passes.tracer import ConvTracer

_SETTLED = (SlimConv, SlimNorm)
"""Of a specialised block: nodes that `settle_variants` makes plain layers of."""


class DeployTracer(ConvTracer):
    """Traces into a module also as far as there are batch norms inside, so that each is seen behind its convolution.

    For conversion `Sequential(BatchNorm3d, Identity)`, as in X3D, is one node.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` stays one node."""
        if not super().is_leaf_module(m, module_qualified_name):
            return False
        if module_qualified_name in self.untraced or isinstance(m, (*UNITS, *_SETTLED, _BatchNorm)):
            return True
        return not any(isinstance(child, _BatchNorm) for child in m.modules())


def follow(own: nn.Module, args: tuple[Any, ...]) -> fx.GraphModule:
    """Trace a network in evaluation mode, and measure its shapes on `args`.

    Args:
        own: the network, a copy of the caller's: what tracing sets on it stays there.
        args: positional arguments that it runs on.

    Raises:
        ConvertError: it cannot be traced, or does not run on `args`.
    """
    gm = trace(own.eval(), nesting_of(args), num_given=len(args), tracer=DeployTracer)
    return measure_shapes(gm, args)
