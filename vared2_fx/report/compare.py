"""What changed from one report to another: totals, layers, and whether that is too much."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vared2_fx.errors import ReportError
from vared2_fx.report.document import CompressionReport
from vared2_fx.report.markdown import code, table, text
from vared2_fx.report.numbers import LayerReport
from vared2_fx.report.text import wrap
from vared2_fx.tables import percent, si, text_table

SMALL = 0.001
"""Relative changes below this are no change to a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A number in both reports."""

    name: str
    """`macs`, `time`, `params`, `top1` or `drift` of the network, `macs` or `time` of a layer."""
    path: str
    """Of the layer; empty for the whole network."""
    before: float | None
    """Multiply-adds per clip, milliseconds, parameters, or a share; None where the earlier report lacks it."""
    after: float | None

    @property
    def relative(self) -> float | None:
        """(after - before) / before, for shares (`top1`, `drift`) after - before; None where one is missing."""
        if self.before is None or self.after is None:
            return None
        if self.name in ("top1", "drift"):
            return self.after - self.before
        if not self.before:
            return 0.0 if self.after == self.before else float("inf")
        return self.after / self.before - 1

    @property
    def worse(self) -> float:
        """How much worse, as `relative`; negative is better, 0 unchanged or unknown."""
        change = self.relative or 0.0
        return -change if self.name == "top1" else change


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What changed from report `before` to report `after`. `print` it."""

    networks: tuple[str, str]
    totals: tuple[Change, ...]
    layers: tuple[Change, ...]
    """Of layers in both, the worst regression first; times only where both were measured on the same machine."""
    added: tuple[str, ...]
    """Paths of layers that only the later report has."""
    removed: tuple[str, ...]
    notes: tuple[str, ...]
    """Why numbers may not be comparable."""

    def failures(self, conditions: Sequence[str]) -> tuple[str, ...]:
        """The conditions that hold, each with what was seen; none, if all is well.

        Args:
            conditions: such as `macs>+2%`, `top1<-0.5%`, `drift>+1%`, `time>+10%`, `params>+0%`: changes of the
                network; those of `top1` and `drift` in percentage points.

        Raises:
            ReportError: a condition is not understood, or a report lacks its number.
        """
        found = {change.name: change for change in self.totals}
        return tuple(failure for condition in conditions for failure in _failure(condition, found))

    def to_markdown(self) -> str:
        """For a pull request: totals, then the layers that changed."""
        parts = [f"### {text(self.networks[1])}: what changed", ""]
        parts += [f"> {text(note)}\n" for note in self.notes]
        parts += table(("", ">before", ">after", ">change"), [_cells(change) for change in self.totals])
        if self.layers:
            rows = [(f"`{code(c.path)}` {c.name}", *_cells(c)[1:]) for c in self.layers]
            parts += ["", f"<details><summary>{len(rows)} changes in layers</summary>", ""]
            parts += [*table(("layer", ">before", ">after", ">change"), rows), "", "</details>"]
        return "\n".join(parts) + "\n"

    def __str__(self) -> str:
        """Totals, then layers, regressions first; at most 100 columns wide."""
        lines = [line for note in self.notes for line in wrap(f"note: {note}")]
        rows = [_cells(change) for change in self.totals]
        lines.append(text_table(("", ">before", ">after", ">change"), rows))
        rows = [(f"{c.path} {c.name}", *_cells(c)[1:]) for c in self.layers]
        lines += [text_table(("layer", ">before", ">after", ">change"), rows)] if rows else ["no layer changed"]
        for what, paths in (("new", self.added), ("gone", self.removed)):
            if paths:
                lines += wrap(f"{what}: {', '.join(paths[:20])}{', …' if len(paths) > 20 else ''}")
        return "\n".join(lines)


def compare(before: CompressionReport, after: CompressionReport) -> Comparison:
    """Compare two reports of one network, or of two that have layers of the same names.

    Args:
        before: the earlier one.
        after: the later one.

    Returns:
        Changes of the totals and of every layer that changed by more than 0.1 %, the worst first.
    """
    ours, theirs = ({layer.path: layer for layer in report.layers} for report in (before, after))
    same_place = before.environment == after.environment
    changes = [
        change
        for path in ours.keys() & theirs.keys()
        for change in _of_layer(ours[path], theirs[path], same_place)
        if change.relative is not None and abs(change.relative) > SMALL
    ]
    return Comparison(
        networks=(before.network, after.network),
        totals=tuple(_of_totals(before, after)),
        layers=tuple(sorted(changes, key=lambda change: (-change.worse, change.path, change.name))),
        added=tuple(path for path in theirs if path not in ours),
        removed=tuple(path for path in ours if path not in theirs),
        notes=tuple(_notes(before, after, same_place)),
    )


def _of_totals(before: CompressionReport, after: CompressionReport) -> Iterator[Change]:
    a, b = before.totals, after.totals
    times = [None if totals.timing is None else totals.timing.dynamic.ms for totals in (a, b)]
    for name, first, second in (
        ("macs", a.computed_macs.mean, b.computed_macs.mean),
        ("time", times[0], times[1]),
        ("params", float(a.params + a.params_added), float(b.params + b.params_added)),
        ("top1", a.top1, b.top1),
        ("drift", a.drift, b.drift),
    ):
        yield Change(name=name, path="", before=first, after=second)


def _of_layer(before: LayerReport, after: LayerReport, same_place: bool) -> Iterator[Change]:
    first, second = before.computed_macs.mean, after.computed_macs.mean
    yield Change(name="macs", path=after.path, before=first, after=second)
    if same_place and before.timing is not None and after.timing is not None:
        yield Change(name="time", path=after.path, before=before.timing.dynamic.ms, after=after.timing.dynamic.ms)


def _notes(before: CompressionReport, after: CompressionReport, same_place: bool) -> Iterator[str]:
    if before.network != after.network:
        yield f"the earlier report is of {before.network}, the later of {after.network}."
    if before.totals.num_clips != after.totals.num_clips:
        yield f"the earlier report saw {before.totals.num_clips} clips, the later {after.totals.num_clips}."
    elif [clip.name for clip in before.clips] != [clip.name for clip in after.clips]:
        yield "the two reports saw different clips."
    if [item.shape for item in before.inputs] != [item.shape for item in after.inputs]:
        yield "clips had different sizes."
    if not same_place and before.totals.timing is not None and after.totals.timing is not None:
        yield "times were taken on different machines or settings; those of layers are left out."
    for which, report in (("earlier", before), ("later", after)):
        if report.missing:
            yield f"the {which} report was interrupted; missing: {'; '.join(report.missing)}."


def _cells(change: Change) -> tuple[str, str, str, str]:
    return change.name, _value(change.name, change.before), _value(change.name, change.after), _relative(change)


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "time":
        return f"{value:.2f} ms"
    return percent(value) if name in ("top1", "drift") else si(value)


def _relative(change: Change) -> str:
    if change.relative is None:
        return ""
    unit = "points" if change.name in ("top1", "drift") else "%"
    return f"{100 * change.relative:+.1f} {unit}"


_CONDITION = re.compile(r"\s*(\w+)\s*([<>])\s*([+-]?\d+(?:\.\d+)?)\s*%\s*")


def check_conditions(conditions: Sequence[str]) -> None:
    """Refuse what `Comparison.failures` would not understand, before anything takes long.

    Raises:
        ReportError: naming it.
    """
    for condition in conditions:
        _parsed(condition)


def _parsed(condition: str) -> tuple[str, str, float]:
    found = _CONDITION.fullmatch(condition)
    names = ("macs", "time", "params", "top1", "drift")
    if not found or found[1] not in names:
        raise ReportError(
            f"fail-on: `{condition}` is not understood; write macs>+2%, time>+10%, params>+0%, top1<-0.5% or "
            "drift>+1% (changes; of top1 and drift in percentage points)."
        )
    return found[1], found[2], float(found[3]) / 100


def _failure(condition: str, found: dict[str, Change]) -> Iterator[str]:
    name, sign, limit = _parsed(condition)
    change = found[name]
    if change.relative is None:
        which = "earlier" if change.before is None else "later"
        raise ReportError(f"fail-on: `{condition}` cannot be judged, as the {which} report has no {name}.")
    over = change.relative - limit if sign == ">" else limit - change.relative
    if over > 1e-12:
        cells = _cells(change)
        yield f"{condition.strip()}: {name} went from {cells[1]} to {cells[2]} ({cells[3]})"
