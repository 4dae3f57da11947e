"""What fused convolutions and packed weights bring in the engine `torch`.

    python benchmarks/fused_convs.py [--networks x3d_m slow_r50 r3d_18]

Granularity `block`, random weights, one clip, in turns in one process: each variant as operator by operator, with sums
and ReLU taken over by convolutions, with weights packed, and with both, which is what `deploy` does. Then SiLU behind
the first convolution of x3d_m's stages, in a pass of its own and fused; and a weight that is plain, packed for the map
that it meets, and packed for a batch of two such maps. Freed memory is kept (`keep_memory`).
"""

import argparse
import importlib
from functools import partial
from statistics import median
from typing import Any

import torch
from common import keep_memory, write
from torch import fx
from torch.nn import functional as F

import vared2_fx as vr
from vared2_fx.turns import in_turns

CHOICES = {"base": (1, 1.0), "R=2": (2, 1.0), "R=4": (4, 1.0), "r=0.5": (1, 0.5)}
CHANNELS = ((24, 54, 128), (24, 54, 64), (48, 108, 32), (96, 216, 16), (192, 432, 8))
"""C_in, C and H of x3d_m's expanding convolutions, 16 frames each."""

conv = torch.ops.mkldnn._convolution_pointwise.default
engine = importlib.import_module("vared2_fx.deploy.engines.eager")


def stays(gm: fx.GraphModule) -> fx.GraphModule:
    return gm


WAYS = {
    "plain": (stays, stays),
    "fused": (engine.fuse_convs, stays),
    "packed": (stays, engine.pack_weights),
    "both": (engine.fuse_convs, engine.pack_weights),
}


def network(name: str, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    clip = vr.zoo.spec(name).example_inputs()
    dynamic = vr.convert(vr.zoo.load(name).eval(), clip, vr.ConvertConfig(granularity="block"))
    runs = {}
    for choice, where in CHOICES.items():
        static = vr.specialize(dynamic, {"*": where})
        for way, passes in WAYS.items():
            engine.fuse_convs, engine.pack_weights = passes
            deployed = vr.deploy(static, "torch", example_inputs=clip)
            runs[choice, way] = lambda deployed=deployed: deployed(clip)
    times = in_turns(runs, rounds=rounds, warmup=2)
    return {choice: {way: median(times[choice, way]) for way in WAYS} for choice in CHOICES}


@torch.inference_mode()
def silu(rounds: int) -> dict[str, dict[str, float]]:
    found = {}
    for c_in, c, size in CHANNELS:
        x = torch.randn(1, c_in, 16, size, size).to(memory_format=torch.channels_last_3d)
        about = (torch.randn(c, c_in, 1, 1, 1), torch.randn(c), [0, 0, 0], [1, 1, 1], [1, 1, 1], 1)
        runs = {
            "apart": lambda x=x, about=about: F.silu(conv(x, *about, "none", [], "")),
            "fused": lambda x=x, about=about: conv(x, *about, "swish", [], ""),
        }
        times = in_turns(runs, rounds=3 * rounds, warmup=2)
        found[f"{c_in} to {c} channels, {size} x {size}"] = {way: median(values) for way, values in times.items()}
    return found


@torch.inference_mode()
def packings(rounds: int) -> dict[str, dict[str, float]]:
    pack, about, found = torch.ops.mkldnn._reorder_convolution_weight, ([0, 0, 0], [1, 1, 1], [1, 1, 1], 1), {}
    for c_in, c, frames, size in ((512, 2048, 4, 8), (256, 1024, 4, 16), (128, 512, 4, 32)):
        x = torch.randn(1, c_in, frames, size, size).to(memory_format=torch.channels_last_3d)
        weight = torch.randn(c, c_in, 1, 1, 1).to(memory_format=torch.channels_last_3d)
        weights = {"plain": weight, "packed": pack(weight, *about, x.shape)}
        weights["packed for two"] = pack(weight, *about, [2, *x.shape[1:]])
        runs = {way: partial(conv, x, held, None, *about, "none", [], "") for way, held in weights.items()}
        times = in_turns(runs, rounds=3 * rounds, warmup=2)
        found[f"{c_in} to {c} channels, {frames} x {size} x {size}"] = {k: median(v) for k, v in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=("x3d_m", "slow_r50", "r3d_18"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    kept = keep_memory()
    torch.set_num_threads(args.threads)
    found = {name: network(name, args.rounds) for name in args.networks}
    singles = {"silu_ms": silu(args.rounds), "packing_ms": packings(args.rounds)}
    write("fused_convs", {"rounds": args.rounds, "memory_kept": kept, "network_ms": found, **singles})


if __name__ == "__main__":
    main()
