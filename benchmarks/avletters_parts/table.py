"""The raw results as a Markdown table: mean over seeds, ± their standard deviation where there are several."""

from collections.abc import Iterator
from statistics import mean, stdev
from typing import Any

Row = tuple[str, float, float]


def table(document: dict[str, Any]) -> str:
    """One line for each way, dearest kind first: top-1 on the test clips at which share of the multiply-adds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for steps in document["seeds"].values():
        for name, top1, share in _rows(steps):
            found.setdefault(name, []).append((top1, share))
    lines = ["| way | seeds | top-1, % | multiply-adds, % |", "| --- | ---: | ---: | ---: |"]
    for name, values in found.items():
        top1, share = (_spread([value[place] for value in values]) for place in (0, 1))
        lines.append(f"| {name} | {len(values)} | {top1} | {share} |")
    return "\n".join(lines)


def _rows(steps: dict[str, Any]) -> Iterator[Row]:
    for name, result in steps.items():
        if "points" not in result:
            yield name, result["top1"], result.get("share", 1.0)
            continue
        for target, point in result["points"].items():
            yield f"{name}, at {target}", point["top1"], point["share"]
            yield f"{name}, at {target}, decisions shuffled", mean(point["shuffled"]), point["share"]
        for target, point in result.get("cascade", {}).items():
            yield f"{name}, cascade, at {target}", point["top1"], point["share"]
        for when in ("before", "after"):
            yield from _uniform(name, when, result.get(when))


def _uniform(name: str, when: str, found: dict[str, Any] | None) -> Iterator[Row]:
    if found is None:
        return
    for rung in found["rungs"]:
        yield f"{name}, {when} training, {rung['choice']} for all", rung["top1"], rung["share"]
    yield f"{name}, {when} training, oracle", found["oracle"]["top1"], found["oracle"]["share"]


def _spread(values: list[float]) -> str:
    text = f"{100 * mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ± {100 * stdev(values):.1f}"
