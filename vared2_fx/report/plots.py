"""Plots of a report for papers: static files, drawn by matplotlib."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vared2_fx.errors import ReportError
from vared2_fx.report.document import CompressionReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DENSE, _COMPUTED = "#b9c4cf", "#0a6590"


def save_plots(report: CompressionReport, folder: Path, form: Literal["png", "svg", "pdf"]) -> tuple[Path, ...]:
    """Write every plot that the report has data for; see `CompressionReport.save_plots`."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in _figures(report):
            paths.append(folder / f"{name}.{form}")
            figure.savefig(paths[-1], dpi=200)
    except OSError as exc:
        raise ReportError(f"report: plots cannot be written into {folder}: {exc.strerror or exc}.") from exc
    return tuple(paths)


def _figures(report: CompressionReport) -> Iterator[tuple[str, "Figure"]]:
    yield "depth", _depth(report)
    yield "choices", _choices(report)
    yield "clips", _clips(report)
    if report.macs_by_class:
        yield "classes", _classes(report)


def _figure(width: float = 7.0, height: float = 2.6, rows: int = 1) -> "Figure":
    from matplotlib.figure import Figure  # no pyplot: no window, no state that is shared

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.subplots(rows, 1, squeeze=False)
    return figure


def _depth(report: CompressionReport) -> "Figure":
    figure = _figure()
    (axes,) = figure.axes
    places = range(len(report.layers))
    axes.bar(places, [layer.dense_macs.mean / 1e6 for layer in report.layers], color=_DENSE, label="original")
    computed = [layer.computed_macs.mean / 1e6 for layer in report.layers]
    axes.bar(places, computed, width=0.5, color=_COMPUTED, label="expected")
    axes.set_xlabel("layer, along depth")
    axes.set_ylabel("10⁶ multiply-adds per clip")
    axes.legend(frameon=False)
    return figure


def _choices(report: CompressionReport) -> "Figure":
    figure = _figure(height=3.2, rows=2)
    for axes, field, letter in zip(figure.axes, ("frame_stride", "channel_share"), "Rr", strict=True):
        choices = [choice for layer in report.dynamic for choice in layer.choices]
        values = sorted({getattr(choice, field) for choice in choices}, reverse=field == "channel_share")
        grid = [
            [
                sum(c.clips for c in layer.choices if getattr(c, field) == value)
                / max(1, sum(c.clips for c in layer.choices))
                for layer in report.dynamic
            ]
            for value in values
        ]
        axes.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_yticks(range(len(values)), [f"{letter}={value:g}" for value in values])
    figure.axes[-1].set_xlabel("dynamic layer, along depth; share of the clips")
    return figure


def _clips(report: CompressionReport) -> "Figure":
    figure = _figure(width=4.5)
    (axes,) = figure.axes
    shares = [100 * clip.macs / max(1.0, report.totals.dense_macs.mean) for clip in report.clips]
    axes.hist(shares, bins=24, range=(0, max(100.0, *shares)), color=_COMPUTED)
    axes.set_xlabel("multiply-adds, % of the original")
    axes.set_ylabel("clips")
    return figure


def _classes(report: CompressionReport) -> "Figure":
    shares = {n: 100 * m.mean / max(1.0, report.totals.dense_macs.mean) for n, m in report.macs_by_class.items()}
    names = sorted(shares, key=shares.__getitem__)
    figure = _figure(width=5.0, height=0.8 + 0.24 * len(names))
    (axes,) = figure.axes
    axes.barh([name.replace("$", r"\$") for name in names], [shares[name] for name in names], color=_COMPUTED)
    axes.set_xlabel("multiply-adds, % of the original")
    return figure
