"""The page of a plan: where the multiply-adds are before anything is converted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vared2_fx.calibration import LayerRedundancy, Predicted, Redundancy
from vared2_fx.passes.plan import Plan, PlanEntry, PlanRegion
from vared2_fx.report.flow import Box, flow
from vared2_fx.report.html import render, safe_json, write_page
from vared2_fx.report.svg import Bar, bars
from vared2_fx.tables import by, percent, si


def scan_page(plan: Plan, path: str | Path | None = None, *, redundancy: Redundancy | None = None) -> str:
    """A plan as one HTML page, like that of a report: where the multiply-adds are, what converts, what is reachable.

    Args:
        plan: what `scan` returned.
        path: also write it there.
        redundancy: what `redundancy` found on clips of yours; shown beside each layer.

    Raises:
        ReportError: it cannot be written there.
    """
    found = {} if redundancy is None else {layer.path: layer for layer in redundancy.layers}
    inside = sum(entry.macs or 0 for entry in plan.converted)
    page = render(
        "scan.html.j2",
        title=f"{plan.network}: what would convert",
        plan=plan,
        reach=plan.reach,
        eligible=inside / plan.macs if plan.macs else None,
        rows=[_row(plan, number, entry, found) for number, entry in enumerate(plan.entries)],
        redundancy=redundancy,
        depth=_depth(plan),
        reasons=_reasons(plan),
        graph=flow(plan.graph, [_box(plan, entry) for entry in plan.entries]),
        data=safe_json([_card(plan, entry, found.get(entry.path)) for entry in plan.entries]),
    )
    if path is not None:
        write_page(Path(path), page)
    return page


def _region(plan: Plan, entry: PlanEntry) -> PlanRegion | None:
    return next((region for region in plan.regions if region.path == entry.region), None)


def _box(plan: Plan, entry: PlanEntry) -> Box:
    region, share = _region(plan, entry), _share(plan, entry)
    words = f"{entry.path}: {entry.operation}"
    words += f", {si(entry.macs)}MACs" if entry.macs is not None else ""
    words += f", decided in {region.path}" if region is not None else f", static: {entry.reason}"
    return Box(
        path=entry.path,
        words=words,
        cost="" if share is None else percent(share),
        kind="static" if region is None else "dynamic",
        filled=0.0 if region is None else 1.0,
    )


def _cheapest(plan: Plan, entry: PlanEntry) -> float | None:
    """Multiply-adds of the cheapest choice, gate included, as a share of the region's; of a region's first layer."""
    region = _region(plan, entry)
    if region is None or not region.choice_macs or region.convs[0] != entry.path:
        return None
    return (min(region.choice_macs) + (region.gate_macs or 0)) / max(1, region.choice_macs[0])


def _row(plan: Plan, number: int, entry: PlanEntry, found: Mapping[str, LayerRedundancy]) -> Mapping[str, Any]:
    share, cheapest = _share(plan, entry), _cheapest(plan, entry)
    cells = [
        ("" if entry.macs is None else si(entry.macs), entry.macs),
        ("" if share is None else percent(share), share),
        ("" if cheapest is None else percent(cheapest), cheapest),
    ]
    if found:
        seen = found.get(entry.path)
        for predicted in (None, None) if seen is None else (seen.by_frame, seen.by_channel):
            cells.append(("", None) if predicted is None else (f"{predicted.r2:.2f}", predicted.r2))
    what = "converts" if entry.converts else f"static: {entry.reason}"
    if entry.region and entry.region != entry.path:
        what = f"in {entry.region}"
    return {"number": number, "entry": entry, "cells": cells, "what": what}


def _share(plan: Plan, entry: PlanEntry) -> float | None:
    return entry.macs / plan.macs if entry.macs is not None and plan.macs else None


def _depth(plan: Plan) -> str:
    items = []
    for number, entry in enumerate(plan.entries):
        macs = float(entry.macs or 0)
        text = f"{entry.path}: {si(macs)}MACs, {'converts' if entry.converts else entry.reason}"
        items.append(
            Bar(number, text, macs, macs if entry.converts else None, "dynamic" if entry.converts else "static")
        )
    top = max((item.whole for item in items), default=0)
    return bars(
        items, label="Multiply-adds of each 3D convolution along depth, and which of them convert", unit=si(top)
    )


def _reasons(plan: Plan) -> list[tuple[str, str, int, str]]:
    """Code, words, number of convolutions and their share of the multiply-adds."""
    codes = dict.fromkeys((entry.reason, entry.detail) for entry in plan.skipped)
    rows: list[tuple[str, str, int, str]] = []
    for reason, detail in codes:
        entries = [entry for entry in plan.skipped if (entry.reason, entry.detail) == (reason, detail)]
        total = sum(entry.macs or 0 for entry in entries)
        rows.append((reason, detail, len(entries), percent(total / plan.macs) if plan.macs else ""))
    return rows


def _predicted(found: Predicted | None) -> str:
    return "" if found is None else f"R² {found.r2:.2f}; {percent(found.share)} of the maps well"


def _card(plan: Plan, entry: PlanEntry, seen: LayerRedundancy | None) -> dict[str, Any]:
    region, share = _region(plan, entry), _share(plan, entry)
    facts = [
        ("operation", entry.operation),
        ("what", "converts" if entry.converts else f"static: {entry.reason}; {entry.detail}"),
        ("input → output", f"{by(entry.in_shape or ())} → {by(entry.out_shape or ())}" if entry.out_shape else ""),
        ("multiply-adds", "" if entry.macs is None else f"{si(entry.macs)}MACs, {percent(share or 0)} of the network"),
        ("decided in", entry.region if entry.region and entry.region != entry.path else ""),
        ("frames predicted", "" if seen is None else _predicted(seen.by_frame)),
        ("channels predicted", "" if seen is None else _predicted(seen.by_channel)),
    ]
    choices: list[str] = []
    if region is not None and region.choice_macs:
        dense = max(1, region.choice_macs[0])
        found = zip(region.grid.all(), region.choice_macs, strict=True)
        choices = [f"{choice}: {si(macs)}MACs, {percent(macs / dense)}" for choice, macs in found]
        choices.append(f"gate: {si(region.gate_macs or 0)}MACs")
    facts += [("choices" if n == 0 else " ", text) for n, text in enumerate(choices)]
    return {
        "title": entry.path,
        "facts": [[name, value] for name, value in facts if value],
        "choices": [],
        "alarms": [],
    }
