"""`channels_last_3d`, in which torch's own convolutions run on the processor, from the front of a network to its end.

N clips, C channels, T frames, H height, W width.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from vared2_fx.passes.deploy.inside import replace_modules, shallow_copy
from vared2_fx.passes.trace import kept_call

_CONVS = (nn.Conv3d, nn.ConvTranspose3d)


def channels_last(gm: fx.GraphModule) -> fx.GraphModule:
    """Lay the weights of 3D convolutions, and what the network is given, in `channels_last_3d`.

    Values stay what they are. Between the front and the end nothing is converted: torch's operators hand the layout on.
    """
    out = replace_modules(gm, _laid)
    for node in out.graph.find_nodes(op="placeholder"):
        with out.graph.inserting_after(node):
            laid = kept_call(out.graph, lay_clips, (node,))
        laid.meta.update({key: node.meta[key] for key in ("shape", "dtype") if key in node.meta})
        node.replace_all_uses_with(laid, delete_user_cb=lambda user, laid=laid: user is not laid)
    out.graph.lint()
    out.recompile()
    return out


def lay_clips(value: Any) -> Any:
    """`value` with each (N, C, T, H, W) in it laid in `channels_last_3d`; containers are new ones."""
    return tree_map_only(Tensor, _lay, value)


def _lay(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d) if x.dim() == 5 else x


def _laid(module: nn.Module) -> nn.Module | None:
    if not isinstance(module, _CONVS) or module.weight.is_contiguous(memory_format=torch.channels_last_3d):
        return None
    new = shallow_copy(module)
    new._parameters["weight"] = nn.Parameter(_lay(module.weight.detach()), requires_grad=False)
    return new
