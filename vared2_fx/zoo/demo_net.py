"""The project's own small network: knows the generated scenes, and comes with its weights.

Made to show what skipping frames brings: few, heavy 3x3x3 convolutions, most of them at the full temporal
resolution, in plain modules.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from vared2_fx.zoo.spec import Entry, Spec

WEIGHTS = Path(__file__).parent / "weights" / "vared2_demo.safetensors"
"""Made by `benchmarks/train_demo_net.py`."""


class Residual(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut; the first one may stride.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution and the shortcut, (T, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != (1, 1, 1) or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm3d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, T, H, W) -> (N, out_channels, T', H', W')."""
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))  # type: ignore[no-any-return]


class DemoNet(nn.Module):
    """A residual 3D network of nine convolutions for clips of 16 x 64 x 64.

    Args:
        num_classes: length of the answer.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 24, 3, stride=(1, 2, 2), padding=1, bias=False), nn.BatchNorm3d(24), nn.ReLU()
        )
        self.stage1 = Residual(24, 32, stride=(1, 2, 2))
        self.stage2 = Residual(32, 32)
        self.stage3 = Residual(32, 64, stride=(2, 2, 2))
        self.head = nn.Linear(2 * 64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) -> (N, num_classes) logits."""
        x = self.stage3(self.stage2(self.stage1(self.stem(x))))
        average, peak = x.mean((2, 3, 4)), x.amax((3, 4)).mean(2)  # the peak: objects are small
        return self.head(torch.cat([average, peak], dim=1))  # type: ignore[no-any-return]


def _build(*, num_classes: int, pretrained: bool) -> nn.Module:
    model = DemoNet(num_classes)
    if pretrained:
        from safetensors.torch import load_file  # here: only those who load weights pay for the import

        model.load_state_dict(load_file(WEIGHTS))
    return model


SPEC = Spec(
    name="vared2_demo",
    library="vared2_fx",
    frames=16,
    crop=64,
    short_side=72,
    sampling_rate=1,
    fps=16.0,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    num_classes=9,
)
"""Its classes are `vared2_fx.data.scenes.CLASSES`, at the frame rate of those scenes (tested)."""

ENTRIES: tuple[Entry, ...] = (Entry(spec=SPEC, build=_build, head="head", url=None),)
"""The network, as the zoo lists it."""
