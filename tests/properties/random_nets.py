"""Random small 3D CNNs: residual, concatenating, of several paths, grouped, with squeeze-excitation, of odd sizes."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from networks import make_clip, randomise_gates, randomise_norms, randomise_rebuilds
from torch import Tensor, fx, nn

import vared2_fx as vr

KERNELS = ((1, 1, 1), (3, 3, 3), (3, 1, 1), (1, 3, 3), (2, 3, 1), (5, 1, 1))


@dataclass(frozen=True)
class Layer:
    """What a convolution with its norm and activation is made of; `kind` says how its block joins it to the input."""

    kind: str
    out: int
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation: int
    groups: int
    bias: bool
    norm: bool
    act: str


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    return Layer(
        kind=draw(st.sampled_from(("plain", "residual", "concat", "paths", "excite"))),
        out=groups * draw(st.integers(1, 5)),
        kernel=draw(st.sampled_from(KERNELS)),
        stride=draw(st.sampled_from(((1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)))),
        dilation=draw(st.sampled_from((1, 1, 2))),
        groups=groups,
        bias=draw(st.booleans()),
        norm=draw(st.booleans()),
        act=draw(st.sampled_from(("relu", "silu", "tanh", "none"))),
    )


def unit(layer: Layer, c_in: int, c_out: int, stride: tuple[int, int, int], groups: int) -> nn.Sequential:
    padding = tuple(layer.dilation * (k // 2) for k in layer.kernel)  # never less than the kernel needs
    conv = nn.Conv3d(
        c_in, c_out, layer.kernel, stride, padding, dilation=layer.dilation, groups=groups, bias=layer.bias
    )
    acts = {"relu": nn.ReLU(inplace=True), "silu": nn.SiLU(), "tanh": nn.Tanh(), "none": nn.Identity()}
    return nn.Sequential(conv, nn.BatchNorm3d(c_out) if layer.norm else nn.Identity(), acts[layer.act])


class Block(nn.Module):
    """One layer, joined to its input."""

    def __init__(self, layer: Layer, c_in: int) -> None:
        super().__init__()
        self.kind, self.c_out = layer.kind, layer.out
        self.entry = nn.Conv3d(c_in, layer.out, 1) if c_in % layer.groups else nn.Identity()
        c_mid = layer.out if c_in % layer.groups else c_in
        self.main = unit(layer, c_mid, layer.out, layer.stride, layer.groups)
        if layer.kind in ("residual", "concat", "paths"):
            self.side = unit(layer, c_in, layer.out, layer.stride, 1)
        if layer.kind == "excite":
            self.squeeze = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(layer.out, layer.out, 1), nn.Sigmoid())
        if layer.kind in ("concat", "paths"):
            self.c_out = 2 * layer.out

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(self.entry(x))
        if self.kind == "residual":
            return y + self.side(x)
        if self.kind == "concat":
            return torch.cat([y, self.side(x)], 1)
        if self.kind == "paths":
            return torch.cat([y.relu(), (y * 0.5 + self.side(x)).sigmoid()], 1)
        return y * self.squeeze(y) if self.kind == "excite" else y


class RandomNet(nn.Module):
    def __init__(self, drawn: tuple[Layer, ...]) -> None:
        super().__init__()
        channels, blocks = 3, []
        for layer in drawn:
            blocks.append(Block(layer, channels))
            channels = blocks[-1].c_out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3, 4)))


@st.composite
def drawn_nets(draw: st.DrawFn) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """Layers of a network, and the size (T, H, W) of clips that it runs on."""
    drawn = tuple(draw(st.lists(layers(), min_size=1, max_size=4)))
    return drawn, tuple(draw(st.integers(low, high)) for low, high in ((9, 13), (9, 14), (9, 14)))


def clips_of(size: tuple[int, ...]) -> Tensor:
    """A batch of three."""
    return make_clip(3, 3, *size, dtype=torch.float64)


@st.composite
def configs(draw: st.DrawFn) -> vr.ConvertConfig:
    return vr.ConvertConfig(
        gate=draw(st.sampled_from(("softmax", "gumbel", "soft_modulation"))),
        frame_strides=draw(st.sampled_from(((1, 2, 4), (1, 3), (1, 2, 4, 8)))),
        channel_shares=draw(st.sampled_from(((1.0, 0.5), (1.0, 0.7, 0.3), (1.0,)))),
        frame_rebuild=draw(st.sampled_from(("repeat", "interpolate"))),
        channel_rebuild=draw(st.sampled_from(("scale", "depthwise"))),
        min_channels=1,
        min_frames=1,
        min_macs_share=0.0,
    )


def build(drawn: tuple[Layer, ...], clips: Tensor, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network, in evaluation mode, no value of it at its initial one."""
    torch.manual_seed(0)
    return randomise_norms(RandomNet(drawn), clips.float()).to(dtype)


def deciding(dynamic: fx.GraphModule, clips: Tensor) -> fx.GraphModule:
    """Let gates and cheap operations be anything."""
    return randomise_gates(randomise_rebuilds(dynamic), clips)
