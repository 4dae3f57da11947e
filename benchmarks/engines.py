"""Blocks and stages in each engine: measured speed-up beside that of the multiply-adds.

    python benchmarks/engines.py [--networks x3d_m slow_r50 …] [--engines openvino onnx torch] [--batches 1 8]

Random weights with norm statistics as in use; every region at the choice, or, in `mixed`, each at one that was drawn
for it. Base and variants run in turns in one process, prepared the same way; freed memory is kept by the process
(`keep_memory`). Results of earlier runs stay in the file,
those of the same network, engine and batch are replaced. `engines_table.py` makes docs/speed.md of it.
"""

import argparse
import json
import random
from itertools import product

import torch
from common import NETWORKS, RESULTS, keep_memory, network_and_clip

import vared2_fx as vr
from vared2_fx.convert import conversion

CHOICES = ((2, 1.0), (4, 1.0), (1, 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--engines", nargs="+", default=("openvino", "onnx", "torch"))
    parser.add_argument("--granularities", nargs="+", default=("block", "stage"))
    parser.add_argument("--batches", nargs="+", type=int, default=(1,))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    kept = keep_memory()
    torch.set_num_threads(args.threads)
    path = RESULTS / "engines.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, engine, batch in product(args.networks, args.engines, args.batches):
        model, clips = network_and_clip(name)
        variants = {}
        for granularity in args.granularities:
            dynamic = vr.convert(model, clips, vr.ConvertConfig(granularity=granularity))
            for stride, share in CHOICES:
                key = f"{granularity} R={stride} r={share:g}"
                variants[key] = vr.specialize(dynamic, {"*": (stride, share)})
            draw = random.Random(0)
            drawn = {r.path: draw.choice(r.grid.all()) for r in conversion(dynamic).plan.regions}
            variants[f"{granularity} mixed"] = vr.specialize(dynamic, drawn)
            variants[f"{granularity} full"] = vr.specialize(dynamic, {"*": (1, 1.0)})
        result = vr.bench(
            model,
            variants,
            engine=engine,
            example_inputs=clips,
            batch_size=batch,
            threads=args.threads,
            rounds=args.rounds,
            warmup=2,
        )
        print(result, flush=True)
        found[f"{name} {engine} batch {batch}"] = json.loads(result.to_json()) | {"memory_kept": kept}
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
