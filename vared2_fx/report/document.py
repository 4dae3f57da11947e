"""What a whole report holds, and the ways in which it is written; plain numbers first, see `numbers`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vared2_fx.passes.flow_graph import GraphNode
from vared2_fx.report.numbers import LayerReport, PerClip, Timing

CONVENTION = (
    "macs: multiply-adds per clip, 1 for a multiplication with its addition (FLOPs = 2 x macs). Counted: convolutions, "
    "matrix products, cheap operations (rebuilding frames and channels), gates. Not counted: the operations in "
    "`not_counted`."
)
"""How everything here is counted."""


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
class ClipChoice:
    """What one layer computed for one clip."""

    path: str
    frame_stride: int
    channel_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One of the cheapest or dearest clips: how it looks, and what was decided for it."""

    clip: int
    """Its number in `CompressionReport.clips`."""
    extreme: Literal["cheap", "dear"]
    frames: tuple[str, ...]
    """Some of its frames in order, small JPEG files in base64; empty where clips are no pictures."""
    choices: tuple[ClipChoice, ...]
    """Of every dynamic layer that ran."""


AlarmCode = Literal["collapsed", "costs_more", "drift", "never_ran", "slower"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """Something that a reader should look at."""

    code: AlarmCode
    path: str
    """Of the layer; empty for the whole network."""
    text: str
    """What was seen, and what to do."""


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
    """The dynamic network, everything included; `min` to `max` are of whole clips."""
    cheap_macs: PerClip
    gate_macs: PerClip
    saved_share: float
    """1 - computed / dense; negative where the overhead is larger than the saving."""
    params: int
    """Parameters of the original network."""
    params_added: int
    """Parameters of gates and cheap operations."""
    bytes_added: int
    """What conversion added in memory, buffers included."""
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
    drift: float | None
    """‖output - output with everything computed‖ / ‖the latter‖, in the mean over sampled clips; None if not
    measured."""
    num_drift_clips: int
    """Clips that drift was measured on."""


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
    granularity: str
    """What one decision is for: `conv`, `block` or `stage`."""
    notes: tuple[str, ...]
    """What else a reader should know, such as that weights are random."""
    missing: tuple[str, ...]
    """What an interruption left out, in words; empty when the report is whole."""
    alarms: tuple[Alarm, ...]
    """What to look at first."""
    convention: str
    """What is counted, and how."""
    not_counted: tuple[OperationCount, ...]
    """Operations of the graph for which no multiply-adds are counted, most frequent first."""
    inputs: tuple[InputShape, ...]
    """Clip shapes seen, most frequent first."""
    layers: tuple[LayerReport, ...]
    """Every operation with multiply-adds, in the order in which they run."""
    graph: tuple[GraphNode, ...]
    """How they are connected, in the order in which they run."""
    totals: Totals
    classes: tuple[str, ...]
    """Names of the labels, in order; empty where the data gave none."""
    clips: tuple[ClipReport, ...]
    """Every clip, in the order of the data."""
    examples: tuple[Example, ...]
    """The cheapest clips, cheapest first, then the dearest, dearest first."""
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

    @property
    def macs_by_class(self) -> dict[str, PerClip]:
        """Multiply-adds of the clips of each label, by its name, in label order; empty without labels."""
        counts: dict[int, dict[int, int]] = {}
        for clip in self.clips:
            if clip.label is not None:
                of_class = counts.setdefault(clip.label, {})
                of_class[clip.macs] = of_class.get(clip.macs, 0) + 1
        return {self.class_name(label): PerClip.of(counts[label]) for label in sorted(counts)}

    def class_name(self, label: int) -> str:
        """Name of a label; `class 3` where the data gave none."""
        return self.classes[label] if label < len(self.classes) else f"class {label}"

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

    def to_records(self) -> list[dict[str, Any]]:
        """A flat dict for each layer, for `pandas.DataFrame`; multiply-adds are per clip (mean), times in ms."""
        from vared2_fx.report.rows import to_records

        return to_records(self)

    def to_csv(self) -> str:
        """The layers as CSV: a header, then a row for each; numbers are per clip (mean), in base units."""
        from vared2_fx.report.rows import to_csv

        return to_csv(self)

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one HTML page that needs nothing else; its own styles, script and pictures are inside.

        Args:
            path: also write it there.

        Raises:
            ReportError: it cannot be written there.
        """
        from vared2_fx.report.html import to_html, write_page

        page = to_html(self)
        if path is not None:
            write_page(Path(path), page)
        return page

    def to_markdown(self) -> str:
        """The report as Markdown, for a pull request: totals, stages, and layers and alarms that unfold."""
        from vared2_fx.report.markdown import to_markdown

        return to_markdown(self)

    def save_plots(self, folder: str | Path, *, form: Literal["png", "svg", "pdf"] = "svg") -> tuple[Path, ...]:
        """Write plots for a paper into `folder`, which is made: costs along depth, choices, clips, classes.

        Returns:
            The files; no `classes` without labels.

        Raises:
            ReportError: they cannot be written there.
        """
        from vared2_fx.report.plots import save_plots

        return save_plots(self, Path(folder), form)

    def to_text(self, *, fold: bool | None = None) -> str:
        """The report as text, at most 100 columns wide.

        Args:
            fold: show a line for each stage instead of each layer; None: where there are many layers.
        """
        from vared2_fx.report.text import render

        return render(self, fold=fold)

    def __str__(self) -> str:
        return self.to_text()
