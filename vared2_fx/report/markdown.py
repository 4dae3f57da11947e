"""A report as Markdown, for a pull request."""

from collections.abc import Sequence

from vared2_fx.report.document import CompressionReport
from vared2_fx.report.numbers import LayerReport
from vared2_fx.report.stages import FEW, stages
from vared2_fx.tables import by, percent, si


def to_markdown(report: CompressionReport) -> str:
    """Totals, a table by stage, every dynamic layer in a part that unfolds, and alarms."""
    totals = report.totals
    shapes = ", ".join(by(item.shape) for item in report.inputs[:3])
    parts = [f"### {text(report.network)}: {percent(1 - totals.saved_share)} of the multiply-adds", ""]
    parts.append(f"{len(report.dynamic)} dynamic layers, {totals.num_clips} clips of {shapes}.")
    parts += [f"\n> interrupted; missing: {text(missing)}" for missing in report.missing]
    parts += [f"\n> {text(note)}" for note in report.notes]
    parts += ["", *table(("", ">original", ">dynamic", ">change"), _totals(report))]
    rows, found = [_row(layer.path, [layer]) for layer in report.dynamic], stages(report.dynamic)
    columns = (">MACs", ">cost", ">+params", ">ms")
    if len(found) < len(rows):
        parts += ["", *table(("stage", *columns), [_row(stage.name, stage.layers) for stage in found])]
        parts += ["", f"<details><summary>{len(rows)} layers</summary>", ""]
        parts += [*table(("layer", *columns), rows), "", "</details>"]
    else:
        parts += ["", *table(("layer", *columns), rows)]
    if report.alarms:
        parts += ["", f"<details><summary>{len(report.alarms)} alarms</summary>", ""]
        for alarm in report.alarms[: 4 * FEW]:
            where = f"`{code(alarm.path)}`" if alarm.path else "the network"
            parts.append(f"- {alarm.code.replace('_', ' ')}: {where} {text(alarm.text)}")
        parts += ["", "</details>"]
    return "\n".join(parts) + "\n"


def _totals(report: CompressionReport) -> list[tuple[str, ...]]:
    totals = report.totals
    dense, computed = totals.dense_macs, totals.computed_macs
    share = percent(computed.total / max(1, dense.total))
    rows: list[tuple[str, ...]] = [("multiply-adds per clip", si(dense.mean), si(computed.mean), share)]
    rows.append(("cheapest … dearest clip", "", f"{si(computed.min)} … {si(computed.max)}", ""))
    rows.append(("parameters", si(totals.params), si(totals.params + totals.params_added), ""))
    if totals.timing is not None:
        timing = totals.timing
        rows.append(
            ("time, batch 1", f"{timing.dense.ms:.1f} ms", f"{timing.dynamic.ms:.1f} ms", percent(timing.ratio))
        )
    if totals.top1 is not None:
        rows.append(("top-1", "", percent(totals.top1), f"of {totals.num_labelled}"))
    if totals.drift is not None:
        rows.append(("output drift", "", percent(totals.drift), ""))
    return rows


def _row(name: str, layers: Sequence[LayerReport]) -> tuple[str, ...]:
    dense, computed = (sum(getattr(layer, kind).total for layer in layers) for kind in ("dense_macs", "computed_macs"))
    timings = [layer.timing for layer in layers if layer.timing is not None]
    before, after = (sum(getattr(timing, form).ms for timing in timings) for form in ("dense", "dynamic"))
    return (
        f"`{code(name)}`",
        si(sum(layer.dense_macs.mean for layer in layers)),
        percent(computed / max(1, dense)),
        si(sum(layer.params_added for layer in layers)),
        f"{before:.1f} → {after:.1f}" if timings else "",
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; columns that begin with `>` are right-aligned. Cells have to be escaped already."""
    head = " | ".join(column.lstrip(">") for column in columns)
    line = " | ".join("---:" if column.startswith(">") else "---" for column in columns)
    return [f"| {head} |", f"| {line} |", *(f"| {' | '.join(row)} |" for row in rows)]


def text(value: str) -> str:
    """A text of unknown origin, such that Markdown shows it as it is, in one line."""
    shown = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#!" else letter for letter in shown)


def code(value: str) -> str:
    """A text between backquotes, in a table or not."""
    return " ".join(value.split()).replace("`", "'").replace("|", "\\|")
