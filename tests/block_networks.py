"""Small networks with blocks: residual, squeezing, concatenating, plain."""

import torch
from networks import make_clip, randomise_norms
from torch import Tensor, nn


def conv_norm(c_in: int, c_out: int, kernel: object, stride: object = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps sizes but for its stride, and its norm."""
    size = (kernel,) * 3 if isinstance(kernel, int) else kernel
    padding = tuple(k // 2 for k in size)
    return nn.Sequential(
        nn.Conv3d(c_in, c_out, size, stride=stride, padding=padding, groups=groups, bias=False), nn.BatchNorm3d(c_out)
    )


class SqueezeExcite(nn.Module):
    """One factor per channel, from the mean of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.fc1, self.fc2 = nn.Conv3d(channels, 4, 1), nn.Conv3d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → the same."""
        return x * self.fc2(self.fc1(self.pool(x)).relu()).sigmoid()


class Bottleneck(nn.Module):
    """A residual block, its middle convolution depthwise where `groups` says so."""

    def __init__(
        self, c_in: int, c_out: int, *, stride: int = 1, squeeze: bool = False, depthwise: bool = False
    ) -> None:
        super().__init__()
        inner = 16
        self.a, self.act_a = conv_norm(c_in, inner, (3, 1, 1)), nn.ReLU(inplace=True)
        self.b = conv_norm(inner, inner, 3, stride=(1, stride, stride), groups=inner if depthwise else 1)
        self.squeeze = SqueezeExcite(inner) if squeeze else nn.Identity()
        self.act_b, self.c = nn.SiLU(), conv_norm(inner, c_out, 1)
        self.shortcut = conv_norm(c_in, c_out, 1, stride=(1, stride, stride)) if c_in != c_out else None
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, T, H, W) → (N, C_out, T, H', W')."""
        y = self.c(self.act_b(self.squeeze(self.b(self.act_a(self.a(x))))))
        return self.act(y + (x if self.shortcut is None else self.shortcut(x)))


class Residual(nn.Module):
    """Two stages of two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8, (1, 3, 3), stride=(1, 2, 2)), nn.ReLU(inplace=True))
        self.stage1 = nn.Sequential(Bottleneck(8, 24, stride=2, squeeze=True, depthwise=True), Bottleneck(24, 24))
        self.stage2 = nn.Sequential(Bottleneck(24, 32, stride=2), Bottleneck(32, 32, squeeze=True))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, 5)."""
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3, 4)))


class Inception(nn.Module):
    """Branches between concatenations, one with a pooling along time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 8, (1, 3, 3), stride=(1, 2, 2))
        self.one = conv_norm(8, 8, 1)
        self.two = nn.Sequential(conv_norm(8, 12, 1), nn.ReLU(), conv_norm(12, 16, 3), nn.ReLU())
        self.three = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), conv_norm(8, 8, 1))
        self.last = conv_norm(32, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, 5)."""
        x = self.stem(x).relu()
        x = torch.cat([self.one(x), self.two(x), self.three(x)], dim=1)
        return self.head(self.last(x).relu().mean((2, 3, 4)))


class Plain(nn.Module):
    """A chain with poolings that halve time, as C3D's, with odd channels and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool1 = nn.Conv3d(3, 9, 3, padding=1), nn.MaxPool3d((1, 2, 2))
        self.conv2, self.conv2b = nn.Conv3d(9, 12, 3, padding=1), nn.Conv3d(12, 12, 3, padding=1, groups=3)
        self.pool2 = nn.MaxPool3d(2)
        self.conv3, self.conv3b = nn.Conv3d(12, 15, 3, padding=1), nn.Conv3d(15, 16, (3, 1, 1), padding=(1, 0, 0))
        self.pool3, self.head = nn.AdaptiveAvgPool3d(1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, 5)."""
        x = self.pool1(self.conv1(x).relu())
        x = self.pool2(self.conv2b(self.conv2(x).relu()).relu())
        x = self.pool3(self.conv3b(self.conv3(x).relu()).relu())
        return self.head(x.flatten(1))


class Strided(nn.Module):
    """A residual block that halves time, in an odd way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1))
        self.a, self.b = nn.Conv3d(8, 16, 3, stride=(2, 1, 1), padding=1), nn.Conv3d(16, 16, 3, padding=1)
        self.shortcut = nn.Conv3d(8, 16, 1, stride=(2, 1, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, 5)."""
        x = self.stem(x).relu()
        x = self.b(self.a(x).relu()) + self.shortcut(x)
        return self.head(x.relu().mean((2, 3, 4)))


NETWORKS = {kind.__name__: kind for kind in (Residual, Inception, Plain, Strided)}

CLIP = make_clip(4, 3, 8, 32, 32)


def block_net(name: str, seed: int = 0) -> nn.Module:
    """A network of `NETWORKS` in evaluation mode that no value of is at its initial one."""
    torch.manual_seed(seed)
    return randomise_norms(NETWORKS[name](), make_clip(2, 3, 8, 32, 32, seed=seed))
