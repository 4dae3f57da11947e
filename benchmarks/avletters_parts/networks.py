"""Small video networks for grey clips: a 3D ResNet, an X3D and an R(2+1)D."""

import torch
from pytorchvideo.models.x3d import create_x3d
from torch import Tensor, nn

NAMES = ("resnet", "x3d", "r2plus1d")


def make_network(name: str, *, num_classes: int, width: int = 16) -> nn.Module:
    """Build one of `NAMES` with random weights; (N, 1, T, H, W) of any size → (N, num_classes).

    `width` is the channels of the first stage, of the ResNets alone.
    """
    if name == "x3d":
        network = create_x3d(
            input_channel=1,
            input_clip_length=16,
            input_crop_size=64,
            model_num_class=num_classes,
            width_factor=1.0,
            depth_factor=1.0,
            head_dim_out=256,
            head_activation=None,
            dropout_rate=0.2,
        )
        network.blocks[-1].pool.pool = nn.AdaptiveAvgPool3d(1)  # its own takes no fewer frames, nor smaller pictures
        return network
    return ResNet3D(num_classes, width, factored=name == "r2plus1d")


class ResNet3D(nn.Module):
    """Stem and three stages of two blocks; every frame is kept to the end."""

    def __init__(self, num_classes: int, width: int, *, factored: bool) -> None:
        """`factored` puts a 1×3×3 and a 3×1×1 convolution in place of each 3×3×3 one."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(1, width, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        self.stage1 = _stage(width, width, 1, factored)
        self.stage2 = _stage(width, 2 * width, 2, factored)
        self.stage3 = _stage(2 * width, 4 * width, 2, factored)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        features = self.stage3(self.stage2(self.stage1(self.stem(clips))))
        return self.head(self.dropout(features.mean((2, 3, 4))))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, factored: bool) -> None:
        """`stride` is that of height and width."""
        super().__init__()
        self.conv1 = _conv(in_channels, channels, stride, factored)
        self.norm1 = nn.BatchNorm3d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(channels, channels, 1, factored)
        self.norm2 = nn.BatchNorm3d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            pointwise = nn.Conv3d(in_channels, channels, 1, (1, stride, stride), bias=False)
            self.shortcut = nn.Sequential(pointwise, nn.BatchNorm3d(channels))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(torch.add(branch, self.shortcut(x)))


def _stage(in_channels: int, channels: int, stride: int, factored: bool) -> nn.Sequential:
    return nn.Sequential(Block(in_channels, channels, stride, factored), Block(channels, channels, 1, factored))


def _conv(in_channels: int, channels: int, stride: int, factored: bool) -> nn.Module:
    if not factored:
        return nn.Conv3d(in_channels, channels, 3, (1, stride, stride), 1, bias=False)
    return nn.Sequential(
        nn.Conv3d(in_channels, channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
        nn.BatchNorm3d(channels),
        nn.ReLU(),
        nn.Conv3d(channels, channels, (3, 1, 1), 1, (1, 0, 0), bias=False),
    )
