"""What a user may choose: frozen, keyword-only, checked when made."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from torch import nn

from vared2_fx.errors import ConvertError
from vared2_fx.patterns import check_pattern

Granularity = Literal["conv", "block", "stage", "auto"]
EngineName = Literal["torch", "compile", "onnx", "openvino"]
GateKind = Literal["softmax", "gumbel", "soft_modulation"]
FrameRebuildKind = Literal["hold", "repeat", "interpolate"]
ChannelRebuildKind = Literal["scale", "depthwise"]
Precision = Literal["no", "bf16", "fp16"]
Schedule = Literal["joint", "variants_first"]

TYPE = "type:"
"""In include and exclude: the name of a module's type follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertConfig:
    """What `convert` puts in, and where.

    Raises:
        ConvertError: a value that cannot work, when the config is made.
    """

    granularity: Granularity = "conv"
    """What one decision covers. `conv`: every eligible 3D convolution has its own (the paper's). `block` (ours): a
    residual branch, or any other run of layers with one input and one output; frames are skipped at its input and
    rebuilt at its output. `stage` (ours): a run of blocks between two changes of resolution, shortcuts included.
    `auto` (ours): blocks or a stage, place by place, whichever makes the network faster in `engine`; what neither
    does, stays static. It is measured, which takes a minute or more."""

    engine: EngineName = "torch"
    """With `auto`: the engine whose times decide."""

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

    frame_rebuild: FrameRebuildKind | None = None
    """Φt. `hold`: the computed frame of each R; `repeat`: its scale and bias; `interpolate`: of the one before and the
    next. None: `repeat` at granularity `conv`, else `hold`, which costs no more than the addition that follows."""

    channel_rebuild: ChannelRebuildKind = "scale"
    """Φc. `scale`: scale and bias of one kept channel; `depthwise`: a 1×3×3 kernel on it."""

    include: tuple[str | type[nn.Module], ...] = ("*",)
    """What to convert. Each entry is a path (`blocks.3`: all inside it), a shell pattern (`blocks.*.conv`), a regular
    expression for the whole path (`re:blocks\\.[34]\\..*`), or the type of the convolution or of a module around
    it, as a class or by its name (`type:ResBlock`). One that matches nothing is an error. Classes become names."""

    exclude: tuple[str | type[nn.Module], ...] = ()
    """What to keep static, named in the same ways; wins over `include`."""

    filter: Callable[[nn.Module, str], bool] | None = None
    """Called with each convolution that is left, a copy of the caller's, and its path; False keeps it static. What it
    chose is kept in the plan, and saved with it; the function itself is not kept."""

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
        _one_of("ConvertConfig: engine", self.engine, get_args(EngineName))
        _one_of("ConvertConfig: gate", self.gate, get_args(GateKind))
        _one_of("ConvertConfig: frame_rebuild", self.frame_rebuild_kind, get_args(FrameRebuildKind))
        _one_of("ConvertConfig: channel_rebuild", self.channel_rebuild, get_args(ChannelRebuildKind))
        _check_frame_strides(self.frame_strides)
        _check_channel_shares(self.channel_shares)
        for name in ("gate_hidden", "gate_bins"):
            if getattr(self, name) < 1:
                raise ConvertError(f"ConvertConfig: {name}={getattr(self, name)}, expected at least 1.")
        for name in ("include", "exclude"):
            entries = getattr(self, name)
            if isinstance(entries, (str, type)):
                kind, shown = ("string", repr(entries)) if isinstance(entries, str) else ("type", entries.__name__)
                raise ConvertError(f"ConvertConfig: {name} is one {kind}; write ({shown},).")
            named = tuple(_entry(f"ConvertConfig.{name}", entry) for entry in entries)
            object.__setattr__(self, name, named)
        if self.filter is not None and not callable(self.filter):
            raise ConvertError(f"ConvertConfig: filter={self.filter!r}, expected a function of a module and its path.")

    @property
    def frame_rebuild_kind(self) -> FrameRebuildKind:
        """`frame_rebuild`, or what None stands for."""
        return self.frame_rebuild or ("repeat" if self.granularity == "conv" else "hold")


def _entry(where: str, entry: str | type[nn.Module]) -> str:
    if isinstance(entry, type) and issubclass(entry, nn.Module):
        return f"{TYPE}{entry.__module__}.{entry.__qualname__}"
    check_pattern(where, entry)
    return str(entry)


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

    schedule: Schedule = "joint"
    """`joint`: weights and gates together, by task and efficiency loss (the paper's, as we understand it).
    `variants_first` (ours): all epochs train the weights, each batch with one choice of all regions alike, so that
    each is good by itself (of several frame strides above 1 the coarsest is left out: from so few frames it would only
    learn to guess), and with one for each region, so that a gate may err; then `fit_gates` teaches the gates, on
    the validation clips, which the weights have not seen. The efficiency loss and label smoothing are not used."""

    optimizer: str = "adamw"
    """Any optimiser that timm knows by name."""

    lr: float = 1e-4
    """Learning rate of the network's own weights and of cheap operations; falls along a cosine to zero."""

    gate_lr: float = 2e-2
    """Learning rate of gates, which start untrained; falls along the same cosine. `variants_first` fits gates in a way
    of its own, and does not use it."""

    weight_decay: float = 1e-4
    """For weight matrices and kernels of the network; norms, biases, gates and cheap operations have none."""

    warmup_epochs: float = 0.5
    """Epochs over which the learning rates rise from zero."""

    label_smoothing: float = 0.0
    """Of the cross-entropy; with `variants_first`, of the epochs of `own_share`."""

    mixup: float = 0.0
    """α of mixup: clips of a batch are blended, and their labels alike, by a weight from Beta(α, α); 0.2 is usual, 0
    goes without. Joint schedule only."""

    distill_weight: float = 0.0
    """Weight of distillation from the original network (ours) beside the cross-entropy; 1 is usual, 0 goes without.
    Where clips have no labels it is the whole task, and the original's answers count as right."""

    self_distill_weight: float = 0.0
    """With `variants_first`: weight of distillation from the full choice (ours, after Yu and Huang, 2019). It is then
    trained on every batch, learns from labels and the original, and all other choices learn from labels and from it,
    on the same clips. Dearer, by the full choice's pass; 1 is usual, 0 goes without."""

    feature_distill_weight: float = 0.0
    """With either distillation: weight of what the last linear layer is given, beside the scores: the squared distance
    from the teacher's, over the square of those; 1 is usual, 0 goes without."""

    distill_temperature: float = 2.0
    """Softens both answers before they are compared; see `distillation_loss`."""

    efficiency_weight: float = 1.0
    """λ, the weight of the efficiency loss beside the task loss. In the joint schedule a target needs one above 0."""

    efficiency_warmup: float = 0.1
    """Share of all epochs over which λ rises from zero, so that the task is found before it is squeezed."""

    target_macs: float | str | None = None
    """Share of the original's multiply-adds to come down to (0.6 or "60%": 40 % saved); None: as low as λ pushes.
    Text becomes a number. λ is then steered such that it is met (ours, see `TargetController`), and the best epoch
    is one that computes at most 2 points more; with `variants_first` gates are fitted to stay within it. A share that
    the network cannot reach is refused before the first step."""

    temperature: tuple[float, float] = (1.0, 0.2)
    """Of `softmax` and `gumbel` gates, at the first and at the last step; exponential between. See `Gate`."""

    own_share: float = 0.0
    """With `variants_first`: share of the epochs, the last ones, that train what fitted gates decide, and that alone;
    the original teaches it, if it teaches at all. Gates are fitted again at the end. Choices that gates seldom take get
    worse meanwhile."""

    gate_loss_weight: float = 3.0
    """With `variants_first`: what a loss of 1 counts for the gates beside the share of the multiply-adds; the larger,
    the less they risk. Searched for where there is a target. See `fit_gates`."""

    settle_gates: bool = False
    """With `variants_first`: believe the gates only if what they learn pays on videos that they did not learn from, and
    settle all at static choices otherwise. See `settle` of `fit_gates`."""

    freeze_norms: bool = True
    """Let the network's batch norms keep the statistics that they were trained with. Those of a batch would depend
    on what is picked for its other clips, and hide from the gates what a choice does to a clip."""

    ema_decay: float = 0.0
    """Evaluate and keep the moving average of the weights, in place of the last ones; 0.999 is usual, 0 goes without.
    It warms up, so that short runs may use it. Joint schedule only, where weights and gates are averaged together."""

    clip_grad: float = 5.0
    """Largest norm of the gradient; 0 leaves it as it is."""

    accumulate: int = 1
    """Batches whose gradients are averaged for one update, where memory is too small for as many clips at once; at the
    end of an epoch those that are left. With `variants_first` each of a batch's choices is averaged so, by itself."""

    gradient_checkpointing: bool = False
    """Compute what is inside a region again for the gradient in place of keeping it: less memory, for a second forward
    pass. Saves most with granularity `block` and `stage`; needs `freeze_norms`, as norms would count batches twice."""

    patience: int = 0
    """End after so many epochs without a better one; 0: never before `epochs`. With a target an epoch that meets it
    is better than any that does not. Joint schedule only."""

    mixed_precision: Precision = "no"
    """Autocast, by accelerate. Every shape of convolution is checked against fp32 when it is first met; those that this
    device gets wrong are computed in fp32, which the log says. See `vared2_fx.train.precision`."""

    seed: int = 0
    """Of everything random in the loop."""

    out: str | None = None
    """Folder for `last/` (everything needed to go on), `best/` (a network for `load`) and `log.jsonl`."""

    resume: bool = False
    """Go on from `out`/last where that exists."""

    tensorboard: bool = False
    """Write every epoch's numbers for TensorBoard, too, into `out`/tensorboard; needs the package tensorboard."""

    progress: bool = True
    """Show a progress bar on stderr, when that is a terminal."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("accumulate", 1), ("patience", 0)):
            if getattr(self, name) < least:
                raise ConvertError(f"FinetuneConfig: {name}={getattr(self, name)}, expected at least {least}.")
        for name in (
            "lr",
            "gate_lr",
            "weight_decay",
            "efficiency_weight",
            "warmup_epochs",
            "clip_grad",
            "distill_weight",
            "self_distill_weight",
            "feature_distill_weight",
            "mixup",
        ):
            if getattr(self, name) < 0:
                raise ConvertError(f"FinetuneConfig: {name}={getattr(self, name)} is negative.")
        object.__setattr__(self, "target_macs", read_target("FinetuneConfig: target_macs", self.target_macs))
        _one_of("FinetuneConfig: schedule", self.schedule, get_args(Schedule))
        joint = self.schedule == "joint"
        others = ("self_distill_weight", "settle_gates") if joint else ("patience", "mixup", "ema_decay")
        for name in others:
            if getattr(self, name):
                raise ConvertError(
                    f"FinetuneConfig: {name} has no effect with schedule={self.schedule!r}; leave it out, or take "
                    f"schedule={'variants_first' if joint else 'joint'!r}."
                )
        if joint and self.target_macs is not None and not self.efficiency_weight:
            raise ConvertError(
                f"FinetuneConfig: efficiency_weight=0 leaves nothing to come down to target_macs={self.target_macs} "
                "with; give it a weight above 0, or leave target_macs out."
            )
        if self.label_smoothing and not joint and not self.own_share:
            raise ConvertError(
                "FinetuneConfig: label_smoothing has no effect with schedule='variants_first' unless own_share is "
                "above 0; leave it out, or give both."
            )
        if self.feature_distill_weight and not self.distill_weight + self.self_distill_weight:
            raise ConvertError(
                "FinetuneConfig: feature_distill_weight goes with a teacher: distill_weight=1 or self_distill_weight=1."
            )
        _one_of("FinetuneConfig: mixed_precision", self.mixed_precision, get_args(Precision))
        if not 0 <= self.label_smoothing < 1:
            raise ConvertError(f"FinetuneConfig: label_smoothing={self.label_smoothing}, expected 0 up to below 1.")
        if not 0 <= self.ema_decay < 1:
            raise ConvertError(f"FinetuneConfig: ema_decay={self.ema_decay}, expected 0 up to below 1.")
        if not 0 <= self.efficiency_warmup <= 1:
            raise ConvertError(f"FinetuneConfig: efficiency_warmup={self.efficiency_warmup}, expected 0 … 1.")
        if not 0 <= self.own_share < 1:
            raise ConvertError(f"FinetuneConfig: own_share={self.own_share}, expected 0 up to below 1.")
        if not 0 < self.gate_loss_weight < math.inf:
            raise ConvertError(f"FinetuneConfig: gate_loss_weight={self.gate_loss_weight}, expected a weight above 0.")
        if min(self.temperature) <= 0:
            raise ConvertError(f"FinetuneConfig: temperature={self.temperature}, expected values above 0.")
        if not 0 < self.distill_temperature < math.inf:
            raise ConvertError(f"FinetuneConfig: distill_temperature={self.distill_temperature}, expected above 0.")
        if self.resume and self.out is None:
            raise ConvertError("FinetuneConfig: resume needs `out`, the folder of the run to go on with.")
        if self.gradient_checkpointing and not self.freeze_norms:
            raise ConvertError("FinetuneConfig: gradient_checkpointing needs freeze_norms=True.")
        if self.tensorboard and self.out is None:
            raise ConvertError("FinetuneConfig: tensorboard needs `out`, the folder to write into.")

    @property
    def target(self) -> float | None:
        """`target_macs` as a number."""
        assert not isinstance(self.target_macs, str)
        return self.target_macs


def read_target(where: str, target: float | str | None) -> float | None:
    """Read a share of the multiply-adds as users state it: 0.65, "0.65", "65%" or "65 %".

    Raises:
        ConvertError: it is no share above 0 and at most 1.
    """
    if target is None:
        return None
    text = str(target).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if isinstance(target, bool) or math.isnan(share):
        raise ConvertError(f"{where}={target!r} is no share; write 0.65 or '65%'.")
    if not 0 < share <= 1:
        raise ConvertError(
            f"{where}={text if text.endswith('%') else share}; it is a share of the original's multiply-adds, above 0 "
            "and at most 1 (0.6, or '60%', saves 40 %)."
        )
    return share
