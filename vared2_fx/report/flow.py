"""The network's graph as an SVG drawing: it flows from top to bottom, and each layer leads to its card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
from markupsafe import Markup

from vared2_fx.passes.flow_graph import GraphNode
from vared2_fx.report.svg import tag

_COLUMN, _ROW, _HIGH, _WIDE = 300, 38, 26, 270
"""Distances of centres, and sizes of a box, in the drawing's units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A layer of the drawing."""

    path: str
    words: str
    """What it is, in a sentence."""
    cost: str
    """The number in it."""
    kind: str
    """Its class in the style sheet: `dynamic`, `static`."""
    filled: float
    """How much of it is filled, from 0 to 1."""


def flow(nodes: Sequence[GraphNode], layers: Sequence[Box]) -> Markup:
    """Draw `nodes`; boxes are layers (their link is `#card-N`, N the place in `layers`), dots are joins."""
    numbers = {layer.path: number for number, layer in enumerate(layers)}
    places = _places(nodes)
    if not places:
        return Markup("")
    width = max(x for x, _ in places.values()) + _COLUMN / 2 + 8
    height = max(y for _, y in places.values()) + _ROW
    boxes = {node.name: node.name in numbers for node in nodes}
    edges = [
        _edge(places[source], places[node.name], _half(boxes[source]), _half(boxes[node.name]))
        for node in nodes
        for source in node.reads
        if source in places
    ]
    points = [_point(node, places[node.name], numbers.get(node.name), layers) for node in nodes]
    label = f"Graph of the network: {len(numbers)} layers from input to output. Each layer is a link to its card."
    return tag(
        "svg",
        *edges,
        *points,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        class_="flow",
        role="group",
        aria_label=label,
    )


def _places(nodes: Sequence[GraphNode]) -> Mapping[str, tuple[float, float]]:
    """Centres of the points: a row for each step from the input, columns as `_columns` gives them."""
    graph = nx.DiGraph()
    graph.add_nodes_from(node.name for node in nodes)
    graph.add_edges_from((source, node.name) for node in nodes for source in node.reads if source in graph)
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    while not nx.is_directed_acyclic_graph(graph):  # a layer that is called twice may read itself by way of others
        graph.remove_edge(*nx.find_cycle(graph)[-1][:2])
    rows: dict[str, int] = {}
    for row, names in enumerate(nx.topological_generations(graph)):
        rows.update(dict.fromkeys(names, row))
    left: dict[str, int] = {}
    for name in reversed(list(nx.topological_sort(graph))):
        left[name] = 1 + max((left[reader] for reader in graph.successors(name)), default=0)
    columns = _columns(rows, left, graph)
    return {name: (_COLUMN / 2 + 8 + columns[name] * _COLUMN, _ROW * (0.75 + rows[name])) for name in rows}


def _columns(rows: Mapping[str, int], left: Mapping[str, int], graph: "nx.DiGraph") -> dict[str, int]:
    """In a row of several the one with the longest way to the output keeps the column that it comes from.

    networkx's own layouts order a row at random, which crosses edges.
    """
    columns: dict[str, int] = {}
    in_row: dict[int, list[str]] = {}
    for name in graph:
        in_row.setdefault(rows[name], []).append(name)
    for row in sorted(in_row):
        taken: set[int] = set()
        for name in sorted(in_row[row], key=lambda name: -left[name]):
            column = min((columns[source] for source in graph.predecessors(name)), default=0)
            column = 0 if len(in_row[row]) == 1 else column
            while column in taken:
                column += 1
            taken.add(column)
            columns[name] = column
    return columns


def _half(box: bool) -> float:
    """Half the height of a box; of a dot or a word."""
    return _HIGH / 2 if box else 7.0


def _edge(start: tuple[float, float], end: tuple[float, float], below: float, above: float) -> Markup:
    (x, y), (to_x, to_y) = start, end
    y, to_y = y + below, to_y - above
    if x == to_x and to_y - y > _ROW:  # past others in the same column
        side = x + _WIDE / 2 + 12
        path = f"M{x:.0f} {y:.0f} C{side:.0f} {y + 14:.0f} {side:.0f} {to_y - 14:.0f} {to_x:.0f} {to_y:.0f}"
        if to_y - y > 2 * _ROW:
            path = (
                f"M{x:.0f} {y:.0f} Q{side:.0f} {y:.0f} {side:.0f} {y + 20:.0f} L{side:.0f} {to_y - 20:.0f} "
                f"Q{side:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}"
            )
    else:
        middle = (y + to_y) / 2
        path = f"M{x:.0f} {y:.0f} C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}"
    return tag("path", d=path, class_="edge")


def _point(node: GraphNode, place: tuple[float, float], number: int | None, layers: Sequence[Box]) -> Markup:
    x, y = place
    if number is None:
        if not node.operation:
            return tag("text", node.name, x=x, y=y + 5, text_anchor="middle", class_="end")
        return tag("circle", tag("title", f"{node.operation} ({node.name})"), cx=x, cy=y, r=6, class_="join")
    layer = layers[number]
    left, top = x - _WIDE / 2, y - _HIGH / 2
    box = [
        tag("title", layer.words),
        tag("rect", x=left, y=top, width=_WIDE, height=_HIGH, rx=5, class_="box"),
        tag("rect", x=left, y=top, width=_WIDE * layer.filled, height=_HIGH, rx=5, class_="filled"),
        tag("text", _shortened(layer.path), x=left + 8, y=y + 5),
        tag("text", layer.cost, x=left + _WIDE - 8, y=y + 5, text_anchor="end"),
    ]
    return tag(
        "a", *box, href=f"#card-{number}", class_=f"layer {layer.kind}", aria_label=layer.words, data_card=number
    )


def _shortened(path: str, length: int = 28) -> str:
    """The end of a long path says more than its beginning."""
    return path if len(path) <= length else f"…{path[1 - length :]}"
