"""Adaptive average pooling to one value per channel → a mean."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vared2_fx.passes.deploy.inside import replace_modules
from vared2_fx.passes.roles import is_one


class Mean(nn.Module):
    """The mean of each channel over time and space."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C, T, H, W) → (…, C, 1, 1, 1)."""
        return x.mean((-3, -2, -1), keepdim=True)


def mean_pools(gm: fx.GraphModule) -> fx.GraphModule:
    """Put a mean in place of adaptive pooling to one value per channel; the same function.

    Of a map with permuted axes torch decomposes the pooling into a mean and `as_strided`, which OpenVINO 2026.4 gets
    wrong where sizes are free: it gives as many values as there are frames.
    """
    out = replace_modules(gm, _mean)
    for node in out.graph.find_nodes(op="call_function", target=F.adaptive_avg_pool3d):
        if is_one(node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else None)):
            x = node.kwargs.get("input", node.args[0] if node.args else None)
            node.target, node.args, node.kwargs = torch.mean, (x, (-3, -2, -1)), {"keepdim": True}
    out.recompile()
    return out


def _mean(module: nn.Module) -> nn.Module | None:
    pools = isinstance(module, nn.AdaptiveAvgPool3d) and is_one(module.output_size)
    return Mean().train(module.training) if pools else None
