"""Which operators take the time of a variant, and of the original, in each engine.

    python benchmarks/profile_ops.py [--networks x3d_m slow_r50 …] [--engines openvino onnx torch]
        [--granularities block stage]

Random weights, one clip; each network is saved, and run by the engine's own profiler, original and
variants in turns. Milliseconds of one call by kind of operator, median of the rounds.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import torch
from common import NETWORKS, RESULTS, keep_memory, machine, network_and_clip
from torch import Tensor

import vared2_fx as vr

CHOICES = {"base": (1, 1.0), "R=2": (2, 1.0), "R=4": (4, 1.0), "r=0.5": (1, 0.5)}
Profile = Callable[[], Counter[str]]
"""One call: milliseconds by kind of operator."""


def of_torch(deployed: vr.Deployed, clip: Tensor, threads: int, folder: Path) -> Profile:
    def call() -> Counter[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
            deployed(clip)
        return Counter({event.key: event.self_cpu_time_total / 1e3 for event in found.key_averages()})

    return call


def of_onnx(deployed: vr.Deployed, clip: Tensor, threads: int, folder: Path) -> Profile:
    import onnxruntime

    (file,) = folder.glob("*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads

    def session() -> onnxruntime.InferenceSession:
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def call() -> Counter[str]:
        runs = session()
        for _ in range(2):
            runs.run(None, {runs.get_inputs()[0].name: clip.numpy()})
        events = json.loads(Path(runs.end_profiling()).read_text())
        nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
        found: Counter[str] = Counter()
        for event in nodes[len(nodes) // 2 :]:  # the second run
            found[event["args"]["op_name"]] += event["dur"] / 1e3
        return found

    return call


def of_openvino(deployed: vr.Deployed, clip: Tensor, threads: int, folder: Path) -> Profile:
    import openvino

    (file,), (weights,) = folder.glob("*.xml"), folder.glob("*.bin")
    core = openvino.Core()
    model = core.read_model(file, weights)
    model.reshape(list(clip.shape))
    about = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", {**about, "PERFORMANCE_HINT": "LATENCY"}).create_infer_request()

    def call() -> Counter[str]:
        request.infer([clip.numpy()])
        found: Counter[str] = Counter()
        for node in request.profiling_info:
            found[node.node_type] += node.real_time.total_seconds() * 1e3
        return found

    return call


PROFILES = {"torch": of_torch, "onnx": of_onnx, "openvino": of_openvino}


@torch.no_grad()
def run(name: str, engine: str, granularity: str, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    model, clip = network_and_clip(name)
    dynamic = vr.convert(model, clip, vr.ConvertConfig(granularity=granularity))
    calls, found = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for choice, where in CHOICES.items():
            static = model if choice == "base" else vr.specialize(dynamic, {"*": where})
            deployed = vr.deploy(static, engine, example_inputs=clip, threads=threads)
            deployed.save(Path(folder) / choice)
            calls[choice] = PROFILES[engine](deployed, clip, threads, Path(folder) / choice)
            calls[choice]()
        counts = [{choice: call() for choice, call in calls.items()} for _ in range(rounds)]
    for choice in CHOICES:
        kinds = {kind: median(count[choice][kind] for count in counts) for kind in counts[0][choice]}
        largest_first = sorted(kinds.items(), key=lambda item: -item[1])
        found[choice] = {kind: round(ms, 3) for kind, ms in largest_first if ms > 0.1}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--engines", nargs="+", default=list(PROFILES), choices=list(PROFILES))
    parser.add_argument("--granularities", nargs="+", default=("block", "stage"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    kept = keep_memory()
    torch.set_num_threads(args.threads)
    path = RESULTS / "profile_ops.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    for name, engine, granularity in product(args.networks, args.engines, args.granularities):
        found = run(name, engine, granularity, args.threads, args.rounds)
        document[f"{name} {engine} {granularity}"] = {
            **machine(),
            "memory_kept": kept,
            "rounds": args.rounds,
            "ms": found,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")
        for choice, kinds in found.items():
            print(
                name,
                engine,
                granularity,
                choice,
                f"{sum(kinds.values()):.1f} ms",
                dict(list(kinds.items())[:6]),
                flush=True,
            )


if __name__ == "__main__":
    main()
