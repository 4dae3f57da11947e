"""The page of a run: how accuracy, multiply-adds and decisions went over the epochs."""

import math
from pathlib import Path

from markupsafe import Markup

from vared2_fx.report.html import render, safe_json, write_page
from vared2_fx.report.run_log import RunLog
from vared2_fx.report.svg import Cell, Line, heat_map, lines
from vared2_fx.tables import percent


def run_page(run: RunLog, path: Path | None) -> str:
    """See `RunLog.to_html`."""
    names = [f"epoch {epoch.epoch}" for epoch in run.epochs]
    losses = [epoch.train_loss if epoch.epoch else None for epoch in run.epochs]
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    shares = [share for epoch in run.epochs if math.isfinite(share := epoch.max_share)]
    top = max([1.0, *shares])
    page = render(
        "run.html.j2",
        title=f"{run.folder}: training",
        run=run,
        curves=lines(
            [
                Line("dearest clip", _finite([epoch.max_share for epoch in run.epochs]), "faint"),
                Line("cheapest clip", _finite([epoch.min_share for epoch in run.epochs]), "faint"),
                Line("multiply-adds", _finite([epoch.share for epoch in run.epochs]), ""),
                Line("top-1", _finite([epoch.accuracy for epoch in run.epochs]), "second"),
            ],
            names,
            label="Top-1 and multiply-adds of the validation clips over the epochs",
            top=top,
            unit=f"{100 * top:.0f} %",
        ),
        loss=lines(
            [Line("loss", _finite(losses), "")],
            names,
            label="Training loss",
            top=max([*known, 1e-9]),
            unit=f"{max([*known, 1e-9]):.3g}",
        ),
        shares=_layers(run, "share", 1.0, "of its multiply-adds computed"),
        entropies=_layers(run, "entropy", None, "bits of entropy over the clips"),
        data=safe_json([]),
    )
    if path is not None:
        write_page(path, page)
    return page


def _finite(values: list[float] | list[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in values]


def _layers(run: RunLog, what: str, top: float | None, words: str) -> Markup:
    """A row for each layer, a field for each epoch."""
    values = [layer[what] for epoch in run.epochs for layer in epoch.layers.values()]
    scale = top or max([*values, 1e-9])
    rows = []
    for number, path in enumerate(run.paths, start=1):
        cells = []
        for epoch in run.epochs:
            value = epoch.layers.get(path, {}).get(what)
            shown = "unknown" if value is None else percent(value) if what == "share" else f"{value:.2f}"
            strength = None if value is None else min(1.0, value / scale)
            cells.append(Cell(strength, f"{path}, epoch {epoch.epoch}: {shown} {words}"))
        rows.append((str(number), cells))
    return heat_map(rows, label=f"Each layer over the epochs: {words}", row_height=20)
