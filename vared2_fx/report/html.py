"""A report as one HTML page that needs nothing else: no network, no other file."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vared2_fx.errors import ReportError
from vared2_fx.report.cards import cards
from vared2_fx.report.document import CompressionReport, Example
from vared2_fx.report.flow import Box, flow
from vared2_fx.report.numbers import LayerReport
from vared2_fx.report.svg import Bar, Cell, bars, heat_map, histogram
from vared2_fx.tables import by, percent, si

NUM_BINS = 24
"""Of the histogram of costs."""


def to_html(report: CompressionReport) -> str:
    """The page of a report, see `CompressionReport.to_html`."""
    sensitive = any(layer.sensitivity is not None for layer in report.layers)
    return render(
        "report.html.j2",
        title=f"{report.network}: what it computes",
        report=report,
        rows=[_row(report, number, layer, sensitive) for number, layer in enumerate(report.layers)],
        sensitive=sensitive,
        offered={
            "strides": "/".join(f"{value:g}" for value in _values(report, "frame_stride")),
            "shares": "/".join(f"{value:g}" for value in _values(report, "channel_share")),
        },
        depth=_depth(report),
        strides=_heat(report, "frame_stride", "R"),
        shares=_heat(report, "channel_share", "r"),
        costs=_costs(report),
        classes=_classes(report),
        graph=flow(report.graph, [_box(layer) for layer in report.layers]),
        examples=[_example(report, example) for example in report.examples],
        data=safe_json(cards(report)),
    )


def write_page(path: Path, page: str) -> None:
    """Write a page into a file.

    Raises:
        ReportError: it cannot be written.
    """
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as exc:
        raise ReportError(f"report: {path} cannot be written: {exc.strerror or exc}.") from exc


def render(template: str, **values: Any) -> str:
    """Fill a template of the folder `page`; whatever is no Markup is escaped."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    folder = Path(__file__).parent / "page"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"si": si, "percent": percent, "by": by}
    for name in ("style.css", "page.js"):
        environment.globals[name.replace(".", "_")] = Markup((folder / name).read_text(encoding="utf-8"))
    return environment


def safe_json(value: Any) -> Markup:
    """JSON for a script element: nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _row(report: CompressionReport, number: int, layer: LayerReport, sensitive: bool) -> Mapping[str, Any]:
    """A line of the table: texts, and the numbers that it is sorted by."""
    dynamic, timing, alone = layer.kind == "dynamic", layer.timing, layer.sensitivity
    error, computed = layer.mean_rebuild_error, layer.computed_macs
    codes = [alarm.code for alarm in report.alarms if alarm.path == layer.path]
    cells = [
        (si(layer.dense_macs.mean), layer.dense_macs.mean),
        (percent(layer.dense_macs.total / max(1, report.totals.dense_macs.total)), layer.dense_macs.mean),
        (f"{100 * layer.computed_share:.0f} %" if dynamic else "", layer.computed_share if dynamic else None),
        (f"{si(computed.p50)} / {si(computed.p95)}" if dynamic else "", computed.p95 if dynamic else None),
        *(
            (_picked(layer, field, _values(report, field)), _mean(layer, field) if dynamic else None)
            for field in ("frame_stride", "channel_share")
        ),
        _number(layer.choice_entropy, "{:.2f}"),
        (si(layer.params_added) if dynamic else "", layer.params_added if dynamic else None),
        (f"{timing.dense.ms:.1f} → {timing.dynamic.ms:.1f}", timing.ratio) if timing else ("", None),
        _number(None if error is None else 100 * error, "{:.1f} %"),
    ]
    if sensitive:
        cells.append(_number(None if alone is None else 100 * alone.drift, "{:.1f} %"))
    return {"number": number, "layer": layer, "cells": cells, "alarms": codes}


def _box(layer: LayerReport) -> Box:
    macs, dynamic = si(layer.dense_macs.mean), layer.kind == "dynamic"
    what = f"{percent(layer.computed_share)} computed" if dynamic else layer.kind
    return Box(
        path=layer.path,
        words=f"{layer.path}: {layer.operation}, {macs}MACs, {what}",
        cost=f"{100 * layer.computed_share:.0f} %" if dynamic else macs,
        kind=layer.kind,
        filled=min(1.0, layer.computed_share) if dynamic else 0.0,
    )


def _number(value: float | None, form: str) -> tuple[str, float | None]:
    return ("", None) if value is None else (form.format(value), value)


def _values(report: CompressionReport, field: str) -> list[float]:
    found = {getattr(choice, field) for layer in report.dynamic for choice in layer.choices}
    return sorted(found, reverse=field == "channel_share")


def _picked(layer: LayerReport, field: str, values: Sequence[float]) -> str:
    """Percent of the clips per value, as 62/30/8; `-` where a value is not offered."""
    total = max(1, sum(choice.clips for choice in layer.choices))
    texts = []
    for value in values if layer.choices else ():
        clips = [choice.clips for choice in layer.choices if getattr(choice, field) == value]
        texts.append(f"{100 * sum(clips) / total:.0f}" if clips else "-")
    return "/".join(texts)


def _mean(layer: LayerReport, field: str) -> float:
    total = max(1, sum(choice.clips for choice in layer.choices))
    return float(sum(getattr(choice, field) * choice.clips for choice in layer.choices) / total)


def _depth(report: CompressionReport) -> Markup:
    items = []
    for number, layer in enumerate(report.layers):
        part = layer.computed_macs.mean if layer.kind == "dynamic" else None
        text = f"{layer.path}: {si(layer.dense_macs.mean)}MACs"
        text += "" if part is None else f", expected {si(part)} ({percent(layer.computed_share)})"
        items.append(Bar(number, text, layer.dense_macs.mean, part, layer.kind))
    top = max((layer.dense_macs.mean for layer in report.layers), default=0)
    return bars(items, label="Multiply-adds of each layer along depth, original and expected", unit=si(top))


def _heat(report: CompressionReport, field: str, letter: str) -> Markup:
    numbers = {layer.path: number for number, layer in enumerate(report.layers)}
    rows = []
    for value in _values(report, field):
        cells = []
        for layer in report.dynamic:
            of_value = [choice.clips for choice in layer.choices if getattr(choice, field) == value]
            share = sum(of_value) / max(1, sum(choice.clips for choice in layer.choices)) if of_value else None
            text = "not offered" if share is None else f"{percent(share)} of the clips"
            cells.append(Cell(share, f"{layer.path}, {letter}={value:g}: {text}", numbers[layer.path]))
        rows.append((f"{letter}={value:g}", cells))
    what = "frame strides R" if letter == "R" else "channel shares r"
    return heat_map(rows, label=f"Share of the clips that got each of the {what}, layer by layer")


def _costs(report: CompressionReport) -> Mapping[str, Any]:
    """How many clips cost what; the counts sum to the number of clips."""
    low, high = 0, max((clip.macs for clip in report.clips), default=1)
    high = max(high, report.totals.dense_macs.max, 1)
    counts = [0] * NUM_BINS
    for clip in report.clips:
        counts[min(NUM_BINS - 1, (clip.macs - low) * NUM_BINS // (high - low))] += 1
    edges = [si(low), si(high / 2), f"{si(high)}MACs"]
    return {"counts": counts, "chart": histogram(counts, edges, label="How many clips took how many multiply-adds")}


def _classes(report: CompressionReport) -> list[Mapping[str, Any]]:
    """Each label's clips and mean cost, dearest first; accuracy where the network answers."""
    dense = max(1.0, report.totals.dense_macs.mean)
    right: dict[str, list[bool]] = {}
    for clip in report.clips:
        if clip.label is not None and clip.prediction is not None:
            right.setdefault(report.class_name(clip.label), []).append(clip.label == clip.prediction)
    rows = [
        {
            "name": name,
            "clips": macs.num_clips,
            "macs": si(macs.mean),
            "share": macs.mean / dense,
            "top1": percent(sum(right[name]) / len(right[name])) if name in right else "",
        }
        for name, macs in report.macs_by_class.items()
    ]
    return sorted(rows, key=lambda row: -float(row["share"]))


def _example(report: CompressionReport, example: Example) -> Mapping[str, Any]:
    clip, shares = report.clips[example.clip], _choice_shares(report)
    numbers = {layer.path: number for number, layer in enumerate(report.layers)}
    cells = [
        Cell(
            shares.get((choice.path, choice.frame_stride, choice.channel_share), 1.0),
            f"{choice.path}: R={choice.frame_stride} r={choice.channel_share:g}",
            numbers.get(choice.path),
        )
        for choice in example.choices
    ]
    frames = sum(choice.frame_stride > 1 for choice in example.choices)
    channels = sum(choice.channel_share < 1 for choice in example.choices)
    label = "" if clip.label is None else f"label {report.class_name(clip.label)}"
    answer = "" if clip.prediction is None else f"answer {report.class_name(clip.prediction)}"
    return {
        "clip": clip,
        "title": "/".join(clip.name.split("/")[-2:]) or f"clip {example.clip}",
        "extreme": example.extreme,
        "share": percent(clip.macs / max(1.0, report.totals.dense_macs.mean)),
        "frames": example.frames,
        "about": "; ".join(text for text in (label, answer) if text),
        "decisions": f"{frames} of {len(example.choices)} layers skip frames, {channels} skip channels",
        "map": heat_map([("", cells)], label="What each layer computed, stronger is more", row_height=70),
    }


def _choice_shares(report: CompressionReport) -> Mapping[tuple[str, int, float], float]:
    """Roughly, what a choice computes: r / R."""
    choices: Sequence[tuple[str, Any]] = [(layer.path, c) for layer in report.dynamic for c in layer.choices]
    return {(p, c.frame_stride, c.channel_share): c.channel_share / c.frame_stride for p, c in choices}
