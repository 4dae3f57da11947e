"""The operators in which a static graph returns frames: each engine has one that it runs well.

N clips, C channels, T frames (I of them computed, T = I·R), H height, W width.
"""

import operator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vared2_fx.layers import FrameReturn
from vared2_fx.passes.deploy.cancel_frames import in_whole_groups
from vared2_fx.passes.roles import is_map
from vared2_fx.passes.trace import calls, fork, module_of

FrameForm = Literal["resize", "broadcast", "laid"]
"""`resize`: nearest-neighbour resize along time, then product and sum with a constant per channel and frame; for
OpenVINO. `broadcast`: where the map is added to another, the sum of that one's groups of R frames with the
computed one, so that the frames are never written on their own; else the computed ones R times side by side; for
onnxruntime, which resizes slowly. `laid`: the same sum with the axes in the order of `channels_last_3d`, in which
torch's runs through memory once; else as `resize`; for torch's own."""


class ResizedFrames(nn.Module):
    """Φt at a known number of frames, by resizing."""

    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, back: FrameReturn, num_frames: int) -> None:
        """Do what `back` does where its output has `num_frames`, a multiple of R."""
        super().__init__()
        rebuild = back.rebuild
        self.stride = rebuild.stride
        tables = _along_frames(back, num_frames)
        self.register_buffer("scale", None if tables is None else tables[0])
        self.register_buffer("bias", None if tables is None else tables[1])

    def forward(self, computed: Tensor) -> Tensor:
        """(N, C, I, H, W) → (N, C, T, H, W)."""
        y = F.interpolate(computed, scale_factor=(float(self.stride), 1.0, 1.0), mode="nearest")
        return y if self.scale is None or self.bias is None else y * self.scale + self.bias


class PhasedFrames(nn.Module):
    """Φt at whole groups of frames, with a table of what each frame of a group is scaled by and shifted."""

    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, back: FrameReturn) -> None:
        """Do what `back` does; without tables where it holds frames as they are."""
        super().__init__()
        self.stride = back.rebuild.stride
        scale, bias, _ = back.rebuild.phases()
        holds = back.rebuild.kind == "hold"
        for name, table in (("scale", scale), ("bias", bias)):
            self.register_buffer(name, None if holds else self._shaped(table.detach().roll(1, 0)).clone())

    def _shaped(self, table: Tensor) -> Tensor:
        """(R, C) as the maps have their axes."""
        return table.t()[None, :, None, :, None, None]


class StackedFrames(PhasedFrames):
    """The computed frames side by side: `broadcast`."""

    def forward(self, computed: Tensor) -> Tensor:
        """(N, C, I, H, W) → (N, C, T, H, W)."""
        y = torch.stack([computed] * self.stride, dim=3)
        if self.scale is not None and self.bias is not None:
            y = torch.addcmul(self.bias, y, self.scale)
        return y.flatten(2, 3)


class AddedFrames(PhasedFrames):
    """A map plus one whose frames are returned, without ever writing those: `broadcast`."""

    def forward(self, computed: Tensor, other: Tensor) -> Tensor:
        """(N, C, I, H, W) and (N, C, T, H, W) → (N, C, T, H, W)."""
        groups: Tensor = torch.unflatten(other, 2, (computed.shape[2], self.stride))
        if self.scale is None or self.bias is None:
            return (groups + computed.unsqueeze(3)).flatten(2, 3)
        return torch.addcmul(groups, computed.unsqueeze(3), self.scale).add_(self.bias).flatten(2, 3)


class LaidFrames(PhasedFrames):
    """As `AddedFrames`, of maps in `channels_last_3d`: right for any other layout too, but slow there."""

    def _shaped(self, table: Tensor) -> Tensor:
        return table[:, None]

    def forward(self, computed: Tensor, other: Tensor) -> Tensor:
        """(N, C, I, H, W) and (N, C, T, H, W) → (N, C, T, H, W)."""
        n, c, t, h, w = other.shape
        groups = other.permute(0, 2, 3, 4, 1).reshape(n * computed.shape[2], self.stride, h * w, c)
        frames = computed.permute(0, 2, 3, 4, 1).reshape(n * computed.shape[2], 1, h * w, c)
        if self.scale is None or self.bias is None:
            y = groups + frames
        else:
            y = torch.addcmul(groups, frames, self.scale).add_(self.bias)
        return y.view(n, t, h, w, c).permute(0, 4, 1, 2, 3)


def frame_forms(gm: fx.GraphModule, *, form: FrameForm) -> fx.GraphModule:
    """Write every `FrameReturn` in `form`, where frames come in whole groups of R and Φt is `hold` or `repeat`.

    The graph then is one for the number of frames that it was measured with.

    Needs: shapes.
    """
    out = fork(gm)
    for node in calls(out, FrameReturn):
        back, num_frames = module_of(out, node), node.meta["shape"][2]
        if back.rebuild.next_scale is not None or not in_whole_groups(out, node):
            continue
        computed = node.args[0]
        if form != "resize" and len(node.users) == 1 and (other := _added(user := next(iter(node.users)), node)):
            out.set_submodule(str(node.target), AddedFrames(back) if form == "broadcast" else LaidFrames(back))
            with out.graph.inserting_before(user):
                joined = out.graph.call_module(str(node.target), (computed, other))
            joined.meta.update(user.meta)
            user.replace_all_uses_with(joined)
            out.graph.erase_node(user)
            out.graph.erase_node(node)
        else:
            alone = StackedFrames(back) if form == "broadcast" else ResizedFrames(back, num_frames)
            out.set_submodule(str(node.target), alone)
            node.args = (computed,)
    out.graph.lint()
    out.recompile()
    return out


def _added(user: fx.Node, node: fx.Node) -> fx.Node | None:
    """The map that `user` adds to `node`, of the same shape."""
    sums = (operator.add, operator.iadd, torch.add, "add", "add_")
    if user.target not in sums or len(user.args) != 2 or user.kwargs:
        return None
    others = [arg for arg in user.args if arg is not node]
    other = others[0] if len(others) == 1 else None
    if not isinstance(other, fx.Node) or not is_map(other) or other.meta["shape"] != node.meta["shape"]:
        return None
    writes_over_other = user.target in (operator.iadd, "add_") and user.args[0] is other
    return None if writes_over_other else other


def _along_frames(back: FrameReturn, num_frames: int) -> tuple[Tensor, Tensor] | None:
    """Scale and bias of each channel and frame, (1, C, T, 1, 1) each; None where frames are held as they are."""
    if back.rebuild.kind == "hold":
        return None
    scale, bias, _ = back.rebuild.phases()
    phases = (torch.arange(num_frames, device=scale.device) - 1) % back.rebuild.stride
    tables = (table.detach()[phases].t()[None, :, :, None, None].contiguous() for table in (scale, bias))
    first, second = tables
    return first, second
