"""Calibrated and uncalibrated conversions before any fine-tuning, on the demo's network and generated scenes.

    python benchmarks/calibration.py [--seeds 0 1]

For each seed new scenes: 63 without their labels to calibrate on, 135 others to test. One choice for all regions alike,
gates aside: accuracy, and the multiply-adds of convolutions and matrix products as a share of the original's.
"norms alone" are blocks whose norms were measured anew on the same clips, and nothing else; "same order" is calibration
without choosing channels, "frames too" such that sets the rebuilding of frames as well.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import write
from torch import fx

import vared2_fx as vr
from vared2_fx.data import ClipConfig, VideoLoader, make_loader
from vared2_fx.data.scenes import generate_scenes
from vared2_fx.demo import NETWORK
from vared2_fx.policy.statistics import dense_macs

EXCLUDED = ("stem.*", "stage*.shortcut.*")
CONFIGS = {
    "conv": vr.ConvertConfig(frame_strides=(1, 2), channel_shares=(1.0, 0.6), exclude=EXCLUDED),
    "block": vr.ConvertConfig(granularity="block", frame_strides=(1, 2), channel_shares=(1.0, 0.6), exclude=EXCLUDED),
}
CHOICES = {"channels": (1, 0.6), "frames": (2, 1.0)}
STARTS: dict[str, Callable[[fx.GraphModule, Any], Any]] = {
    "uncalibrated": lambda dynamic, clips: None,
    "norms alone": lambda dynamic, clips: vr.recalibrate_norms(dynamic, clips),
    "same order": lambda dynamic, clips: vr.calibrate(dynamic, clips, reorder=False),
    "calibrated": lambda dynamic, clips: vr.calibrate(dynamic, clips),
    "frames too": lambda dynamic, clips: vr.calibrate(dynamic, clips, frames=True),
}

BOTH = tuple(CHOICES)
ASKED = {
    "uncalibrated": BOTH,
    "norms alone": BOTH,
    "same order": ("channels",),
    "calibrated": ("channels",),
    "frames too": ("frames",),
}


def make_loaders(folder: Path, seed: int) -> dict[str, VideoLoader]:
    config = ClipConfig.from_spec(vr.zoo.spec(NETWORK))
    loaders = {}
    for number, (split, per_class) in enumerate({"calibrate": 7, "test": 15}.items()):
        listing = generate_scenes(folder / split, videos_per_class=per_class, seed=1000 + 10 * seed + number)
        mixed = split == "calibrate"  # a batch norm wants batches of all classes
        loaders[split] = make_loader(listing, config, batch_size=21, training=mixed, seed=seed, flip=False)
    return loaders


def run(seed: int, folder: Path) -> dict[str, Any]:
    loaders = make_loaders(folder, seed)
    base, unlabelled = vr.zoo.load(NETWORK, pretrained=True), [b["video"] for b in loaders["calibrate"]]
    clip, tests = unlabelled[0][:1], list(loaders["test"])
    result: dict[str, Any] = {"base": vr.evaluate(base, tests).accuracy}
    for granularity, config in CONFIGS.items():
        for start, prepare in STARTS.items():
            if granularity == "conv" and start == "norms alone":
                continue
            torch.manual_seed(seed)
            dynamic = vr.convert(base, config=config)
            prepare(dynamic, unlabelled)
            for name, choice in CHOICES.items():
                if name not in ASKED[start]:
                    continue
                static = vr.specialize(dynamic, {"*": choice})
                result[f"{granularity}, {name}, {start}"] = {
                    "top1": vr.evaluate(static, tests).accuracy,
                    "share": dense_macs(static, clip) / dense_macs(base, clip),
                }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = {}
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs[str(seed)] = run(seed, Path(folder))
    write("calibration", {"runs": runs})


if __name__ == "__main__":
    main()
