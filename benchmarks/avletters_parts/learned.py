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
from torch import fx, nn

import vared2_fx as vr
from vared2_fx.layers import fixed_decisions
from vared2_fx.modes import evaluating
from vared2_fx.passes.leaves import called_path
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.statistics import computed_choices

LOSS_WEIGHTS = (6.0, 2.5, 1.0, 0.4, 0.15)
"""What gates are fitted with, one after another, in search of a target's share of the multiply-adds."""
EXCLUDED = ("stem.*", "blocks.0.*", "blocks.5.*")
"""The stems, and the X3D's head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way from the base network to a dynamic one."""

    granularity: str = "block"
    gate: str = "softmax"
    schedule: str = "variants_first"
    calibrated: bool = True
    distilled: bool = True

    def __str__(self) -> str:
        ways = ("calibrated" if self.calibrated else "uncalibrated", "distilled" if self.distilled else "labels alone")
        return ", ".join((self.granularity, self.gate, self.schedule, *ways))


def converted(base: nn.Module, recipe: Recipe, calibration: Loader, seed: int) -> fx.GraphModule:
    """A copy of the base as `recipe` wants it before training."""
    torch.manual_seed(seed)
    excluded = (*EXCLUDED, "*shortcut*") if recipe.granularity == "conv" else EXCLUDED  # too small for their own gates
    paths = [name for name, module in base.named_modules() if isinstance(module, nn.Conv3d)]
    present = tuple(p for p in excluded if fnmatch.filter(paths, p))  # what names nothing is an error
    config = vr.ConvertConfig(granularity=recipe.granularity, gate=recipe.gate, exclude=present)
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
    """Fine-tune; then results on the test clips for each target. Gates, epochs and thresholds come from `val`."""
    config = replace(config, schedule=recipe.schedule, distill_weight=1.0 if recipe.distilled else 0.0)
    start = converted(base, recipe, loaders["calibrate"], config.seed)
    result: dict[str, Any] = {"before": _rungs(start, loaders["test"]), "points": {}}
    if recipe.schedule == "joint":
        seconds = []
        for target in targets:
            dynamic = copy.deepcopy(start)
            seconds.append(_finetune(dynamic, loaders, replace(config, target_macs=target), result))
            result["points"][f"{target:g}"] = point(dynamic, loaders["test"])
        return result | {"seconds": max(seconds)}
    result["seconds"] = _finetune(start, loaders, replace(config, gate_lr=config.lr), result)
    result["as trained"] = point(start, loaders["test"])
    result["points"] = _fitted(start, loaders, targets)
    result["after"] = _rungs(start, loaders["test"])
    result["cascade"] = cascade(start, loaders["val"], loaders["test"], targets)
    return result


def _finetune(
    dynamic: fx.GraphModule, loaders: dict[str, Loader], config: vr.FinetuneConfig, result: dict[str, Any]
) -> float:
    start = time.process_time()
    found = vr.finetune(dynamic, loaders["train"], loaders["val"], config)
    log = {"best_epoch": found.best_epoch, "history": [[e.accuracy, e.share] for e in found.history]}
    result.setdefault("runs", []).append(log)
    return time.process_time() - start


def _fitted(dynamic: fx.GraphModule, loaders: dict[str, Loader], targets: list[float]) -> dict[str, Any]:
    """For each target the gates whose share on the validation clips is nearest to it."""
    tried = []
    for weight in LOSS_WEIGHTS:
        gates = copy.deepcopy(dynamic)
        vr.fit_gates(gates, loaders["fit"], loss_weight=weight)
        tried.append((vr.evaluate(gates, loaders["val"]).share, weight, gates))
    points = {}
    for target in targets:
        _, weight, gates = min(tried, key=lambda entry: abs(entry[0] - target))
        points[f"{target:g}"] = {"loss_weight": weight, **point(gates, loaders["test"])}
    return points


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
