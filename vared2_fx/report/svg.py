"""Small SVG drawings from numbers; every text is escaped, and colours come from the page's style."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 1000
"""Of every drawing, in its own units; the page scales it."""
_LEFT, _GAP = 64, 8


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Make an element: `_` in attribute names becomes `-`, None leaves one out; children are escaped but for Markup."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{text}>{''.join(escape(child) for child in children)}</{name}>")


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def drawing(*children: str, height: float, label: str) -> Markup:
    """The whole drawing; `label` says in words what it shows."""
    return tag("svg", *children, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label, class_="chart")


@dataclass(frozen=True, slots=True)
class Bar:
    """A layer in a chart along depth."""

    number: int | None
    """Of its card; None has none."""
    title: str
    """What it says when pointed at."""
    whole: float
    part: float | None
    """Drawn over `whole`; None: nothing."""
    style: str


def bars(items: Sequence[Bar], *, label: str, unit: str, height: int = 220) -> Markup:
    """Bars along depth, `part` in front of `whole`."""
    top = max((max(item.whole, item.part or 0) for item in items), default=0) or 1.0
    step, floor = (WIDTH - _LEFT) / max(1, len(items)), height - 4
    width = max(0.6, step * 0.84)
    drawn: list[Markup] = []
    for place, item in enumerate(items):
        x = _LEFT + place * step
        rects = [_bar(x, width, item.whole / top * (floor - 10), floor, "whole")]
        if item.part is not None:
            rects.append(_bar(x + width * 0.2, width * 0.6, item.part / top * (floor - 10), floor, "part"))
        hit = tag("rect", x=x, y=0, width=step, height=floor, class_="hit")
        drawn.append(tag("g", tag("title", item.title), *rects, hit, class_=item.style, data_card=item.number))
    axis = (tag("text", unit, x=0, y=14, class_="axis"), tag("text", "0", x=0, y=floor, class_="axis"))
    return drawing(*axis, *drawn, height=height, label=label)


def _bar(x: float, width: float, size: float, floor: float, style: str) -> Markup:
    return tag("rect", x=x, y=floor - size, width=width, height=size, class_=style)


@dataclass(frozen=True, slots=True)
class Cell:
    """A field of a heat map."""

    share: float | None
    """Strength, 0 to 1; None is left empty."""
    title: str
    number: int | None = None
    """Of its card."""


def heat_map(rows: Sequence[tuple[str, Sequence[Cell]]], *, label: str, row_height: int = 26) -> Markup:
    """A row for each name, a field for each of its cells."""
    drawn: list[Markup] = []
    for number, (name, cells) in enumerate(rows):
        y, step = number * row_height, (WIDTH - _LEFT) / max(1, len(cells))
        drawn.append(tag("text", name, x=0, y=y + row_height * 0.65, class_="axis"))
        for place, cell in enumerate(cells):
            style = "none" if cell.share is None else "heat"
            strength = None if cell.share is None else f"{0.06 + 0.94 * cell.share:.2f}"
            drawn.append(
                tag(
                    "rect",
                    tag("title", cell.title),
                    x=_LEFT + place * step,
                    y=y + 1,
                    width=max(0.5, step - min(1.0, step / 6)),
                    height=row_height - 2,
                    class_=style,
                    fill_opacity=strength,
                    data_card=cell.number,
                )
            )
    return drawing(*drawn, height=len(rows) * row_height, label=label)


def histogram(counts: Sequence[int], edges: Sequence[str], *, label: str, height: int = 200) -> Markup:
    """Columns of counts; `edges` name the ends of the axis, evenly spread."""
    top, floor = max(counts, default=0) or 1, height - 26
    step = (WIDTH - _LEFT) / max(1, len(counts))
    drawn = [
        tag(
            "rect",
            tag("title", f"{count} clips"),
            x=_LEFT + place * step + 1,
            y=floor - count / top * (floor - 14),
            width=step - 2,
            height=count / top * (floor - 14),
            class_="part",
        )
        for place, count in enumerate(counts)
    ]
    ends = max(1, len(edges) - 1)
    for place, text in enumerate(edges):
        anchor = "start" if place == 0 else "end" if place == ends else "middle"
        x = _LEFT + (WIDTH - _LEFT) * place / ends
        drawn.append(tag("text", text, x=x, y=height - 6, text_anchor=anchor, class_="axis"))
    drawn.append(tag("text", f"{top} clips", x=0, y=14, class_="axis"))
    return drawing(*drawn, height=height, label=label)


@dataclass(frozen=True, slots=True)
class Line:
    """A curve over epochs; None is a gap."""

    name: str
    values: Sequence[float | None]
    style: str


def lines(
    curves: Sequence[Line], names: Sequence[str], *, label: str, top: float, unit: str, height: int = 220
) -> Markup:
    """Curves from 0 to `top`, which the axis calls `unit`, over the points called `names`."""
    floor, last = height - 26, max(1, len(names) - 1)

    def point(place: int, value: float) -> tuple[float, float]:
        return _LEFT + (WIDTH - _LEFT - _GAP) * place / last, floor - min(value, top) / top * (floor - 14)

    drawn = []
    for curve in curves:
        for piece in _pieces(curve.values):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (point(place, value) for place, value in piece))
            drawn.append(tag("polyline", tag("title", curve.name), points=path, class_=f"line {curve.style}"))
            for place, value in piece:
                x, y = point(place, value)
                text = f"{curve.name}, {names[place]}: {value:.4g}"
                drawn.append(tag("circle", tag("title", text), cx=x, cy=y, r=4, class_=f"dot {curve.style}"))
    axis = [
        tag("text", unit, x=0, y=18, class_="axis"),
        tag("text", "0", x=0, y=floor, class_="axis"),
        tag("text", names[0] if names else "", x=_LEFT, y=height - 6, class_="axis"),
        tag("text", names[-1] if names else "", x=WIDTH, y=height - 6, text_anchor="end", class_="axis"),
    ]
    return drawing(*axis, *drawn, height=height, label=label)


def _pieces(values: Iterable[float | None]) -> list[list[tuple[int, float]]]:
    """The runs without gaps, with the place of each value."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((place, value))
    return [piece for piece in pieces if piece]
