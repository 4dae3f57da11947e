"""docs/speed.md, from the results of `engines.py`; measures nothing."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILE, PAGE = ROOT / "benchmarks" / "results" / "engines.json", ROOT / "docs" / "speed.md"
AIMS = {"openvino": (0.8, 0.95), "onnx": (0.75, 0.9), "torch": (0.7, 0.9)}
"""Least share of the ideal that we want in each engine, in blocks and in stages."""
CHOICES = ("R=2 r=1", "R=4 r=1", "R=1 r=0.5", "mixed", "full")
_MACHINE = ("processor", "threads", "rounds")

HEAD = """# Speed

What static variants gain on the clock, in each engine, against the original network in the same engine, made ready in
the same way. Made by `benchmarks/engines_table.py` from `benchmarks/results/engines.json`, which
`benchmarks/engines.py` measures: random weights, float32, base and variants in turns in one process, median of the
ratios of all rounds.

Each cell is the measured speed-up and, in brackets, its share of what the multiply-adds promise: (measured − 1) /
(ideal − 1). Above 1 is possible: frames that layers in a row hold alike are held once, at the end, so that activations
and sums between them, which the count leaves out, shrink as well. In `mixed` every region has a choice of its own,
drawn at random, so that frames are returned between them; `full` computes everything, and should be 1.

We want, in blocks and in stages, a share of {aims}.
**Bold** falls short of it. Accuracy is no part of this: that is a matter of fine-tuning.
"""
MACHINE = """
## {processor}

{threads} threads, {rounds} rounds; {used}.

| network | engine | clips | base, ms | | R = 2 | R = 4 | r = 1/2 | mixed | full |
| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |
"""


def page(results: dict[str, Any]) -> str:
    """docs/speed.md, a table for each machine."""
    aims = ", ".join(f"{block:g} and {stage:g} in {name}" for name, (block, stage) in AIMS.items())
    machines: dict[tuple[str, ...], dict[str, Any]] = {}
    for key, result in results.items():
        machines.setdefault(tuple(str(result[name]) for name in _MACHINE), {})[key] = result
    return HEAD.format(aims=aims) + "".join(_table(found) for found in machines.values())


def _table(results: dict[str, Any]) -> str:
    some = next(iter(results.values()))
    versions = {name: version for result in results.values() for name, version in result["versions"].items()}
    head = MACHINE.format(
        **{name: some[name] for name in _MACHINE},
        used=", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
    )
    rows = [_row(key, result, kind) for key, result in results.items() for kind in ("block", "stage")]
    return head + "\n".join(rows) + "\n"


def _row(key: str, result: dict[str, Any], kind: str) -> str:
    variants = {variant["name"]: variant for variant in result["variants"]}
    aim = AIMS[result["engine"]][kind == "stage"]
    aims = {choice: None if choice in ("mixed", "full") else aim for choice in CHOICES}
    cells = [_cell(variants.get(f"{kind} {choice}"), wanted) for choice, wanted in aims.items()]
    name = (key.split()[0], result["engine"], str(result["batch_size"]), f"{result['base']['ms']:.0f}", kind)
    return "| " + " | ".join((*name, *cells)) + " |"


def _cell(variant: dict[str, Any] | None, aim: float | None) -> str:
    if variant is None:
        return ""
    speed_up, share = variant["speed_up"], variant.get("share")
    if share is None:
        return f"{speed_up:.2f}"
    text = f"{speed_up:.2f} ({share:.2f})"
    return f"**{text}**" if aim is not None and share < aim else text


def main() -> None:
    PAGE.write_text(page(json.loads(FILE.read_text())))


if __name__ == "__main__":
    main()
