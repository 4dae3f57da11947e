"""The efficiency loss: what makes gates pick cheaper choices.

N clips.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vared2_fx.errors import ConvertError
from vared2_fx.layers import Decision
from vared2_fx.policy.statistics import expected_macs


def efficiency_loss(
    decisions: Mapping[str, Decision],
    *,
    correct: Tensor | None = None,
    dense: int | None = None,
    target: float | None = None,
) -> Tensor:
    """Price of the multiply-adds that the decisions ask for; add λ times this to the task loss.

    With u the share of the multiply-adds that a clip uses (of the regions', or of the whole network's where
    `dense` is given), and only clips that are classified correctly pushing:

    - without a target the mean of u² [VA-RED², section 3, as we understand it; ours prices the choices with their
      counted multiply-adds, cheap operations and gates included, where the paper has r / R];
    - with a target max(0, mean u − target) (ours): the mean over the batch has to come down, not every clip, so
      that clips may differ; linear, so that the pull does not fade near the target.

    Args:
        decisions: from a network made by `with_decisions`.
        correct: bool (N,), the clips that push; None: all.
        dense: multiply-adds per clip of the original network (`dense_macs`); needed for a target.
        target: share of `dense`, above 0 and at most 1.

    Returns:
        A scalar.

    Raises:
        ConvertError: no decisions, or a target without `dense`.
    """
    if not decisions:
        raise ConvertError("efficiency_loss: no decisions; run the network that with_decisions(dynamic) returns.")
    if target is not None and dense is None:
        raise ConvertError("efficiency_loss: a target is a share of the whole network; pass dense=dense_macs(…).")
    usage = expected_share(decisions, dense)
    if correct is not None:
        usage = torch.where(correct, usage, usage.detach() if target is not None else torch.zeros_like(usage))
    if target is None:
        return usage.square().mean()
    return (usage.mean() - target).clamp_min(0.0)


def expected_share(decisions: Mapping[str, Decision], dense: int | None = None) -> Tensor:
    """Share of the multiply-adds that each clip is expected to use, float (N,), differentiable.

    Of the regions' multiply-adds, or of the whole network's where `dense` is given.
    """
    prices = torch.stack([expected_macs(decision) for decision in decisions.values()]).sum(0)
    # int → float first: sums of multiply-adds pass 2^31
    regions = torch.stack([decision.macs[0, 0] for decision in decisions.values()]).sum().to(prices.dtype)
    if dense is None:
        return prices / regions
    return 1.0 + (prices - regions) / dense
