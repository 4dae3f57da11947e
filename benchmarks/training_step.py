"""Time and memory of a training step: r3d_18 as it is, and converted.

    python benchmarks/training_step.py [--network r3d_18] [--batch 8] [--frames 8] [--crop 112] [--threads 2]
        [--granularity conv] [--gates softmax,gumbel,soft_modulation] [--schedule joint]

A step is forward, backward and an SGD update, fp32, default memory format; with variants first it is one of each for
both choices that are drawn. Times are interleaved in one process; peak memory is that of a process that does nothing
else. Aim: both at most 1.5 times the base's.
"""

import argparse
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import in_own_process, interleaved, peak_mib, ratios, write

import vared2_fx as vr
from vared2_fx.layers import fixed_decisions
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.statistics import dense_macs
from vared2_fx.train.variants import drawn_policies, trained_choices


def make_step(kind: str, args: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    clips = torch.randn(args.batch, 3, args.frames, args.crop, args.crop)
    labels = torch.zeros(args.batch, dtype=torch.long)
    if kind == "base":
        model = vr.zoo.load(args.network, num_classes=10)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(clips), labels).backward()
            optimizer.step()

        return step
    config = vr.ConvertConfig(gate=kind, granularity=args.granularity)
    dynamic = vr.convert(vr.zoo.load(args.network, num_classes=10), clips, config)
    observed = vr.with_decisions(dynamic).train()
    dense = dense_macs(dynamic, clips)
    optimizer = torch.optim.SGD(observed.parameters(), lr=1e-3, momentum=0.9)
    gates = [region.gate for region in regions(dynamic).values()]
    choices = trained_choices(dynamic)

    def dynamic_step() -> None:
        optimizer.zero_grad()
        output, decisions = observed(clips)
        loss = F.cross_entropy(output, labels) + vr.efficiency_loss(decisions, dense=dense)
        loss.backward()
        optimizer.step()

    def variants_step() -> None:
        for drawn in drawn_policies(gates, choices):
            optimizer.zero_grad()
            with fixed_decisions(drawn):
                output, _ = observed(clips)
            F.cross_entropy(output, labels).backward()
            optimizer.step()

    return dynamic_step if args.schedule == "joint" else variants_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="r3d_18")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--crop", type=int, default=112)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--granularity", default="conv", choices=("conv", "block", "stage"))
    parser.add_argument("--gates", default="softmax,gumbel,soft_modulation")
    parser.add_argument("--schedule", default="joint", choices=("joint", "variants_first"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        before = peak_mib()
        step = make_step(args.memory_of, args)
        for _ in range(2):
            step()
        print(json.dumps({"peak_mib": peak_mib() - before}))
        return
    kinds = ("base", *args.gates.split(","))
    passed_on = ("network", "batch", "frames", "crop", "threads", "granularity", "schedule")
    options = [f"--{name}={getattr(args, name)}" for name in passed_on]
    memory = {kind: in_own_process(__file__, *options, f"--memory-of={kind}")["peak_mib"] for kind in kinds}
    seconds = interleaved({kind: make_step(kind, args) for kind in kinds}, rounds=args.rounds)
    usual = args.granularity == "conv" and args.schedule == "joint"
    write(
        f"training_step_{args.network}" + ("" if usual else f"_{args.granularity}_{args.schedule}"),
        {
            "granularity": args.granularity,
            "schedule": args.schedule,
            "clip": [args.batch, 3, args.frames, args.crop, args.crop],
            "dtype": "float32",
            "layout": "contiguous",
            "seconds": seconds,
            "peak_mib_beyond_imports": memory,
            "time_ratio": {kind: ratios(seconds, kind, "base") for kind in kinds[1:]},
            "memory_ratio": {kind: memory[kind] / memory["base"] for kind in kinds[1:]},
        },
    )


if __name__ == "__main__":
    main()
