"""Time and peak memory of `convert` for two large networks, beside the deep copy that it cannot do without.

    python benchmarks/convert_time.py [x3d_l csn_r101] [--threads 2]

Each network has a process of its own. Aim: at most 3 s beyond the deep copy.
"""

import argparse
import copy
import json
import time

import torch
from common import in_own_process, peak_mib, write

import vared2_fx as vr


def measure(name: str) -> dict[str, float]:
    model = vr.zoo.load(name)
    loaded = peak_mib()
    start = time.perf_counter()
    twin = copy.deepcopy(model)
    copied = time.perf_counter()
    del twin
    memory_of_copy = peak_mib()
    begin = time.perf_counter()
    dynamic = vr.convert(model)
    converted = time.perf_counter()
    return {
        "deepcopy_s": copied - start,
        "convert_s": converted - begin,
        "beyond_deepcopy_s": converted - begin - (copied - start),
        "model_mib": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20,
        "deepcopy_peak_mib": memory_of_copy - loaded,
        "convert_peak_mib": peak_mib() - loaded,
        "regions": len(vr.scan(model).converted),
        "parameters_added": sum(p.numel() for p in dynamic.parameters()) - sum(p.numel() for p in model.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["x3d_l", "csn_r101"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    runs = {
        name: [in_own_process(__file__, f"--one={name}", f"--threads={args.threads}") for _ in range(args.rounds)]
        for name in args.networks
    }
    write("convert_time", {"example_inputs": None, "runs": runs})


if __name__ == "__main__":
    main()
