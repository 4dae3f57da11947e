"""What a user may choose: frozen, keyword-only, checked when made."""

from dataclasses import dataclass
from typing import Literal, get_args

from vared2_fx.errors import ConvertError

Granularity = Literal["conv"]
GateKind = Literal["soft_modulation", "gumbel"]
FrameRebuildKind = Literal["repeat", "interpolate"]
ChannelRebuildKind = Literal["scale", "depthwise"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What `convert` puts in, and where.

    Raises:
        ConvertError: a value that cannot work, when the config is made.
    """

    granularity: Granularity = "conv"
    """What one decision covers; `conv`: every eligible 3D convolution has its own (the paper's)."""

    frame_strides: tuple[int, ...] = (1, 2, 4)
    """R, the choices of the time policy: compute every R-th output frame, rebuild the rest. Ascending,
    each a multiple of the one before, so that the frames of a coarse choice are among those of a fine one."""

    channel_shares: tuple[float, ...] = (1.0, 0.5)
    """r, the choices of the channel policy: compute this share of the output channels, rebuild the rest."""

    gate: GateKind = "gumbel"
    """How a decision is taken; see `vared2_fx.layers.Gate`."""

    gate_hidden: int = 16
    """Width of a gate's hidden layer."""

    gate_bins: int = 4
    """Time bins to which a gate pools its input, so that it serves every clip length."""

    normalize: bool = True
    """Soft modulation only: let the weights sum to one. False is the paper's form as we understand it."""

    frame_rebuild: FrameRebuildKind = "repeat"
    """Φt. `repeat`: scale and bias of the computed frame before; `interpolate`: of it and the next one."""

    channel_rebuild: ChannelRebuildKind = "scale"
    """Φc. `scale`: scale and bias of one kept channel; `depthwise`: a 1×3×3 kernel on it."""

    include: tuple[str, ...] = ("*",)
    """Module paths to convert, as shell patterns (`blocks.3.*`). One that matches nothing is an error."""

    exclude: tuple[str, ...] = ()
    """Module paths to keep static, as shell patterns; wins over `include`."""

    min_channels: int = 8
    """Keep convolutions with fewer output channels static."""

    min_frames: int = 2
    """Keep convolutions with fewer output frames static (known only with example inputs)."""

    min_macs_share: float = 0.001
    """Keep convolutions below this share of the network's multiply-adds static (as above)."""

    def __post_init__(self) -> None:
        _one_of("granularity", self.granularity, get_args(Granularity))
        _one_of("gate", self.gate, get_args(GateKind))
        _one_of("frame_rebuild", self.frame_rebuild, get_args(FrameRebuildKind))
        _one_of("channel_rebuild", self.channel_rebuild, get_args(ChannelRebuildKind))
        _check_frame_strides(self.frame_strides)
        _check_channel_shares(self.channel_shares)
        for name in ("gate_hidden", "gate_bins"):
            if getattr(self, name) < 1:
                raise ConvertError(f"ConvertConfig: {name}={getattr(self, name)}, expected at least 1.")
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise ConvertError(f"ConvertConfig: {name} is one string; write ({getattr(self, name)!r},).")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConvertError(f"ConvertConfig: {name}={value!r}, expected one of {', '.join(allowed)}.")


def _check_frame_strides(strides: tuple[int, ...]) -> None:
    if not strides or strides[0] != 1:
        raise ConvertError(
            f"ConvertConfig: frame_strides={strides}: let it begin with 1, or the pretrained result is out of reach."
        )
    for fine, coarse in zip(strides, strides[1:], strict=False):
        if not isinstance(coarse, int) or coarse <= fine or coarse % fine:
            raise ConvertError(
                f"ConvertConfig: frame_strides={strides}: {coarse} does not follow {fine}; each has to be a larger "
                "multiple of the one before, such as (1, 2, 4)."
            )


def _check_channel_shares(shares: tuple[float, ...]) -> None:
    if not shares or shares[0] != 1.0:
        raise ConvertError(
            f"ConvertConfig: channel_shares={shares}: let it begin with 1.0, or the pretrained result is out of reach."
        )
    for wide, narrow in zip(shares, shares[1:], strict=False):
        if not 0.0 < narrow < wide:
            raise ConvertError(
                f"ConvertConfig: channel_shares={shares}: {narrow} does not follow {wide}; shares fall and stay above 0."
            )
