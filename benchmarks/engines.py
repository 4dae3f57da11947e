"""Blocks and stages in each engine: measured speed-up beside that of the multiply-adds.

    python benchmarks/engines.py [--networks x3d_m slow_r50 …] [--engines openvino onnx torch] [--batches 1 8]

Random weights with norm statistics as in use; every region at the choice, or, in `mixed`, each at one that was drawn
for it. Base and variants run in turns in one process, prepared the same way; freed memory is kept by the process
(`keep_memory`). Where they do not fit into memory together, `--at-once 1` runs one variant after the other with the
original; where even that grows too large, give each its own process by `--granularities` and `--choices`. Results of
earlier runs stay in the file; of the same network, engine and batch those of other variants do, if machine, versions
and settings are the same. `engines_table.py` makes docs/speed.md of it.
"""

import argparse
import gc
import json
import random
from itertools import product
from typing import Any

import torch
from common import NETWORKS, RESULTS, keep_memory, network_and_clip
from torch import Tensor, fx, nn

import vared2_fx as vr
from vared2_fx.convert import conversion

CHOICES = {"R=2 r=1": (2, 1.0), "R=4 r=1": (4, 1.0), "R=1 r=0.5": (1, 0.5), "mixed": None, "full": (1, 1.0)}
SAME = ("processor", "versions", "python", "threads", "rounds", "warmup", "layout", "dtype", "inputs", "memory_kept")


def variants(model: nn.Module, clips: Tensor, granularity: str, choices: list[str]) -> dict[str, fx.GraphModule]:
    """The network in each of the choices."""
    dynamic = vr.convert(model, clips, vr.ConvertConfig(granularity=granularity))
    draw = random.Random(0)
    drawn = {region.path: draw.choice(region.grid.all()) for region in conversion(dynamic).plan.regions}
    policies = {name: drawn if choice is None else {"*": choice} for name, choice in CHOICES.items()}
    return {f"{granularity} {name}": vr.specialize(dynamic, policies[name]) for name in choices}


def merged(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`now`, and variants that only `earlier` has, each with ratios of its own run."""
    if any(earlier.get(key) != now[key] for key in SAME):
        return now
    names = {variant["name"] for variant in now["variants"]}
    return now | {"variants": [*(v for v in earlier["variants"] if v["name"] not in names), *now["variants"]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--engines", nargs="+", default=("openvino", "onnx", "torch"))
    parser.add_argument("--granularities", nargs="+", default=("block", "stage"))
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--batches", nargs="+", type=int, default=(1,))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--at-once", type=int, help="variants in memory beside the original; by default all")
    args = parser.parse_args()
    kept = keep_memory()
    torch.set_num_threads(args.threads)
    path = RESULTS / "engines.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, engine, batch in product(args.networks, args.engines, args.batches):
        model, clips = network_and_clip(name)
        networks: dict[str, fx.GraphModule] = {}
        for granularity in args.granularities:
            networks |= variants(model, clips, granularity, args.choices)
        document: dict[str, Any] = {}
        names, at_once = list(networks), args.at_once or len(networks)
        for start in range(0, len(names), at_once):
            result = vr.bench(
                model,
                {name: networks[name] for name in names[start : start + at_once]},
                engine=engine,
                example_inputs=clips,
                batch_size=batch,
                threads=args.threads,
                rounds=args.rounds,
                warmup=args.warmup,
            )
            print(result, flush=True)
            part = json.loads(result.to_json())
            document = part | document | {"variants": [*document.get("variants", []), *part["variants"]]}
            gc.collect()
        key = f"{name} {engine} batch {batch}"
        found[key] = merged(found.get(key, {}), document | {"memory_kept": kept, "at_once": at_once})
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
