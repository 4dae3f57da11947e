"""The control that needs no gates: the cheapest variant first, everything where it is unsure, both paid for.

N clips, V variants.
"""

from typing import Any

import torch
from avletters_parts.clips import Loader
from torch import Tensor, fx

import vared2_fx as vr
from vared2_fx.modes import evaluating
from vared2_fx.policy.statistics import dense_macs
from vared2_fx.train.variants import uniform_choices


def cascade(dynamic: fx.GraphModule, val: Loader, test: Loader, targets: list[float]) -> dict[str, Any]:
    """For each target: first variant and threshold that are best on `val` within it, and what they do on `test`.

    The confidence is the largest probability; no gate is asked, nor paid for. Where no cascade is that cheap, the
    target is left out.
    """
    clip = next(iter(val))["video"][:1]
    dense = dense_macs(dynamic, clip)
    with evaluating(dynamic):
        costs = {c: dense_macs(vr.specialize(dynamic, {"*": c}), clip) / dense for c in uniform_choices(dynamic)}
        ladder = sorted(costs, key=lambda choice: costs[choice], reverse=True)
        shares = torch.tensor([costs[choice] for choice in ladder])
        on_val, on_test = (_answers(dynamic, ladder, loader) for loader in (val, test))
    found = {}
    for target in targets:
        best: tuple[float, float, int, float] | None = None
        for first in range(1, len(ladder)):
            for threshold in on_val[0][:, first].sort().values.tolist():
                accuracy, share = _outcome(*on_val, shares, first, threshold)
                if share <= target and (best is None or (accuracy, -share) > best[:2]):
                    best = accuracy, -share, first, threshold
        if best is not None:
            accuracy, share = _outcome(*on_test, shares, *best[2:])
            first = str(ladder[best[2]])
            found[f"{target:g}"] = {"top1": accuracy, "share": share, "first": first, "threshold": best[3]}
    return found


def _answers(dynamic: fx.GraphModule, ladder: list[vr.Choice], loader: Loader) -> tuple[Tensor, Tensor]:
    """Confidence float (N, V), and whether the answer is right, bool (N, V)."""
    confidence, right = [], []
    for batch in loader:
        outputs = []
        for choice in ladder:
            with vr.policy(dynamic, {"*": choice}):
                outputs.append(dynamic(batch["video"]).softmax(1))
        confidence.append(torch.stack([output.amax(1) for output in outputs], 1))
        right.append(torch.stack([output.argmax(1) == batch["label"] for output in outputs], 1))
    return torch.cat(confidence), torch.cat(right)


def _outcome(confidence: Tensor, right: Tensor, shares: Tensor, first: int, threshold: float) -> tuple[float, float]:
    """Accuracy and share of the multiply-adds where clips below the threshold go on to the full variant."""
    unsure = confidence[:, first] < threshold
    accuracy = torch.where(unsure, right[:, 0], right[:, first]).float().mean()
    return float(accuracy), float(shares[first] + unsure.float().mean() * shares[0])
