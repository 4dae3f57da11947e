"""The dynamic network itself, in torch: what its gates take, batches whose clips choose differently, and autotune.

    python benchmarks/dynamic.py [--networks x3d_m slow_r50 …] [--layouts channels_last_3d contiguous]

Granularity `block`, random weights with norm statistics as in use. In turns in one process:

- gates: all gates, each asked what it is asked in the network, in a row, as a share of the original's time; and with
  more noise the network with everything computed, gates asked, less the same without asking them. One clip. After
  `autotune` once more: regions in which nothing pays ask no gate.
- mixed: 8 clips with a choice of their own for each region, drawn at random. The speed-up over the original of one
  batch, by that of the clips one by one. Above 1: the batch gains more.
- autotuned: each choice for all regions, those that do not pay computed in full; the speed-up over the original. One
  clip. `full` has no gates to ask: what conversion itself takes.

Freed memory is kept by the process (`keep_memory`).
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from common import LAYOUTS, NETWORKS, RESULTS, keep_memory, machine, network_and_clip
from torch import Tensor, fx, nn

import vared2_fx as vr
from vared2_fx.layers import Gate
from vared2_fx.passes.rewrite import regions
from vared2_fx.turns import in_turns

CHOICES = ((2, 1.0), (4, 1.0), (1, 0.5))
BATCH = 8


@contextmanager
def decided(dynamic: fx.GraphModule, rows: dict[str, Tensor]) -> Iterator[None]:
    """Let the gates give these decisions, (N, J + I) each, after having looked."""
    hooks = [
        region.gate.register_forward_hook(lambda gate, args, out, row=rows[path]: row)
        for path, region in regions(dynamic).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def drawn(dynamic: fx.GraphModule, num_clips: int) -> dict[str, Tensor]:
    draw, rows = random.Random(0), {}
    for path, region in regions(dynamic).items():
        strides, shares = len(region.grid.frame_strides), len(region.grid.channel_shares)
        rows[path] = torch.zeros(num_clips, strides + shares)
        for row in rows[path]:
            row[draw.randrange(strides)] = row[strides + draw.randrange(shares)] = 1.0
    return rows


def with_policy(dynamic: fx.GraphModule, choice: tuple[int, float], clips: Tensor) -> None:
    with vr.policy(dynamic, {"*": choice}):
        dynamic(clips)


def ratios(over: list[float], under: list[float]) -> dict[str, float]:
    low, middle, high = quantiles([a / b for a, b in zip(over, under, strict=True)], n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def gates_share(
    model: nn.Module, dynamic: fx.GraphModule, clip: Tensor, rounds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Times of the runs; what asking takes by itself, and as the difference that it makes."""
    asked: dict[Gate, Tensor] = {}
    hooks = [
        region.gate.register_forward_pre_hook(lambda gate, args: asked.update({gate: args[0]}))
        for region in regions(dynamic).values()
    ]
    dynamic(clip)
    for hook in hooks:
        hook.remove()
    runs: dict[str, Callable[[], Any]] = {
        "base": partial(model, clip),
        "full": partial(with_policy, dynamic, (1, 1.0), clip),
        "gates": partial(dynamic, clip),
    }
    times = in_turns(runs, rounds=3 * rounds, warmup=2)  # small differences
    differences = [g - f for g, f in zip(times["gates"], times["full"], strict=True)]
    # In turns of their own: what runs after something as short finds the processor rested
    short = in_turns({"base": runs["base"], "gates": lambda: [gate(x) for gate, x in asked.items()]}, rounds=rounds)
    return times, {"alone": ratios(short["gates"], short["base"]), "difference": ratios(differences, times["base"])}


@torch.inference_mode()
def run(name: str, layout: str, rounds: int) -> dict[str, Any]:
    model, clip = network_and_clip(name)
    dynamic = vr.convert(model, clip, vr.ConvertConfig(granularity="block")).eval()
    for network in (model, dynamic):
        network.to(memory_format=LAYOUTS[layout])
    clip = clip.to(memory_format=LAYOUTS[layout])
    clips = torch.randn(BATCH, *clip.shape[1:]).to(memory_format=LAYOUTS[layout])

    times, gates = gates_share(model, dynamic, clip, rounds)
    found: dict[str, Any] = {"base_ms": median(times["base"]), "full": ratios(times["base"], times["full"])}
    found["gates"] = gates

    rows = drawn(dynamic, BATCH)

    def batch() -> None:
        with decided(dynamic, rows):
            dynamic(clips)

    def singles() -> None:
        for number in range(BATCH):
            with decided(dynamic, {path: row[number : number + 1] for path, row in rows.items()}):
                dynamic(clips[number : number + 1])

    alone = [clips[number : number + 1] for number in range(BATCH)]
    both = {"base batch": partial(model, clips), "base singles": lambda: [model(clip) for clip in alone]}
    mixed = in_turns({**both, "batch": batch, "singles": singles}, rounds=max(3, rounds // 2), warmup=1)
    gained = {
        name: [a / b for a, b in zip(mixed[f"base {name}"], mixed[name], strict=True)] for name in ("batch", "singles")
    }
    found["mixed"] = {name: median(values) for name, values in gained.items()}
    found["mixed"]["batch by singles"] = ratios(gained["batch"], gained["singles"])

    with tempfile.TemporaryDirectory() as store:
        tuned = vr.autotune(dynamic, clip, store=store)
    found["replaced"] = {path: list(map(str, choices)) for path, choices in tuned.replaced.items()}
    found["gates_autotuned"] = gates_share(model, dynamic, clip, rounds)[1]
    tries = {str(vr.Choice(*choice)): partial(with_policy, dynamic, choice, clip) for choice in CHOICES}
    times = in_turns({"base": partial(model, clip), **tries}, rounds=rounds, warmup=1)
    found["autotuned"] = {choice: ratios(times["base"], times[choice]) for choice in tries}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept = keep_memory()
    path = RESULTS / "dynamic.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    for name in args.networks:
        for layout in args.layouts:
            found = run(name, layout, args.rounds)
            print(
                name, layout, json.dumps({key: value for key, value in found.items() if key != "replaced"}), flush=True
            )
            document[f"{name} {layout}"] = {**machine(), "memory_kept": kept, "rounds": args.rounds, **found}
            path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
