"""Routes beside the gates that they stand for, and beside the best single route, on the demo's scenes.

    python benchmarks/routed_accuracy.py [--seeds 0 1] [--test-videos 100]

For each seed the demo's conversion and fine-tuning. Routes and router learn from scenes of their own, the curve is
measured on others, and everything below on test scenes that none of these saw. At the gates' multiply-adds: accuracy of
the gated network, of the routed one before and after joint fine-tuning, of the best single route that costs no more (as
the curve's scenes have it), and at other budgets routed and best single. Aim: routed within 0.5 points of gated at the
same mean multiply-adds, and ahead of the best single route at equal cost.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write

import vared2_fx as vr
from vared2_fx.data import ClipConfig, make_loader
from vared2_fx.data.scenes import generate_scenes
from vared2_fx.demo import CONVERT, FINETUNE, NETWORK

VIDEOS = {"train": 60, "gates": 60, "routes": 60, "curve": 60}
BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)


def loaders_of(folder: Path, seed: int, test_videos: int) -> dict[str, Any]:
    """A loader for the weights; batches of the others, which are gone through many times, decoded once."""
    config, loaders = ClipConfig.from_spec(vr.zoo.spec(NETWORK)), dict[str, Any]()
    for offset, (split, count) in enumerate((VIDEOS | {"test": test_videos}).items()):
        listing = generate_scenes(folder / split, videos_per_class=count, seed=1000 + 10 * seed + offset)
        training = split == "train"
        loader = make_loader(listing, config, batch_size=16, training=training, seed=seed, flip=False)
        loaders[split] = loader if training else list(loader)
    return loaders


def single_routes(routed: vr.Routed, loader: Iterable[Any]) -> list[dict[str, float]]:
    """Accuracy of each route if every clip takes it, and its share of the multiply-adds."""
    return [
        {"share": share, "top1": vr.evaluate(network, loader).accuracy}
        for network, share in zip(routed.networks, routed.routes.shares, strict=True)
    ]


def best_single(curve: list[dict[str, float]], test: list[dict[str, float]], budget: float) -> dict[str, float]:
    """On the test scenes, the affordable route that was best on the curve's; the cheapest where none is."""
    affordable = [place for place, route in enumerate(curve) if route["share"] <= budget] or [0]
    return test[max(affordable, key=lambda place: curve[place]["top1"])]


def at_budgets(routed: vr.Routed, loaders: dict[str, Any], budgets: Iterable[float]) -> list[dict[str, Any]]:
    curve, test = (single_routes(routed, loaders[split]) for split in ("curve", "test"))
    rows = []
    for budget in budgets:
        got = routed.evaluate(loaders["test"], budget=budget)
        single = best_single(curve, test, max(budget, got.share))
        rows.append({"budget": budget, "top1": got.accuracy, "share": got.share, "best_single": single})
    return rows


def run(seed: int, folder: Path, test_videos: int) -> dict[str, Any]:
    loaders = loaders_of(folder, seed, test_videos)
    base = vr.zoo.load(NETWORK, pretrained=True)
    torch.manual_seed(seed)
    dynamic = vr.convert(base, config=CONVERT)
    vr.finetune(dynamic, loaders["train"], loaders["gates"], replace(FINETUNE, seed=seed, progress=False))
    gated = vr.evaluate(dynamic, loaders["test"])
    result: dict[str, Any] = {
        "base": vr.evaluate(base, loaders["test"]).accuracy,
        "gated": {"top1": gated.accuracy, "share": gated.share},
        "clips": len(gated.clips),
    }
    routes = vr.find_routes(dynamic, loaders["routes"])
    routed = vr.train_router(dynamic, routes, loaders["routes"], loaders["curve"], seed=seed)
    budgets = (gated.share, *BUDGETS)
    result |= {"routes": str(routes), "router": str(routed), "routed": at_budgets(routed, loaders, budgets)}
    start = time.perf_counter()
    joint = vr.finetune_routes(dynamic, routed, loaders["train"], loaders["routes"], loaders["curve"], seed=seed)
    result |= {"joint_kept": joint is not routed, "joint_s": time.perf_counter() - start}
    return result | {"joint": at_budgets(joint, loaders, budgets), "joint_router": str(joint)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--test-videos", type=int, default=100, metavar="N", help="of each class")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "routed_accuracy.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs[str(seed)] = run(seed, Path(folder), args.test_videos)
        write("routed_accuracy", {"videos_per_class": VIDEOS, "runs": runs})


if __name__ == "__main__":
    main()
