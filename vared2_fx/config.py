"""What a user may choose: frozen, keyword-only, checked when made."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from vared2_fx.errors import ConvertError

Granularity = Literal["conv"]
GateKind = Literal["softmax", "gumbel", "soft_modulation"]
FrameRebuildKind = Literal["repeat", "interpolate"]
ChannelRebuildKind = Literal["scale", "depthwise"]
Precision = Literal["no", "bf16", "fp16"]


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

    gate: GateKind = "softmax"
    """How a decision is taken; see `vared2_fx.layers.Gate`."""

    gate_hidden: int = 16
    """Width of a gate's hidden layer."""

    gate_bins: int = 4
    """Time bins to which a gate pools its input, so that it serves every clip length."""

    normalize: bool = True
    """Soft modulation only: let the weights sum to one. False is the paper's form as we understand it; the converted
    network then starts near the original, not at it."""

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

    min_total_share: float = 0.05
    """Keep the whole network static where all that could convert is below this share of its multiply-adds together,
    as in transformers, whose 3D convolutions cut patches and pool (as above)."""

    def __post_init__(self) -> None:
        _one_of("ConvertConfig: granularity", self.granularity, get_args(Granularity))
        _one_of("ConvertConfig: gate", self.gate, get_args(GateKind))
        _one_of("ConvertConfig: frame_rebuild", self.frame_rebuild, get_args(FrameRebuildKind))
        _one_of("ConvertConfig: channel_rebuild", self.channel_rebuild, get_args(ChannelRebuildKind))
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
        raise ConvertError(f"{name}={value!r}, expected one of {', '.join(allowed)}.")


def _check_frame_strides(strides: tuple[int, ...]) -> None:
    if not strides or strides[0] != 1:
        raise ConvertError(
            f"ConvertConfig: frame_strides={strides}: let it begin with 1, or the pretrained result is out of reach."
        )
    for fine, coarse in pairwise(strides):
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
    for wide, narrow in pairwise(shares):
        if not 0.0 < narrow < wide:
            raise ConvertError(
                f"ConvertConfig: channel_shares={shares}: {narrow} does not follow {wide}; "
                "shares fall and stay above 0."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """How `finetune` trains.

    Raises:
        ConvertError: a value that cannot work, when the config is made.
    """

    epochs: int = 10
    """Passes over the training clips."""

    optimizer: str = "adamw"
    """Any optimiser that timm knows by name."""

    lr: float = 1e-4
    """Learning rate of the network's own weights; falls along a cosine to zero."""

    gate_lr: float = 2e-2
    """Learning rate of gates and cheap operations, which start untrained; falls along the same cosine."""

    weight_decay: float = 1e-4
    """For weight matrices and kernels of the network; norms, biases, gates and cheap operations have none."""

    warmup_epochs: float = 0.5
    """Epochs over which the learning rates rise from zero."""

    label_smoothing: float = 0.0
    """Of the cross-entropy."""

    efficiency_weight: float = 1.0
    """λ, the weight of the efficiency loss beside the task loss."""

    efficiency_warmup: float = 0.1
    """Share of all epochs over which λ rises from zero, so that the task is found before it is squeezed."""

    target_macs: float | None = None
    """Share of the original's multiply-adds to come down to (0.6: 40 % saved); None: as low as λ pushes."""

    temperature: tuple[float, float] = (1.0, 0.2)
    """Of `softmax` and `gumbel` gates, at the first and at the last step; exponential between. See `Gate`."""

    freeze_norms: bool = True
    """Let the network's batch norms keep the statistics that they were trained with. Those of a batch would depend
    on what is picked for its other clips, and hide from the gates what a choice does to a clip."""

    clip_grad: float = 5.0
    """Largest norm of the gradient; 0 leaves it as it is."""

    mixed_precision: Precision = "no"
    """Autocast, by accelerate."""

    seed: int = 0
    """Of everything random in the loop."""

    out: str | None = None
    """Folder for `last/` (everything needed to go on), `best/` (a network for `load`) and `log.jsonl`."""

    resume: bool = False
    """Go on from `out`/last where that exists."""

    progress: bool = True
    """Show a progress bar on stderr, when that is a terminal."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConvertError(f"FinetuneConfig: epochs={self.epochs}, expected at least 1.")
        for name in ("lr", "gate_lr", "weight_decay", "efficiency_weight", "warmup_epochs", "clip_grad"):
            if getattr(self, name) < 0:
                raise ConvertError(f"FinetuneConfig: {name}={getattr(self, name)} is negative.")
        if self.target_macs is not None and not 0 < self.target_macs <= 1:
            raise ConvertError(
                f"FinetuneConfig: target_macs={self.target_macs}; it is a share of the original's multiply-adds, "
                "above 0 and at most 1 (0.6 saves 40 %)."
            )
        _one_of("FinetuneConfig: mixed_precision", self.mixed_precision, get_args(Precision))
        if not 0 <= self.label_smoothing < 1:
            raise ConvertError(f"FinetuneConfig: label_smoothing={self.label_smoothing}, expected 0 up to below 1.")
        if not 0 <= self.efficiency_warmup <= 1:
            raise ConvertError(f"FinetuneConfig: efficiency_warmup={self.efficiency_warmup}, expected 0 … 1.")
        if min(self.temperature) <= 0:
            raise ConvertError(f"FinetuneConfig: temperature={self.temperature}, expected values above 0.")
        if self.resume and self.out is None:
            raise ConvertError("FinetuneConfig: resume needs `out`, the folder of the run to go on with.")
