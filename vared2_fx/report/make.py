"""`report`: what a converted network computes on data, layer by layer."""

import logging
import random
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from vared2_fx.batches import batches_of
from vared2_fx.convert import conversion
from vared2_fx.errors import ReportError
from vared2_fx.modes import evaluating
from vared2_fx.packing import takes_boxes
from vared2_fx.passes.rewrite import regions
from vared2_fx.progress import track
from vared2_fx.report.alarms import alarms
from vared2_fx.report.assemble import Found, assemble
from vared2_fx.report.collect import Collected, Collector
from vared2_fx.report.document import CompressionReport
from vared2_fx.report.entropy import EntropyWatch
from vared2_fx.report.samples import Measured, Sample, measure
from vared2_fx.report.sensitivity import Sensitivities

log = logging.getLogger(__name__)


def report(
    dynamic: fx.GraphModule,
    clips: Iterable[Any] | Tensor,
    *,
    labels: bool = True,
    timing: bool = True,
    timing_clips: int = 3,
    timing_repeats: int = 3,
    rebuild_error: bool = True,
    sensitivity: bool = False,
    sensitivity_clips: int = 8,
    thumbnails: bool = True,
    notes: Sequence[str] = (),
    progress: bool = True,
) -> CompressionReport:
    """Run a converted network over data and count what it computes, layer by layer.

    The network runs once over the data, in evaluation mode, without gradients; its own modes come back afterwards.
    Times, rebuild errors and sensitivity are measured on a few of the clips. Interrupted (Ctrl-C), it returns what was
    measured so far, with what is missing in `missing`; before the first clip it raises KeyboardInterrupt.

    Args:
        dynamic: what `convert` or `load` returned.
        clips: a loader (batches as dicts with "video" and, if known, "label" and "video_name"; pairs (clips, labels);
            or tensors), or one tensor of clips (N, C, T, H, W). Moved to the network's device and dtype, and packed
            as the zoo says for its networks; those that take boxes get one for each clip, the whole frame.
        labels: use the labels that batches carry; False for those of other classes than the network's.
        timing: measure times as well: one clip at a time (batch 1), each region and the whole network, the original
            form and the dynamic one in turns. Takes about (timing_repeats + 1) · timing_clips · 4 forward passes.
        timing_clips: clips to time, and to measure rebuild errors on, picked at random from the data; all, if there
            are fewer.
        timing_repeats: repetitions for each of them, of which the median counts.
        rebuild_error: measure on these clips how far each region's choices are from its full output, and how far the
            network's output is from that with everything computed. About as many passes as there are choices.
        sensitivity: also measure what each layer's cheapest choice costs alone: a forward pass for each region and
            clip.
        sensitivity_clips: clips for that, picked at random.
        thumbnails: keep small pictures of the cheapest and dearest clips.
        notes: sentences to carry in the report.
        progress: show a bar on stderr when it takes more than two seconds and stderr is a terminal.

    Returns:
        Plain numbers; `print` them, or take `to_html()`, `to_json()`, `to_csv()`, `to_markdown()`.

    Raises:
        ConvertError: `dynamic` is not a converted network, or does not run on such clips.
        DataError: it takes lists or dicts, and is not the zoo's.
        ReportError: there is no clip, a batch is not understood, or the output has NaN or infinite values.
    """
    made = conversion(dynamic)
    measures = timing or rebuild_error
    if (timing and timing_repeats < 1) or (measures and timing_clips < 1):
        raise ReportError(
            f"report: timing_clips={timing_clips}, timing_repeats={timing_repeats}; at least 1 each, or timing=False "
            "and rebuild_error=False."
        )
    if sensitivity and sensitivity_clips < 1:
        raise ReportError(f"report: sensitivity_clips={sensitivity_clips}; at least 1, or sensitivity=False.")
    if takes_boxes(dynamic):
        labels, notes = False, (*notes, "each clip has one box, the whole frame; the answers are that box's.")
    notes = (*notes, *_in_full(dynamic))
    num_samples = max(timing_clips if measures else 0, sensitivity_clips if sensitivity else 0)
    collector = Collector(dynamic, num_samples=num_samples, use_labels=labels, thumbnails=thumbnails)
    found = Found(collector.out, Measured(), EntropyWatch(dynamic), Sensitivities(dynamic), timing_repeats)
    steps = _Steps(progress)
    with evaluating(dynamic):
        failed_before = getattr(getattr(clips, "log", None), "num_failed", 0)
        with found.entropy.watching():
            steps.count(collector, found.entropy, clips)
        _add_failures(collector.out, clips, failed_before)
        if not collector.out.clips:
            raise ReportError(_nothing(collector.out))
        samples = collector.out.samples
        random.Random(0).shuffle(samples)  # the reservoir's order is not random
        if measures:
            repeats = timing_repeats if timing else 0
            steps.measure(dynamic, samples[:timing_clips], repeats, rebuild_error, found.measured)
        if sensitivity:
            steps.sense(found.sensitivities, dynamic, samples[:sensitivity_clips])
    classes = getattr(getattr(clips, "listing", None), "classes", ()) if labels else ()
    result = assemble(dynamic, made, found, collector.examples, tuple(map(str, classes)), tuple(notes), steps.missing)
    return replace(result, alarms=alarms(result))


class _Steps:
    """The parts of a report in turn; an interruption ends its part and those after it, and is written down."""

    def __init__(self, progress: bool) -> None:
        self._progress = progress
        self.missing: tuple[str, ...] = ()

    def count(self, collector: Collector, entropy: EntropyWatch, clips: Any) -> None:
        done = 0
        batches = batches_of(clips)
        try:
            for batch in track(batches, "Counting multiply-adds", enabled=self._progress):
                collector.add(batch)
                entropy.keep()
                done += 1
        except KeyboardInterrupt:
            if not collector.out.clips:
                raise
            total = f" of {len(batches)}" if isinstance(batches, Sized) else ""
            self._stopped(f"the clips after batch {done}{total}: counting was interrupted")

    def measure(
        self, dynamic: fx.GraphModule, samples: list[Sample], repeats: int, errors: bool, out: Measured
    ) -> None:
        what = "times and rebuild errors" if repeats and errors else "times" if repeats else "rebuild errors"
        if self.missing:
            self._stopped(what)
            return
        try:
            measure(dynamic, self._tracked(samples, f"Measuring {what}"), repeats=repeats, errors=errors, out=out)
        except KeyboardInterrupt:
            self._stopped(f"{what} on some of {len(samples)} clips")

    def sense(self, sensitivities: Sensitivities, dynamic: fx.GraphModule, samples: list[Sample]) -> None:
        if self.missing:
            self._stopped("sensitivity")
            return
        cheapest = {path: region.grid.all()[-1] for path, region in regions(dynamic).items()}
        todo = [(sample, path) for sample in samples for path in cheapest]
        try:
            for sample, path in self._tracked(todo, "Measuring sensitivity"):
                sensitivities.add(sample, path, cheapest[path])
        except KeyboardInterrupt:
            self._stopped("sensitivity of some layers or clips")

    def _tracked(self, items: list[Any], what: str) -> Iterable[Any]:
        return track(items, what, enabled=self._progress)

    def _stopped(self, what: str) -> None:
        log.warning("report: interrupted; missing: %s", what)
        self.missing = (*self.missing, what)


def _in_full(dynamic: fx.GraphModule) -> Iterator[str]:
    """Which choices `autotune` lets compute everything."""
    slow = {
        path: [str(choice) for choice in region.grid.all() if region.gate.taken(choice) != choice]
        for path, region in regions(dynamic).items()
    }
    listed = "; ".join(f"{path} {', '.join(choices)}" for path, choices in slow.items() if choices)
    if listed:
        yield f"autotune: where the gate asks for these, everything is computed, as they are slower here: {listed}."


def _add_failures(found: Collected, loader: Any, failed_before: int) -> None:
    """Take a `VideoLoader`'s own account, which knows of batches that came out empty, and of unreadable videos."""
    account: Any = getattr(loader, "log", None)
    if hasattr(account, "num_failed"):  # a tensor has a `log` too
        found.num_failed = account.num_failed - failed_before
        found.failures |= account.failed
    found.failures |= dict(getattr(loader, "unreadable", ()))


def _nothing(found: Collected) -> str:
    text = "report: the data gave no clip."
    if found.failures:
        text += f" {len(found.failures)} videos failed, the first with: {next(iter(found.failures.values()))}"
    return text
