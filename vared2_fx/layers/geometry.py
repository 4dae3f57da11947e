"""Sizes and multiply-adds of a 3D convolution of which only a part is computed.

N clips, C channels, T frames, H height, W width. R frame stride, r channel share.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vared2_fx.errors import ConvertError

Size = tuple[int, int, int]


class Choice(NamedTuple):
    """One way to compute a region: every `frame_stride`-th frame, `channel_share` of the channels."""

    frame_stride: int
    channel_share: float

    def __str__(self) -> str:
        return f"R={self.frame_stride} r={self.channel_share:g}"


FULL = Choice(1, 1.0)


def computed_frames(num_frames: int, stride: int) -> range:
    """Number the frames that are computed at frame stride R: all of T, or the second of every R (1, 1 + R, …).

    Ours; the paper's are 0, R, 2R, … as we understand it. The first frame of a padded convolution sees zeros in place
    of the frames before it, and would hand them on to R frames, in one layer after the other.
    """
    return range(int(stride > 1 and num_frames > 1), num_frames, stride)


@dataclass(frozen=True, slots=True)
class ChoiceGrid:
    """The choices of a region: every frame stride with every channel share, the full one first."""

    frame_strides: tuple[int, ...]
    channel_shares: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.frame_strides) * len(self.channel_shares)

    def index(self, choice: Choice) -> tuple[int, int]:
        """Position of `choice` as (index of its stride, index of its share)."""
        return self.frame_strides.index(choice.frame_stride), self.channel_shares.index(choice.channel_share)

    def __getitem__(self, index: tuple[int, int]) -> Choice:
        return Choice(self.frame_strides[index[0]], self.channel_shares[index[1]])

    def nearest(self, choice: tuple[int, float]) -> Choice:
        """The coarsest offered choice that computes no less than `choice`."""
        stride, share = choice
        strides = [r for r in self.frame_strides if r <= stride]
        shares = [r for r in self.channel_shares if r >= share - 1e-9]
        return Choice(max(strides, default=1), min(shares, default=1.0))

    def all(self) -> tuple[Choice, ...]:
        """Every choice, shares varying fastest."""
        return tuple(Choice(stride, share) for stride in self.frame_strides for share in self.channel_shares)


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """What decides the sizes and the cost of a Conv3d; `padding` as numbers."""

    in_channels: int
    out_channels: int
    kernel_size: Size
    stride: Size
    padding: Size
    dilation: Size
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv3d) -> "ConvGeometry":
        """Read `conv`.

        Raises:
            ConvertError: `padding="same"` that puts more on one side than on the other.
        """
        return cls(
            conv.in_channels,
            conv.out_channels,
            _size(conv.kernel_size),
            _size(conv.stride),
            _padding(conv),
            _size(conv.dilation),
            conv.groups,
        )

    def out_size(self, in_size: Size) -> Size:
        """(T, H, W) of the output for (T, H, W) of the input."""
        sizes = zip(in_size, self.padding, self.dilation, self.kernel_size, self.stride, strict=True)
        t, h, w = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)
        return t, h, w

    def out_frames(self, in_frames: int) -> int:
        """T of the output for T of the input."""
        return self.out_size((in_frames, self.kernel_size[1], self.kernel_size[2]))[0]

    def kept_groups(self, share: float) -> int:
        """Groups that a share of the channels needs: the first ⌈r·groups⌉ (1 when not grouped)."""
        return ceil_share(share, self.groups)

    def kept_channels(self, share: float) -> int:
        """Output channels that are computed: the first ⌈r·C⌉, or those of the first ⌈r·groups⌉ groups."""
        if self.groups == 1:
            return ceil_share(share, self.out_channels)
        return self.kept_groups(share) * (self.out_channels // self.groups)

    def macs(self, in_size: Size, choice: Choice = FULL) -> int:
        """Multiply-adds of the convolution alone, for one clip, when `choice` is computed."""
        t, h, w = self.out_size(in_size)
        frames = len(computed_frames(t, choice.frame_stride))
        taps = self.kernel_size[0] * self.kernel_size[1] * self.kernel_size[2]
        fan_in = self.in_channels // self.groups * taps
        return self.kept_channels(choice.channel_share) * fan_in * frames * h * w

    def frame_window(self, x: Tensor, frame_stride: int) -> tuple[Tensor, int]:
        """Give the part of x (N, C, T_in, H, W) that the computed frames see, and its padding in time.

        Also while a graph is traced, when T_in is no number: there is more than one output frame then.
        """
        (size, *_), (pad, *_), (step, *_), (dilation, *_) = self.kernel_size, self.padding, self.stride, self.dilation
        num_frames = self.out_frames(x.shape[2])
        known = is_known(num_frames)
        first = computed_frames(num_frames if known else frame_stride + 1, frame_stride).start
        last = first + (num_frames - first - 1) // frame_stride * frame_stride
        missing = last * step - pad + dilation * (size - 1) + 1 - x.shape[2]  # behind the last frame
        offset = first * step - pad
        padding = max(0, -offset)
        if offset > 0:
            x = x[:, :, offset:]
        if not known or missing > padding:  # a convolution pads both ends alike
            x = F.pad(x, (0, 0, 0, 0, 0, missing - padding))
        return x, padding

    def __str__(self) -> str:
        kernel, stride = ("×".join(map(str, size)) for size in (self.kernel_size, self.stride))
        text = f"Conv3d {self.in_channels}→{self.out_channels} {kernel}"
        text += f" /{stride}" if self.stride != (1, 1, 1) else ""
        return text + (f" groups={self.groups}" if self.groups > 1 else "")


def is_known(num_frames: object) -> bool:
    """Whether a number of frames is one, not what stands for it while a graph is traced or exported."""
    return not isinstance(num_frames, (fx.Proxy, torch.SymInt))


def ceil_share(share: float, count: int) -> int:
    """The least whole number that is a share of `count`, at least 1."""
    # 1e-9: a share such as 1/3 of 3 must not become 2 by rounding.
    return max(1, min(count, int(-(-(share * count - 1e-9) // 1))))


def _size(values: tuple[int, ...]) -> Size:
    t, h, w = map(int, values)  # pytorchvideo's are numpy's in places, which JSON does not know
    return t, h, w


def _padding(conv: nn.Conv3d) -> Size:
    if conv.padding == "valid":
        return 0, 0, 0
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(total % 2 for total in totals):
            raise ConvertError(f"padding='same' of kernel {conv.kernel_size} pads one side more than the other.")
        return _size(tuple(total // 2 for total in totals))
    assert not isinstance(conv.padding, str)
    return _size(conv.padding)
