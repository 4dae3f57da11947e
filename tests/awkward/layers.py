"""Awkward networks: what their layers are. Each maps (N, 3, T, H, W) to maps."""

import warnings

import torch
import torch.nn.functional as F
from structures import Base, conv
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def between(*layers: nn.Module, channels: int = 8) -> nn.Module:
    """The layers after a convolution to 8 channels, and before one that has `channels`."""
    return nn.Sequential(conv(3, 8), *layers, conv(channels, 8))


def quietly(make, *args: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated forms, of which published networks are made
        return make(*args)


class FrozenBatchNorm(nn.Module):
    """As detection networks have it: buffers, and no statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in {"weight": 1.5, "bias": 0.1, "running_mean": 0.3, "running_var": 2.0}.items():
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1, 1) + shift.view(1, -1, 1, 1, 1)


def frozen_norm() -> nn.Module:
    norm = nn.BatchNorm3d(8).eval().requires_grad_(False)
    norm.running_mean.uniform_(-1, 1)
    return norm


class ChannelsLastNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


class SamePadding(nn.Conv3d):
    """Pads by what its input needs."""

    def forward(self, x: Tensor) -> Tensor:
        sizes = zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True)
        needed = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in sizes]
        return super().forward(F.pad(x, [side for total in needed for side in (total // 2, total - total // 2)]))


class Standardized(nn.Conv3d):
    """Weight standardisation, written into `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True)
        return F.conv3d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Functional(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(self.a(x), self.b.weight, self.b.bias, padding=1)


class Half(Base):
    """One part in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.b.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).half()).float()


class Complex(Base):
    def __init__(self) -> None:
        super().__init__()
        self.b = conv(8, 8, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(torch.complex(x, x)).abs()


def tied() -> nn.Module:
    model = between(conv(8, 8))
    model[2].weight = model[1].weight
    return model


def lazy() -> nn.Module:
    model = between(nn.LazyConv3d(8, 3, padding=1))
    model(torch.zeros(1, 3, 4, 8, 8))
    return model


def hooked() -> nn.Module:
    model = between(conv(8, 8))
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    return model


def hooked_block() -> nn.Module:
    model = between(nn.Sequential(conv(8, 8)))
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    model[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


def constant(value: float) -> nn.Module:
    model = between(conv(8, 8))
    nn.init.constant_(model[1].weight, value)
    return model


LAYERS = {
    "dilation in time": lambda: between(conv(8, 8, (3, 1, 1), dilation=(2, 1, 1), padding=(2, 0, 0))),
    "stride in time": lambda: between(conv(8, 8, stride=(2, 1, 1)), conv(8, 8, (3, 1, 1), stride=(3, 1, 1))),
    "stride beyond its kernel": lambda: between(conv(8, 8, 1, stride=3)),
    "kernel longer than the clip": lambda: between(conv(8, 8, (9, 1, 1))),
    "padding wider than its kernel": lambda: between(conv(8, 8, 1, padding=2)),
    "same": lambda: between(conv(8, 8, padding="same"), conv(8, 8, padding="valid")),
    "depthwise, twice as many": lambda: between(conv(8, 16, groups=8), channels=16),
    "odd channels": lambda: between(conv(8, 13), conv(13, 9, bias=False), channels=9),
    "frozen batch norm": lambda: between(FrozenBatchNorm(8), frozen_norm()),
    "norms without statistics": lambda: between(nn.BatchNorm3d(8, track_running_stats=False), nn.InstanceNorm3d(8)),
    "other norms": lambda: between(nn.GroupNorm(2, 8), ChannelsLastNorm(), nn.SyncBatchNorm(8)),
    "tied weights": tied,
    "ran lazily": lazy,
    "hooked block": hooked_block,
    "zero weights": lambda: constant(0.0),
    "half inside": Half,
    "double": lambda: between(nn.ReLU()).double(),
    "bfloat16": lambda: between(nn.ReLU()).bfloat16(),
    "in place activations": lambda: between(nn.ReLU(inplace=True), conv(8, 8), nn.Hardswish(inplace=True)),
    "frozen weights": lambda: between(conv(8, 8)).requires_grad_(False),
    "collapsing": lambda: nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool3d((1, None, None)), conv(8, 8)),
}
"""All of their convolutions convert, but those that `STATIC` names."""

STATIC = {
    "kernel longer than the clip": {},
    "collapsing": {"2": "few_frames"},
    "stride in time": {"2": "few_frames", "3": "few_frames"},
    "reflecting": {"1": "padding"},
    "circular": {"1": "padding"},
    "uneven same": {"1": "padding"},
    "pads by itself": {"1": "custom_forward"},
    "standardises weights": {"1": "custom_forward"},
    "functional": {"conv3d": "functional"},
    "weight norm": {"1": "hooks"},
    "weight norm, parametrized": {"1": "parametrized"},
    "spectral norm": {"1": "hooks"},
    "transposed": {"1": "transposed"},
    "hooked": {"1": "hooks"},
    "complex": {"b": "dtype"},
}

LAYERS |= {
    "reflecting": lambda: between(conv(8, 8, padding_mode="reflect")),
    "circular": lambda: between(conv(8, 8, padding_mode="circular")),
    "uneven same": lambda: between(conv(8, 8, 2, padding="same")),
    "pads by itself": lambda: between(SamePadding(8, 8, 3, stride=2)),
    "standardises weights": lambda: between(Standardized(8, 8, 3, padding=1)),
    "functional": Functional,
    "weight norm": lambda: between(quietly(nn.utils.weight_norm, conv(8, 8))),
    "weight norm, parametrized": lambda: between(parametrizations.weight_norm(conv(8, 8))),
    "spectral norm": lambda: between(quietly(nn.utils.spectral_norm, conv(8, 8))),
    "transposed": lambda: between(nn.ConvTranspose3d(8, 8, 3, padding=1)),
    "hooked": hooked,
    "complex": Complex,
}
