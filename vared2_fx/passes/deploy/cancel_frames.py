"""Frames that are rebuilt and then not read, or read only in their mean."""

import torch
from torch import Tensor, fx, nn

from vared2_fx.layers import BlockGeometry, FrameRebuild, FrameReturn, FrameSkip
from vared2_fx.layers.geometry import computed_frames, is_known
from vared2_fx.passes.roles import Role, roles
from vared2_fx.passes.trace import calls, fork, module_of


class FrameCrop(nn.Module):
    """Of the frames that a region computed, those that the next one reads: all, or all but the last."""

    def __init__(self, stride: int, geometry: BlockGeometry) -> None:
        """Of a region with `geometry`, computed at frame stride R = `stride`."""
        super().__init__()
        self.stride, self.geometry = stride, geometry

    def forward(self, computed: Tensor, x: Tensor) -> Tensor:
        """(N, C, I, H, W) and the region's input (N, C_in, T_in, H_in, W_in) → (N, C, I', H, W), a view."""
        num_frames = self.geometry.out_frames(x.shape[2])
        if is_known(num_frames):
            return computed[:, :, : len(computed_frames(num_frames, self.stride))]
        return computed[:, :, : (num_frames + self.stride - 2) // self.stride]


class FrameMean(nn.Module):
    """The mean over all frames of a region's output, from the mean of those it computed: Φt of `repeat` is linear."""

    def __init__(self, rebuild: FrameRebuild) -> None:
        """Average the phases of Φt."""
        super().__init__()
        scale, bias, _ = rebuild.phases()
        shape = (1, scale.shape[1], 1, 1, 1)
        self.register_buffer("scale", scale.detach().mean(0).view(shape))
        self.register_buffer("bias", bias.detach().mean(0).view(shape))

    def forward(self, mean: Tensor) -> Tensor:
        """(N, C, 1, H, W) → the same shape."""
        assert isinstance(self.scale, Tensor)
        assert isinstance(self.bias, Tensor)
        return torch.addcmul(self.bias, mean, self.scale)


def cancel_frames(gm: fx.GraphModule) -> fx.GraphModule:
    """Hand on compact maps where the rebuilt frames would be skipped again, or averaged.

    Behind a `FrameReturn`: a `FrameSkip` with the same R reads the computed frames and no other. A mean over all of
    time and space, or an average pooling over all frames, is that of the computed ones, scaled (frames come in whole
    groups of R, and Φt is `repeat`).

    Needs: shapes.
    """
    out = fork(gm)
    found = roles(out)
    for node in calls(out, FrameReturn):
        back = module_of(out, node)
        for user in list(node.users):
            if user.op == "call_module" and isinstance(module_of(out, user), FrameSkip):
                _skip(out, node, user, back)
            elif _averages(out, found, node, user):
                _average(out, node, user, back)
        for user in [user for user in node.users if user.args[1:] == (node,) and user.args[0] is not node]:
            _count_from_afar(out, node, user, back)
        if not node.users:
            out.graph.erase_node(node)
    out.delete_all_unused_submodules()
    out.graph.lint()
    out.recompile()
    return out


def _skip(out: fx.GraphModule, node: fx.Node, user: fx.Node, back: FrameReturn) -> None:
    if module_of(out, user).stride != back.rebuild.stride:
        return
    computed, x = node.args
    assert isinstance(computed, fx.Node)
    if back.geometry.keeps_frames:
        user.replace_all_uses_with(computed)
        out.graph.erase_node(user)
    else:
        out.set_submodule(str(user.target), FrameCrop(back.rebuild.stride, back.geometry))
        user.args = (computed, x)


def _count_from_afar(out: fx.GraphModule, node: fx.Node, user: fx.Node, back: FrameReturn) -> None:
    """Let a later region, which only asks how many frames it was given, ask the input of this one."""
    if user.op != "call_module" or not isinstance(later := module_of(out, user), (FrameReturn, FrameCrop)):
        return
    geometry = back.geometry.then(later.geometry)
    kept = FrameReturn(later.rebuild, geometry) if isinstance(later, FrameReturn) else FrameCrop(later.stride, geometry)
    out.set_submodule(str(user.target), kept)
    user.args = (user.args[0], node.args[1])


def _averages(out: fx.GraphModule, found: dict[fx.Node, Role], node: fx.Node, user: fx.Node) -> bool:
    """Whether `user` takes the mean over all frames that `node` returns, in whole groups."""
    if module_of(out, node).rebuild.next_scale is not None or not in_whole_groups(out, node):
        return False
    frames = node.meta["shape"][2]
    if user.op == "call_module" and isinstance(module_of(out, user), nn.AvgPool3d):
        pool, role = module_of(out, user), found[user]
        plain = role.kind == "pool" and not any(_three(pool.padding)) and pool.divisor_override is None
        once = len(out.graph.find_nodes(op="call_module", target=str(user.target))) == 1
        return plain and once and _three(pool.kernel_size)[0] == frames
    is_max = user.op == "call_module" and isinstance(module_of(out, user), nn.AdaptiveMaxPool3d)
    return found[user].kind == "squeeze" and not is_max


def in_whole_groups(out: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a `FrameReturn` makes R frames of each that it is given, and leaves none out."""
    computed = node.args[0]
    assert isinstance(computed, fx.Node)
    return bool(node.meta["shape"][2] == computed.meta["shape"][2] * module_of(out, node).rebuild.stride)


def _average(out: fx.GraphModule, node: fx.Node, user: fx.Node, back: FrameReturn) -> None:
    computed = node.args[0]
    assert isinstance(computed, fx.Node)
    if user.op == "call_module" and isinstance(pool := module_of(out, user), nn.AvgPool3d):
        (_, height, width), (_, *steps) = _three(pool.kernel_size), _three(pool.stride)
        frames = int(computed.meta["shape"][2])
        out.set_submodule(str(user.target), nn.AvgPool3d((frames, height, width), (1, steps[0], steps[1])))
    user.replace_input_with(node, computed)
    name = f"{str(node.target).removesuffix('_frame_return')}_frame_mean"
    out.add_submodule(name, FrameMean(back.rebuild))
    with out.graph.inserting_after(user):
        mean = out.graph.call_module(name, (user,))
    mean.meta.update({key: user.meta[key] for key in ("shape", "dtype") if key in user.meta})
    user.replace_all_uses_with(mean, delete_user_cb=lambda reader, own=mean: reader is not own)  # type: ignore[misc]


def _three(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    t, h, w = value if isinstance(value, (tuple, list)) else (value,) * 3
    return t, h, w
