"""Routes beside the gates that they stand for, and beside the best single route: on the demo's scenes, on AVLetters.

    python benchmarks/routed_accuracy.py [--task scenes|avletters] [--seeds 0 1] [--test-videos 100]

For each seed conversion and fine-tuning (`routed_tasks.py`). Routes and router learn from clips of their own, the curve
is measured on others, and everything below on test clips that none of these saw. At the gates' multiply-adds:
accuracy of the gated network, of the routed one before and after joint fine-tuning, of the best single choice that
costs no more (as the curve's clips have it), and at other budgets routed and best single. Single choices are the
routes, and each stride and share of channels everywhere or in one half of the regions. Aim: routed within 0.5 points
of gated at the same mean multiply-adds, and ahead of the best single choice at equal cost. Differences are taken clip
by clip, with their standard error: what is smaller than two of these is not told apart. What the gates' decisions get
when they are dealt to other clips is there too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avletters_parts.clips import data_file
from avletters_parts.learned import point
from common import RESULTS, write
from routed_tasks import Task, avletters, scenes
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

import vared2_fx as vr
from vared2_fx.batches import read_labelled
from vared2_fx.layers import FULL
from vared2_fx.modes import evaluating
from vared2_fx.passes.rewrite import regions

BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)


def hits_of(answer: Callable[[Tensor], Tensor], loader: Iterable[Any]) -> Tensor:
    """Whether each clip is answered right: float64 (N,)."""
    batches = map(read_labelled, loader)
    return torch.cat([answer(batch.video).argmax(1) == labels for batch, labels in batches]).double()


def network_hits(network: fx.GraphModule, loader: Iterable[Any]) -> Tensor:
    with evaluating(network):
        return hits_of(network, loader)


def paired(hits: Tensor, others: Tensor) -> dict[str, float]:
    """Mean of the difference clip by clip, and its standard error."""
    gap = hits - others
    return {"mean": float(gap.mean()), "standard_error": float(gap.std() / len(gap) ** 0.5)}


def static_macs(network: fx.GraphModule, clip: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, evaluating(network):
        network(clip)
    return counter.get_total_flops() // 2


@dataclass(frozen=True)
class Single:
    """One static network for all clips."""

    share: float
    curve_top1: float
    test_hits: Tensor


def singles_of(dynamic: fx.GraphModule, routed: vr.Routed, loaders: dict[str, Any]) -> list[Single]:
    """The routes; and each stride and share of channels, everywhere and in either half of the regions."""
    found = list(zip(routed.routes.shares, routed.networks, strict=True))
    clip, paths = read_labelled(loaders["curve"][0])[0].video[:1], list(regions(dynamic))
    half = len(paths) // 2
    for choice in {choice for region in regions(dynamic).values() for choice in region.grid.all()} - {FULL}:
        for part in (paths, paths[:half], paths[half:]):
            network = vr.specialize(dynamic, {"*": FULL} | dict.fromkeys(part, choice))
            found.append((static_macs(network, clip) / routed.routes.dense_macs, network))
    return sorted(
        (
            Single(share, float(network_hits(net, loaders["curve"]).mean()), network_hits(net, loaders["test"]))
            for share, net in found
        ),
        key=lambda single: single.share,
    )


def best_single(singles: list[Single], budget: float) -> Single:
    """The affordable one that was best on the curve's clips; the cheapest where none is."""
    affordable = [single for single in singles if single.share <= budget]
    return max(affordable, key=lambda single: single.curve_top1, default=singles[0])


def at_budgets(
    dynamic: fx.GraphModule, routed: vr.Routed, loaders: dict[str, Any], budgets: Iterable[float], gated: Tensor
) -> list[dict[str, Any]]:
    singles, rows = singles_of(dynamic, routed, loaders), []
    for budget in budgets:
        got = routed.evaluate(loaders["test"], budget=budget)
        hits = hits_of(partial(routed, budget=budget), loaders["test"])
        single = best_single(singles, max(budget, got.share))
        rows.append(
            {
                "budget": budget,
                "top1": got.accuracy,
                "share": got.share,
                "best_single": {"share": single.share, "top1": float(single.test_hits.mean())},
                "ahead_of_single": paired(hits, single.test_hits),
                "ahead_of_gated": paired(hits, gated),
            }
        )
    return rows


def run(task: Task, seed: int) -> dict[str, Any]:
    dynamic, loaders = task.dynamic, task.loaders
    vr.finetune(dynamic, loaders["train"], loaders["gates"], task.finetune)
    gated, gated_hits = point(dynamic, loaders["test"]), network_hits(dynamic, loaders["test"])
    result: dict[str, Any] = {
        "base": vr.evaluate(task.base, loaders["test"]).accuracy,
        "gated": gated,
        "clips": len(gated_hits),
    }
    routes = vr.find_routes(dynamic, loaders["routes"])
    routed = vr.train_router(dynamic, routes, loaders["routes"], loaders["curve"], seed=seed)
    budgets = (gated["share"], *BUDGETS)
    result |= {
        "routes": str(routes),
        "router": str(routed),
        "routed": at_budgets(dynamic, routed, loaders, budgets, gated_hits),
    }
    start = time.perf_counter()
    joint = vr.finetune_routes(dynamic, routed, loaders["train"], loaders["routes"], loaders["curve"], seed=seed)
    result |= {"joint_kept": joint is not routed, "joint_s": time.perf_counter() - start}
    return result | {"joint": at_budgets(dynamic, joint, loaders, budgets, gated_hits), "joint_router": str(joint)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("scenes", "avletters"), default="scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--test-videos", type=int, default=100, metavar="N", help="of each class of scenes")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.task == "avletters" and not data_file().exists():
        raise SystemExit(f"No {data_file()}: set VARED2_DATA to the folder that holds avletters/.")
    torch.set_num_threads(args.threads)
    path = RESULTS / f"routed_accuracy_{args.task}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            task = avletters(seed) if args.task == "avletters" else scenes(seed, Path(folder), args.test_videos)
            runs[str(seed)] = run(task, seed)
        write(path.stem, {"runs": runs})


if __name__ == "__main__":
    main()
