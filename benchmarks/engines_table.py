"""docs/speed.md, from the results of `engines.py`, `profile_ops.py` and `dynamic.py`; measures nothing."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "speed.md"
FILES = ("engines.json", "profile_ops.json", "dynamic.json")
AIMS = {"openvino": (0.8, 0.95), "onnx": (0.75, 0.9), "torch": (0.7, 0.9)}
"""Least share of the ideal that we want in each engine, in blocks and in stages."""
CHOICES = ("R=2 r=1", "R=4 r=1", "R=1 r=0.5", "mixed", "full")
_MACHINE = ("processor", "threads", "rounds")

HEAD = """# Speed

What static variants gain on the clock, in each engine, against the original network in the same engine, made ready in
the same way. Made by `benchmarks/engines_table.py` from `benchmarks/results/engines.json`, which
`benchmarks/engines.py` measures: random weights, float32, base and variants in turns in one process, in an order drawn
for each round, median of the ratios of all rounds. Where memory does not hold all of them, with 8 clips, some variants
at a time run with the original.

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

PROFILE = """
## Where it falls short

From `benchmarks/results/profile_ops.json`, which `benchmarks/profile_ops.py` measures: the engine's own profiler, one
clip, {processor}. Milliseconds of a call, of the original and of the variant, and their ratio:
convolutions, with what the engine fuses with them, and all other operators; then the largest of the others in the
variant, in milliseconds. What falls short above may do so on the other machine only.

| network | engine | | choice | ideal | convolutions, ms | others, ms | |
| --- | --- | --- | --- | ---: | ---: | ---: | --- |
"""
MOST_FOR_GATES = 0.02
DYNAMIC = """
## Networks with gates, in eager torch

From `benchmarks/results/dynamic.json`, which `benchmarks/dynamic.py` measures: blocks, `channels_last_3d`, ratios as
above. `full`: everything computed and no gate asked, by the original; we want 0.97. Gates: what asking them takes, as a
share of the original's time; we want 2 %. After `autotune`, regions in which nothing pays ask none. Mixed: 8 clips that
choose differently in each region, in one batch by one after the other, each by the original; we want 0.8. Then the
speed-up of a choice that all gates make, after `autotune`; none should be below 1. **Bold** falls short. In x3d_m, of
which a call is short and has many small regions, a look by hand finds Python: gates and regions, finding each
module by way of the graph, entering `vr.full`, which is part of what is timed.

| network | original, ms | full | gates | after | mixed | R = 2 | R = 4 | r = 1/2 | machine |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
"""

TRIED = """
With r = 1/2 a block is slim inside, but the maps between blocks stay as wide as they were: its last convolution has
half the multiply-adds, and writes and adds as much as before.

What was tried: several forms of the rebuild in each engine (`benchmarks/rebuild_forms.py`); returning held frames as
late as can be; in torch, sums and ReLU as a part of convolutions, and packed weights, without which R = 4 brings less
there; SiLU as a part of convolutions, which hardly brings anything (`benchmarks/fused_convs.py`).
"""


def page(engines: dict[str, Any], profiles: dict[str, Any], dynamic: dict[str, Any]) -> str:
    """docs/speed.md: static variants, a table for each machine; where they fall short; networks with their gates."""
    aims = ", ".join(f"{block:g} and {stage:g} in {name}" for name, (block, stage) in AIMS.items())
    machines: dict[tuple[str, ...], dict[str, Any]] = {}
    for key, result in engines.items():
        machines.setdefault(tuple(str(result[name]) for name in _MACHINE), {})[key] = result
    static = HEAD.format(aims=aims) + "".join(_table(found) for found in machines.values())
    short = [row for key, profile in profiles.items() for row in _profile_rows(profile, key, engines)]
    gated = [_dynamic_row(key, result) for key, result in dynamic.items()]
    profile = PROFILE.format(processor=", ".join(sorted({found["processor"] for found in profiles.values()})))
    return static + profile + "\n".join(short) + "\n" + TRIED + DYNAMIC + "\n".join(gated) + "\n"


def _table(results: dict[str, Any]) -> str:
    some = next(iter(results.values()))
    versions = {name: version for result in results.values() for name, version in result["versions"].items()}
    head = MACHINE.format(
        **{name: some[name] for name in _MACHINE},
        used=", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
    )
    rows = [
        _row(key, result, kind)
        for key, result in results.items()
        for kind in ("block", "stage")
        if any(variant["name"].startswith(kind) for variant in result["variants"])
    ]
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


def _profile_rows(profile: dict[str, Any], key: str, engines: dict[str, Any]) -> list[str]:
    """A row for each choice that falls short with one clip."""
    name, engine, granularity = key.split()
    variants = {variant["name"]: variant for variant in engines[f"{name} {engine} batch 1"]["variants"]}
    rows = []
    for choice, asked in (("R=2", "R=2 r=1"), ("R=4", "R=4 r=1"), ("r=0.5", "R=1 r=0.5")):
        found = variants[f"{granularity} {asked}"]
        if choice not in profile["ms"] or found["share"] >= AIMS[engine][granularity == "stage"]:
            continue
        cells = [name, engine, granularity, choice, f"{found['ideal_speed_up']:.2f}"]
        sums = {which: _convs_and_others(profile["ms"][which]) for which in ("base", choice)}
        for before, after in zip(sums["base"], sums[choice], strict=True):
            cells.append(f"{before:.0f} → {after:.0f} ({before / max(after, 1e-3):.2f})")
        others = [f"{kind} {ms:.0f}" for kind, ms in profile["ms"][choice].items() if not _is_conv(kind) and ms >= 1]
        rows.append("| " + " | ".join([*cells, ", ".join(others[:3])]) + " |")
    return rows


def _convs_and_others(ms: dict[str, float]) -> tuple[float, float]:
    convs = sum(value for kind, value in ms.items() if _is_conv(kind))
    return convs, sum(ms.values()) - convs


def _is_conv(kind: str) -> bool:
    return "conv" in kind.lower()


def _dynamic_row(key: str, result: dict[str, Any]) -> str:
    gates, after = (result[key]["alone"]["median"] for key in ("gates", "gates_autotuned"))
    cells = [
        key.split()[0],
        f"{result['base_ms']:.0f}",
        _held(result["full"]["median"], 0.97),
        f"**{gates:.1%}**" if gates > MOST_FOR_GATES else f"{gates:.1%}",
        f"{after:.1%}",
        _held(result["mixed"]["batch by singles"]["median"], 0.8),
        *(_held(result["autotuned"][choice]["median"], 1.0) for choice in CHOICES[:3]),
        f"{result['processor']}, {result['threads']} threads, {result['rounds']} rounds",
    ]
    return "| " + " | ".join(cells) + " |"


def _held(value: float, least: float) -> str:
    return f"{value:.2f}" if value >= least else f"**{value:.2f}**"


def main() -> None:
    results = [json.loads((RESULTS / name).read_text()) for name in FILES]
    PAGE.write_text(page(*results))


if __name__ == "__main__":
    main()
