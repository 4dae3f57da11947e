"""Fine-tuning schedules on the demo's scenes: joint, and variants first; and the price of a loss to fitted gates.

    python benchmarks/schedules.py [--seeds 0 1 2]

For each seed new scenes and the same settings as the demo's. Accuracy and multiply-adds are those of the test scenes,
in all and per kind of scene. The joint schedule has its target at what the demo comes to, and nearly twice the epochs.
"""

import argparse
import copy
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import write
from torch import fx

import vared2_fx as vr
from vared2_fx.data import VideoLoader
from vared2_fx.demo import CONVERT, FINETUNE, NETWORK, accuracy_per_kind, macs_per_kind, make_loaders

JOINT = vr.FinetuneConfig(epochs=9, lr=2e-4, gate_lr=3e-2, efficiency_weight=1.5, target_macs=0.65, progress=False)
VARIANTS_FIRST = replace(FINETUNE, progress=False)
LOSS_WEIGHTS = (0.3, 1.0, 3.0, 10.0)


def outcome(model: torch.nn.Module, loader: VideoLoader) -> dict[str, Any]:
    evaluation = vr.evaluate(model, loader)
    return {
        "top1": evaluation.accuracy,
        "share": evaluation.share,
        "top1_per_kind": accuracy_per_kind(evaluation),
        "share_per_kind": macs_per_kind(evaluation),
    }


def trained(config: vr.FinetuneConfig, loaders: dict[str, VideoLoader], seed: int) -> fx.GraphModule:
    torch.manual_seed(seed)
    dynamic = vr.convert(vr.zoo.load(NETWORK, pretrained=True), config=CONVERT)
    vr.finetune(dynamic, loaders["train"], loaders["val"], replace(config, seed=seed))
    return dynamic


def run(seed: int, folder: Path) -> dict[str, Any]:
    loaders = make_loaders(folder, seed, print)
    result = {"base": outcome(vr.zoo.load(NETWORK, pretrained=True), loaders["test"])}
    result["joint"] = outcome(trained(JOINT, loaders, seed), loaders["test"])
    dynamic = trained(VARIANTS_FIRST, loaders, seed)
    for stride, share in product(CONVERT.frame_strides, CONVERT.channel_shares):
        with vr.policy(dynamic, {"*": (stride, share)}):
            result[f"variants_first, R = {stride} r = {share:g} for all"] = outcome(dynamic, loaders["test"])
    for weight in LOSS_WEIGHTS:
        refitted = copy.deepcopy(dynamic)
        vr.fit_gates(refitted, loaders["val"], loss_weight=weight)
        result[f"variants_first, loss weight {weight:g}"] = outcome(refitted, loaders["test"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs[str(seed)] = run(seed, Path(folder))
    write("schedules", {"runs": runs})


if __name__ == "__main__":
    main()
