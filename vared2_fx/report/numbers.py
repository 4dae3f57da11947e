"""What a report holds: plain numbers, in base units; text is made elsewhere.

`macs` are multiply-adds: one multiplication with its addition counts 1. FLOPs are twice that.
"""

from dataclasses import dataclass
from typing import Literal

CONVENTION = (
    "macs: multiply-adds per clip, 1 for a multiplication with its addition (FLOPs = 2 x macs). Counted: convolutions, "
    "matrix products, cheap operations (rebuilding frames and channels), gates. Not counted: the operations in "
    "`not_counted`."
)
"""How everything here is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PerClip:
    """A number that may differ from clip to clip, over all clips of a report."""

    total: int
    """Sum over the clips; rows of a report add up in this, to the last digit."""
    mean: float
    min: int
    max: int


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Time of the original and of the dynamic form, measured in turns on the same inputs."""

    dense: Latency
    """The plain convolution, or the original network."""
    dynamic: Latency
    """Gate and region at what the gate decided, or the converted network."""


Kind = Literal["dynamic", "static", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerReport:
    """One operation of the network that has multiply-adds."""

    path: str
    """Module path; for a function the name of its node in the graph."""
    operation: str
    """What it is: kind, channels, kernel."""
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
    params: int
    """Parameters of the original operation."""
    params_added: int
    """Parameters of its gate and cheap operations."""
    timing: Timing | None
    """None if not measured, and for operations that are not dynamic."""

    @property
    def computed_share(self) -> float:
        """Expected multiply-adds as a share of the dense ones."""
        return self.computed_macs.total / max(1, self.dense_macs.total)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipReport:
    """One clip of the data."""

    name: str
    """Where it came from, as the batch said in "video_name"; empty if it did not."""
    label: int | None
    prediction: int | None
    """Class with the largest output; None where the network gives no scores per class."""
    macs: int
    """What evaluation computed for it in the whole network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputShape:
    """A clip shape that was seen, and how often."""

    shape: tuple[int, ...]
    """(C, T, H, W)."""
    clips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A video that gave no clip."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OperationCount:
    """A kind of operation, and how many of it are in the graph."""

    operation: str
    calls: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """The whole network. Multiply-adds are the sums of the rows."""

    dense_macs: PerClip
    """The original network."""
    computed_macs: PerClip
    """The dynamic network, everything included; `min` and `max` are of whole clips."""
    cheap_macs: PerClip
    gate_macs: PerClip
    saved_share: float
    """1 - computed / dense; negative where the overhead is larger than the saving."""
    params: int
    """Parameters of the original network."""
    params_added: int
    """Parameters of gates and cheap operations."""
    num_clips: int
    num_failed_clips: int
    """Clips that could not be decoded; they are in no other number."""
    num_labelled: int
    """Clips that came with a label."""
    top1: float | None
    """Share of the labelled clips whose largest output is their label; None without labels."""
    timing: Timing | None
    """The whole network; None if not measured."""
    num_timed_clips: int
    """Clips that all times were measured on, one at a time, picked at random from all."""
    num_timing_repeats: int
    """Repetitions for each of those clips."""
    timed_computed_share: float | None
    """Computed share of the dense multiply-adds for just those clips: what their times could ideally fall to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Where the numbers were taken; times hold only there."""

    vared2_fx: str
    torch: str
    python: str
    processor: str
    """Processor, or the accelerator that the network was on."""
    device: str
    threads: int
    """Threads that torch computes with on the processor."""
    dtype: str
    """Of the network's weights."""
    layout: str
    """Of the convolutions: `contiguous` or `channels_last_3d`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionReport:
    """What a converted network computes on data, layer by layer. `print` it."""

    network: str
    """Name in the zoo, else class of the network."""
    notes: tuple[str, ...]
    """What else a reader should know, such as that weights are random."""
    convention: str
    """What is counted, and how."""
    not_counted: tuple[OperationCount, ...]
    """Operations of the graph for which no multiply-adds are counted, most frequent first."""
    inputs: tuple[InputShape, ...]
    """Clip shapes seen, most frequent first."""
    layers: tuple[LayerReport, ...]
    """Every operation with multiply-adds, in the order in which they run."""
    totals: Totals
    clips: tuple[ClipReport, ...]
    """Every clip, in the order of the data."""
    failures: tuple[Failure, ...]
    """Videos that could not be read at least once."""
    environment: Environment

    @property
    def dynamic(self) -> tuple[LayerReport, ...]:
        """The layers that decide."""
        return tuple(layer for layer in self.layers if layer.kind == "dynamic")

    @property
    def flops(self) -> float:
        """Expected floating-point operations of a clip: twice the multiply-adds."""
        return 2 * self.totals.computed_macs.mean

    def to_json(self, *, indent: int | None = 1) -> str:
        """The report as JSON, with the name and version of its schema; `from_json` reads it."""
        from vared2_fx.report.serial import to_json

        return to_json(self, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> "CompressionReport":
        """Read what `to_json` wrote.

        Raises:
            ReportError: not JSON, another schema or version, or a field that is missing or of the wrong kind.
        """
        from vared2_fx.report.serial import from_json

        return from_json(text)

    def to_csv(self) -> str:
        """The layers as CSV: a header, then a row for each; numbers are per clip (mean), in base units."""
        from vared2_fx.report.serial import to_csv

        return to_csv(self)

    def __str__(self) -> str:
        """The report as text, at most 100 columns wide."""
        from vared2_fx.report.text import render

        return render(self)
