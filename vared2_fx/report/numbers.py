"""What a report says of one layer: plain numbers, in base units; text is made elsewhere.

`macs` are multiply-adds: one multiplication with its addition counts 1. FLOPs are twice that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vared2_fx.policy.statistics import entropy_bits


@dataclass(frozen=True, kw_only=True, slots=True)
class PerClip:
    """A number that may differ from clip to clip, over all clips of a report.

    Percentiles are values that occur: the least that this share of the clips does not exceed.
    """

    total: int
    """Sum over the clips; rows of a report add up in this, to the last digit."""
    mean: float
    min: int
    p50: int
    """Median."""
    p95: int
    max: int
    values: tuple[int, ...]
    """Every value that occurred, ascending."""
    clips: tuple[int, ...]
    """How many clips had it; so reports of parts of the data can be merged exactly."""

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> "PerClip":
        """Sum up how many clips had each value; no clips give zeros."""
        values = tuple(sorted(value for value, clips in counts.items() if clips))
        clips = tuple(counts[value] for value in values)
        total, num_clips = sum(v * n for v, n in zip(values, clips, strict=True)), sum(clips)
        low, middle, high, top = (_rank(values, clips, share) for share in (0.0, 0.5, 0.95, 1.0))
        return cls(
            total=total,
            mean=total / max(1, num_clips),
            min=low,
            p50=middle,
            p95=high,
            max=top,
            values=values,
            clips=clips,
        )

    @property
    def num_clips(self) -> int:
        """Clips that were counted."""
        return sum(self.clips)

    @property
    def counts(self) -> dict[int, int]:
        """How many clips had each value."""
        return dict(zip(self.values, self.clips, strict=True))


def _rank(values: tuple[int, ...], clips: tuple[int, ...], share: float) -> int:
    """The least value that at least `share` of the clips do not exceed."""
    seen, wanted = 0, share * sum(clips)
    for value, count in zip(values, clips, strict=True):
        seen += count
        if seen >= wanted:
            return value
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceCount:
    """How many clips had this choice computed."""

    frame_stride: int
    """R: every R-th frame was computed."""
    channel_share: float
    """r: this share of the channels was computed."""
    clips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Measured time for one clip at a time (batch 1), in milliseconds.

    Each clip that is timed gets some repetitions, dense and dynamic in turns.
    """

    ms: float
    """Median over the repetitions of a clip, averaged over the clips."""
    min_ms: float
    """Fastest repetition."""
    max_ms: float
    """Slowest repetition."""
    clips: int
    """Clips that were timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Time of the original and of the dynamic form, measured in turns on the same inputs."""

    dense: Latency
    """The plain convolution, or the original network."""
    dynamic: Latency
    """Gate and region at what the gate decided, or the converted network."""

    @property
    def ratio(self) -> float:
        """Dynamic over dense; above 1 is slower."""
        return self.dynamic.ms / max(1e-9, self.dense.ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuildError:
    """How far a layer's output at one choice is from its full one, on sampled clips and the layer's own inputs."""

    frame_stride: int
    channel_share: float
    error: float
    """‖choice - full‖ / ‖full‖, 2-norms, in the mean over the clips; 0 is exact, 1 as bad as zeros."""
    clips: int
    """Clips that it was measured on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateEntropy:
    """How sure a gate is about single clips."""

    bits: float
    """Entropy of the probabilities that it gives strides and shares, in the mean over the clips; 0 is certain."""
    clips: int
    """Clips that it decided about by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """What a layer's cheapest choice costs alone, all others in full, on sampled clips."""

    frame_stride: int
    channel_share: float
    drift: float
    """‖output - full output‖ / ‖full output‖ of the network, in the mean over the clips."""
    changed_answers: float | None
    """Share of the clips whose largest output becomes another; None where the network gives no scores."""
    accuracy_change: float | None
    """Top-1 on the labelled among them, minus that in full; None without labels."""
    clips: int
    """Clips that it was measured on."""


Kind = Literal["dynamic", "static", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """One operation of the network that has multiply-adds."""

    path: str
    """Module path; for a function the name of its node in the graph."""
    operation: str
    """What it is: kind, channels, kernel."""
    source_class: str
    """Class of the module in the original network, or the function's name; of a run of layers those of its
    convolutions."""
    members: tuple[str, ...]
    """Paths of the convolutions that are decided for together; empty where nothing is decided."""
    kind: Kind
    """`dynamic`: decides per clip. `static`: a 3D convolution that does not. `other`: no 3D convolution."""
    reason: str
    """Code of why a `static` one stayed so; empty for the others."""
    detail: str
    """The reason in words."""
    in_shape: tuple[int, ...] | None
    """(C, T, H, W) of its input, for the clip shape that most clips had."""
    out_shape: tuple[int, ...] | None
    """(C, T, H, W) of its output."""
    dense_macs: PerClip
    """In the original network."""
    computed_macs: PerClip
    """What evaluation computed, cheap operations and gate included; its mean is the expected cost of a clip."""
    cheap_macs: PerClip
    """The part of `computed_macs` that rebuilds frames and channels."""
    gate_macs: PerClip
    """The part of `computed_macs` that decides."""
    choices: tuple[ChoiceCount, ...]
    """Histogram over the choices offered, the full one first; adds up to the number of clips. Empty if static."""
    gate_entropy: GateEntropy | None
    """None if static, and where gates give no probabilities (soft modulation) or were fixed."""
    params: int
    """Parameters of the original operation."""
    params_added: int
    """Parameters of its gate and cheap operations."""
    bytes_added: int
    """What conversion added to the network in memory for this layer, buffers included."""
    timing: Timing | None
    """None if not measured, and for operations that are not dynamic."""
    rebuild_errors: tuple[RebuildError, ...]
    """One for each choice after the full one; empty if not measured, or static."""
    sensitivity: Sensitivity | None
    """None if not asked for, or static."""

    @property
    def computed_share(self) -> float:
        """Expected multiply-adds as a share of the dense ones."""
        return self.computed_macs.total / max(1, self.dense_macs.total)

    @property
    def choice_entropy(self) -> float | None:
        """Entropy of the histogram of choices in bits: 0 when all clips get the same; None if static or never run."""
        counts = [choice.clips for choice in self.choices if choice.clips]
        return entropy_bits(counts) if counts else None

    @property
    def mean_rebuild_error(self) -> float | None:
        """Rebuild error of what was picked, weighted by the clips that had it; None if not measured."""
        if not self.rebuild_errors:
            return None
        errors = {(e.frame_stride, e.channel_share): e.error for e in self.rebuild_errors}
        clips = sum(choice.clips for choice in self.choices)
        picked = ((errors.get((c.frame_stride, c.channel_share), 0.0), c.clips) for c in self.choices)
        return sum(error * count for error, count in picked) / max(1, clips)
