"""Routes in an engine beside the original in the same engine: clips per second, measured and ideal.

    python benchmarks/routes.py [--networks x3d_m slow_r50 r2plus1d_r50] [--engines openvino onnx] [--batches 1 8]

Stages at R = 4, at R = 2 and in full are the routes; random weights with norm statistics as in use. A router learns
to send a third of the made-up clips, by how loud they are, to each: what a route answers is no matter here, what it
takes is. Original in the engine, routes, and the original in plain torch run through the same clips in turns, in the
same batches, everything from clip to class scores counted. Ideal: one over the mean share of the multiply-adds, router
included. Aim: the measured speed-up is at least 0.9 of that, and the router below 1 % of the original's multiply-adds
and time, which are in the results beside the times of the routes. Results of earlier runs stay in the file.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, machine
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vared2_fx as vr
from vared2_fx.config import EngineName
from vared2_fx.convert import conversion
from vared2_fx.layers import FULL, Choice
from vared2_fx.modes import evaluating
from vared2_fx.routes import Assignment, Point, Route, Routed, Routes
from vared2_fx.routes.router import fit_router, make_router
from vared2_fx.routes.train import ROUTER_SHARE
from vared2_fx.turns import in_turns

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from networks import randomise_norms

CHOICES = ((4, 1.0), (2, 1.0), FULL)
LOUD = (0.1, 1.0, 10.0)
NUM_CLIPS = 24


def made_up_clips(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Clips, and the number of the cheapest route that each is to take."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(NUM_CLIPS) % len(LOUD)
    kinds = kinds[torch.randperm(NUM_CLIPS, generator=generator)]
    clips = torch.randn(NUM_CLIPS, *shape, generator=generator)
    return clips * torch.tensor(LOUD)[kinds].view(-1, 1, 1, 1, 1), kinds


def make_routed(dynamic: Any, dense_macs: int, clip_shape: tuple[int, ...], macs: list[int]) -> Routed:
    """Routes at each of `CHOICES`, and a router that has learned which clips go where."""
    paths = [region.path for region in conversion(dynamic).plan.regions]
    found = tuple(
        Route(choices=dict.fromkeys(paths, Choice(*choice)), macs=cost, agreement=1.0, accuracy=None, clips=NUM_CLIPS)
        for choice, cost in zip(CHOICES, macs, strict=True)
    )
    mean = Assignment(macs=sum(macs) / len(macs), agreement=1.0, accuracy=None)
    routes = Routes(
        routes=found, dense_macs=dense_macs, gated=mean, nearest=mean, clip_shape=clip_shape, num_clips=0, num_joint=3
    )
    torch.manual_seed(0)
    router = make_router(clip_shape, len(found) - 1, ROUTER_SHARE * dense_macs)
    clips, kinds = made_up_clips(clip_shape, seed=1)
    fit_router(router, router.look(clips), (torch.arange(len(found) - 1) >= kinds[:, None]).float(), epochs=80)
    share = sum(routes.shares) / len(found) + router.macs / dense_macs
    point = Point(first=None, price=0.5, confidence=0.0, share=share, quality=1.0, mix=(1 / 3,) * 3)
    curves = {"router": (point,), "cascade": (point,), "both": (point,)}
    return Routed(
        routes=routes,
        networks=routes.networks(dynamic),
        router=router,
        kind="router",
        curves=curves,  # type: ignore[arg-type]
        labelled=False,
    )


def measure(name: str, engine: EngineName, batches: list[int], threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    spec = vr.zoo.spec(name)
    shape = (3, spec.frames, spec.crop, spec.crop)
    clips, _ = made_up_clips(shape, seed=2)
    torch.manual_seed(0)
    model = randomise_norms(vr.zoo.load(name).eval(), clips[:1])
    dynamic = vr.convert(model, clips[:1], vr.ConvertConfig(granularity="stage"))
    dense = static_macs(model, clips[:1])
    macs = [static_macs(vr.specialize(dynamic, {"*": choice}), clips[:1]) for choice in CHOICES]
    routed = make_routed(dynamic, dense, shape, macs)
    fast = vr.deploy_routed(routed, engine, threads=threads)
    base = vr.deploy(model, engine, example_inputs=clips[:1], threads=threads)
    answer = fast.answer(clips)
    shares = float(answer.shares.mean())
    for batch in batches:
        parts = clips.split(batch)
        runs = {
            "original": lambda parts=parts: [base(part) for part in parts],
            "routes": lambda parts=parts: [fast(part) for part in parts],
            "torch": lambda parts=parts: plain(model, parts),
        }
        times = in_turns(runs, rounds=rounds)
        speedups = [a / b for a, b in zip(times["original"], times["routes"], strict=True)]
        yield {
            "network": name,
            "engine": engine,
            "batch": batch,
            "clips": NUM_CLIPS,
            "threads": threads,
            "precision": "fp32",
            "mix": torch.bincount(answer.routes, minlength=len(CHOICES)).tolist(),
            "router_share": fast.router_share,
            "router_ms": fast.router_ms,
            "route_ms": list(fast.route_ms),
            "ideal": 1 / shares,
            "speed_up": median(speedups),
            "lowest": min(speedups),
            "highest": max(speedups),
            "of_ideal": median(speedups) * shares,
            "against_torch": median(a / b for a, b in zip(times["torch"], times["routes"], strict=True)),
            "clips_per_s": {k: 1e3 * NUM_CLIPS / median(v) for k, v in times.items()},
            "machine": machine(),
        }


def static_macs(network: Any, clip: Tensor) -> int:
    """Multiply-adds of one clip, as torch counts them."""
    with FlopCounterMode(display=False) as counter, evaluating(network):
        network(clip)
    return counter.get_total_flops() // 2


def plain(model: Any, parts: tuple[Tensor, ...]) -> None:
    with evaluating(model):
        for part in parts:
            model(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["x3d_m", "slow_r50", "r2plus1d_r50"])
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnx"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "routes.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, engine in product(args.networks, args.engines):
        for result in measure(name, engine, args.batches, args.threads, args.rounds):
            found[f"{name} {engine} batch {result['batch']}"] = result
            print(json.dumps(result), flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
