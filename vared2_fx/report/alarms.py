"""What a reader should look at first."""

from collections.abc import Iterator

from vared2_fx.report.document import Alarm, CompressionReport
from vared2_fx.report.numbers import LayerReport, Timing
from vared2_fx.tables import percent

ENOUGH_CLIPS = 8
"""Fewer that get the same choice say nothing about a gate."""
SLOWER = 1.05
"""Dynamic over dense time from which a layer counts as slower."""
FAR_OFF = 0.5
"""Rebuild error, or drift, from which what is computed is hardly what was meant."""


def alarms(report: CompressionReport) -> tuple[Alarm, ...]:
    """All that is worth a warning in `report`, the whole network first, then layer by layer."""
    return (*_of_network(report), *(alarm for layer in report.dynamic for alarm in _of_layer(layer)))


def _of_network(report: CompressionReport) -> Iterator[Alarm]:
    totals = report.totals
    if totals.timing is not None and _is_slower(totals.timing):
        yield Alarm(
            code="slower",
            path="",
            text=f"the dynamic network takes {percent(totals.timing.ratio)} of the original's time on this machine; "
            "autotune computes in full what is slower, granularity block or stage decides less often.",
        )
    if totals.saved_share < 0:
        yield Alarm(code="costs_more", path="", text="gates and cheap operations cost more than is saved.")
    if totals.drift is not None and totals.drift > FAR_OFF:
        yield Alarm(
            code="drift",
            path="",
            text=f"outputs are {percent(totals.drift)} away from those with everything computed; fine-tune, or let the "
            "gates spend more.",
        )


def _of_layer(layer: LayerReport) -> Iterator[Alarm]:
    picked = [choice for choice in layer.choices if choice.clips]
    num_clips = sum(choice.clips for choice in picked)
    if not num_clips:
        yield Alarm(code="never_ran", path=layer.path, text="ran for no clip: it is in a branch that none took.")
        return
    if len(picked) == 1 and num_clips >= ENOUGH_CLIPS:
        (only,) = picked
        yield Alarm(
            code="collapsed",
            path=layer.path,
            text=f"decides R={only.frame_stride} r={only.channel_share:g} for all {num_clips} clips; a fixed choice "
            "would cost no gate.",
        )
    if layer.computed_macs.total > layer.dense_macs.total and len(picked) > 1:
        yield Alarm(code="costs_more", path=layer.path, text="its gate and cheap operations cost more than is saved.")
    if layer.timing is not None and _is_slower(layer.timing):
        yield Alarm(
            code="slower",
            path=layer.path,
            text=f"takes {layer.timing.dynamic.ms:.2f} ms, {layer.timing.dense.ms:.2f} ms in the original.",
        )
    error = layer.mean_rebuild_error
    if error is not None and error > FAR_OFF:
        yield Alarm(code="drift", path=layer.path, text=f"what it gives is {percent(error)} away from its full output.")


def _is_slower(timing: Timing) -> bool:
    """By more than the repetitions vary: even its fastest is slower than the original's median."""
    return timing.ratio > SLOWER and timing.dynamic.min_ms > timing.dense.ms
