"""What it takes that glibc hands large maps back to the system: the original, in eager torch, with and without.

    python benchmarks/memory_kept.py [--network x3d_m] [--batch 8]

Processes in turns, each with `GLIBC_TUNABLES` set or not, as it is read when a process starts. Milliseconds per clip,
median of the calls of each process, then of the processes; `channels_last_3d`.
"""

import argparse
import json
import os
import sys
from statistics import median

import torch
from common import in_own_process, write

import vared2_fx as vr
from vared2_fx.turns import in_turns

TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647:glibc.malloc.top_pad=268435456"


@torch.inference_mode()
def one_process(network: str, batch: int) -> None:
    clips = vr.zoo.spec(network).example_inputs()
    clips = torch.randn(batch, *clips.shape[1:]).to(memory_format=torch.channels_last_3d)
    model = vr.zoo.load(network).eval().to(memory_format=torch.channels_last_3d)
    times = in_turns({"base": lambda: model(clips)}, rounds=3, warmup=1)
    print(json.dumps(median(times["base"]) / batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="x3d_m")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        one_process(args.network, args.batch)
        return
    line = ("--one", "--network", args.network, "--batch", str(args.batch), "--threads", str(args.threads))
    found: dict[str, list[float]] = {"given back": [], "kept": []}
    for _ in range(args.rounds):
        for name, times in found.items():
            os.environ["GLIBC_TUNABLES"] = TUNABLES if name == "kept" else ""
            times.append(float(in_own_process(sys.argv[0], *line)))
    about = {"network": args.network, "batch": args.batch, "tunables": TUNABLES}
    write("memory_kept", {**about, "ms_per_clip": {name: median(times) for name, times in found.items()}, "all": found})


if __name__ == "__main__":
    main()
