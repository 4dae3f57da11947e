"""Converted networks, fine-tuned: what their gates reach at each target, and what the same decisions reach shuffled.

N clips.
"""

import copy
import fnmatch
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from avletters_parts.cascade import cascade
from avletters_parts.clips import Loader
from avletters_parts.training import SMOOTHING
from torch import fx, nn

import vared2_fx as vr
from vared2_fx.layers import fixed_decisions
from vared2_fx.modes import evaluating
from vared2_fx.passes.leaves import called_path
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.statistics import computed_choices

EXCLUDED = ("stem.*", "blocks.0.*", "blocks.5.*", "*shortcut*")
"""The stems, the X3D's head, and shortcuts, whose gates would cost more than they do."""
TEACHERS = {"labels": (0.0, 0.0), "original": (1.0, 0.0), "full": (0.0, 1.0), "both": (1.0, 1.0)}
"""Weights of distillation from the original, and from the full choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way from the base network to a dynamic one."""

    granularity: str = "block"
    gate: str = "softmax"
    schedule: str = "variants_first"
    calibrated: bool = True
    teacher: str = "original"
    frame_strides: tuple[int, ...] = (1, 2, 4)
    channel_shares: tuple[float, ...] = (1.0, 0.5)

    def __str__(self) -> str:
        ways = ("calibrated" if self.calibrated else "uncalibrated", f"taught by {self.teacher}")
        return ", ".join((self.granularity, self.gate, self.schedule, *ways))


def converted(base: nn.Module, recipe: Recipe, calibration: Loader, seed: int) -> fx.GraphModule:
    """A copy of the base as `recipe` wants it before training."""
    torch.manual_seed(seed)
    calibration.set_epoch(0)  # whatever ran before
    paths = [name for name, module in base.named_modules() if isinstance(module, nn.Conv3d)]
    present = tuple(p for p in EXCLUDED if fnmatch.filter(paths, p))  # what names nothing is an error
    config = vr.ConvertConfig(
        granularity=recipe.granularity,
        gate=recipe.gate,
        frame_strides=recipe.frame_strides,
        channel_shares=recipe.channel_shares,
        exclude=present,
    )
    dynamic = vr.convert(base, next(iter(calibration))["video"][:1], config)
    if recipe.calibrated:
        vr.calibrate(dynamic, calibration)
    return dynamic


def run_recipe(
    base: nn.Module,
    recipe: Recipe,
    loaders: dict[str, Loader],
    config: vr.FinetuneConfig,
    targets: list[float],
) -> dict[str, Any]:
    """Fine-tune for each target; then results on the test clips. Gates, epochs and thresholds come from `val`.

    `seconds` are those of the longest fine-tuning.
    """
    original, full = TEACHERS[recipe.teacher]
    config = replace(config, distill_weight=original, self_distill_weight=full)
    if recipe.schedule == "joint" or config.own_share:
        config = replace(config, label_smoothing=SMOOTHING)
    if recipe.schedule == "joint":
        config = replace(config, schedule="joint", settle_gates=False, own_share=0.0)
    start = converted(base, recipe, loaders["calibrate"], config.seed)
    result: dict[str, Any] = {"before": _rungs(start, loaders["test"]), "points": {}, "seconds": 0.0}
    for target in targets:
        dynamic = copy.deepcopy(start)
        begun = time.process_time()
        found = vr.finetune(dynamic, loaders["finetune"], loaders["val"], replace(config, target_macs=target))
        seconds = time.process_time() - begun
        result["seconds"] = max(result["seconds"], seconds)
        run = {"best_epoch": found.best_epoch, "history": [[e.accuracy, e.share] for e in found.history]}
        result["points"][f"{target:g}"] = point(dynamic, loaders["test"]) | run | {"seconds": seconds}
        if recipe.schedule == "variants_first":
            result["after"] = _rungs(dynamic, loaders["test"])
            result["cascade"] = result.get("cascade", {}) | cascade(dynamic, loaders["val"], loaders["test"], [target])
    return result


def point(dynamic: fx.GraphModule, test: Loader, shuffles: int = 2) -> dict[str, Any]:
    """Accuracy and cost on the test clips; the same decisions dealt to other clips; each layer's mean share."""
    found = vr.evaluate(dynamic, test)
    return {
        "top1": found.accuracy,
        "share": found.share,
        "spread": found.spread,
        "min_share": found.min_macs / found.dense_macs,
        "max_share": found.max_macs / found.dense_macs,
        "shuffled": [_shuffled(dynamic, test, number) for number in range(shuffles)],
        "layers": {path: layer.share for path, layer in found.layers.items()},
        "alarms": len(vr.collapse_alarms(found)),
    }


def _shuffled(dynamic: fx.GraphModule, test: Loader, number: int) -> float:
    """Top-1 where every clip gets what was decided for another one, in all regions."""
    gates = {path: region.gate for path, region in regions(dynamic).items()}
    clips, labels, taken = [], [], []
    with evaluating(dynamic):
        observed = vr.with_decisions(dynamic).eval()
        for batch in test:
            decisions = observed(batch["video"])[1]
            picks = [computed_choices(decision).tolist() for decision in decisions.values()]
            taken += [dict(zip(map(called_path, decisions), row, strict=True)) for row in zip(*picks, strict=True)]
            clips += list(batch["video"])
            labels += batch["label"].tolist()
        order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(number)).tolist()
        right = 0
        for clip, label, other in zip(clips, labels, order, strict=True):
            with fixed_decisions({gates[path]: tuple(pick) for path, pick in taken[other].items()}):
                right += int(dynamic(clip[None]).argmax()) == label
    return right / len(clips)


def _rungs(dynamic: fx.GraphModule, test: Loader) -> dict[str, Any]:
    """Each choice in all regions alike, and the oracle, which looks at the labels."""
    found = vr.oracle(dynamic, test)
    rungs = [{"choice": str(rung.choice), "share": rung.share, "top1": rung.accuracy} for rung in found.rungs]
    return {"rungs": rungs, "oracle": {"top1": found.accuracy, "share": found.share}}
