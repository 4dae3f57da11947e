"""Gates fitted to what each clip needs, weights left alone: variants first, gates second [ours].

N clips, F features of a gate; J frame strides, I channel shares.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vared2_fx.batches import Batch, read_labelled
from vared2_fx.errors import DataError, TrainError
from vared2_fx.layers import Choice, Gate
from vared2_fx.modes import evaluating
from vared2_fx.packing import Pack, packer
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.fix import policy
from vared2_fx.policy.statistics import clip_macs
from vared2_fx.train.variants import uniform_choices

_STEPS, _LR, _WEIGHT_DECAY = 200, 1e-2, 3.0
_NOISE = 0.7
"""Added to the standardised features, in standard deviations: some hundred clips are soon known by heart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFit:
    """What `fit_gates` aimed at."""

    targets: dict[Choice, int]
    """Clips for which each choice was the cheapest that is right, dearest first; the full one also where none is."""

    @property
    def num_clips(self) -> int:
        """Clips that were looked at."""
        return sum(self.targets.values())


def fit_gates(
    dynamic: fx.GraphModule, loader: Iterable[Any], *, confidence: float = 0.95, caution: float = 6.0, rounds: int = 2
) -> GateFit:
    """Teach each gate, by regression, the cheapest choice that still gives a clip its answer.

    In each round (a loader may shuffle and augment) every clip runs with each choice, taken in all regions alike. The
    cheapest one that gives the label at least the probability `confidence` is what all gates should decide for it. The
    first round shows the gates what they see under full, middle and cheapest choices; each further round also what they
    see under their own decisions.

    Take clips that the weights were not trained on: of those they know by heart, any choice is right.

    Args:
        dynamic: a converted network; its gates are trained in place, everything else stays. Its mode is restored.
        loader: batches as dicts with "video" and "label", or pairs (clips, labels).
        confidence: least probability of the label, 0 … 1.
        caution: weight of clips that need the full choice, beside 1 for those that the cheapest serves, between them
            in steps; above 1, gates rather spend too much.
        rounds: passes over the loader.

    Returns:
        How many clips need which choice.

    Raises:
        TrainError: gates of kind `soft_modulation`, which do not take one choice; or a number out of range.
        DataError: the loader is empty, or a batch has no labels.
    """
    gates = {path: region.gate for path, region in regions(dynamic).items()}
    if any(gate.kind == "soft_modulation" for gate in gates.values()):
        raise TrainError("fit_gates: gates of kind soft_modulation weigh several choices; convert with gate='softmax'.")
    if not 0 < confidence <= 1 or caution <= 0 or rounds < 1:
        raise TrainError(
            f"fit_gates: confidence={confidence}, caution={caution}, rounds={rounds}; expected a probability, "
            "a weight above 0, and at least one round."
        )
    pack = packer(dynamic)
    like = next(dynamic.parameters())
    pools: dict[str, list[Tensor]] = {path: [] for path in gates}
    aims: list[Tensor] = []  # of everything in the pools
    ladder: list[Choice] = []
    for number in range(rounds):
        targets: Counter[Choice] = Counter()
        with evaluating(dynamic):
            for raw in loader:
                batch, labels = read_labelled(raw)
                if not len(labels):
                    continue
                batch, labels = batch.to(like), labels.to(like.device)
                ladder = ladder or _ladder(dynamic, pack(batch.video[:1]))
                aim, seen = _look(dynamic, gates, pack, batch, labels, ladder, confidence, own=number > 0)
                targets.update(ladder[place] for place in aim.tolist())
                aims += [aim] * len(next(iter(seen.values())))
                for path, features in seen.items():
                    pools[path] += features
        if not aims:
            raise DataError("fit_gates: the loader gave no clips.")
        for path, gate in gates.items():
            _regress(gate, torch.cat(pools[path]), torch.cat(aims), ladder, caution, first=number == 0)
    return GateFit(targets={choice: targets[choice] for choice in ladder})


def _ladder(dynamic: fx.GraphModule, clip: tuple[Any, ...]) -> list[Choice]:
    """The choices, dearest first, by what they cost this clip."""
    observed = with_decisions(dynamic)

    def cost(choice: Choice) -> int:
        with policy(dynamic, {"*": choice}):
            return int(clip_macs(observed(*clip)[1], 0)[0])

    return sorted(uniform_choices(dynamic), key=cost, reverse=True)


def _look(
    dynamic: fx.GraphModule,
    gates: dict[str, Gate],
    pack: Pack,
    batch: Batch,
    labels: Tensor,
    ladder: list[Choice],
    confidence: float,
    *,
    own: bool,
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Per clip the place in `ladder` to aim at, and what each gate sees: its own way, or with three of the ladder."""
    aim = torch.zeros(len(labels), dtype=torch.long, device=labels.device)
    seen: dict[str, list[Tensor]] = {path: [] for path in gates}
    shown = set() if own else {0, len(ladder) // 2, len(ladder) - 1}
    for place, choice in enumerate(ladder):
        with policy(dynamic, {"*": choice}), _watched(gates, seen if place in shown else {}):
            output = dynamic(*pack(batch.video))
        right = output.float().softmax(1).gather(1, labels[:, None])[:, 0] >= confidence
        aim = torch.where(right, place, aim)
    if own:
        with _watched(gates, seen):
            dynamic(*pack(batch.video))
    return aim, seen


@contextmanager
def _watched(gates: dict[str, Gate], seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """Note what the gates of `seen` look at."""
    hooks = [
        gates[path].register_forward_pre_hook(lambda gate, args, into=into: into.append(gate.look(args[0]).float()))
        for path, into in seen.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _regress(gate: Gate, features: Tensor, aims: Tensor, ladder: list[Choice], caution: float, *, first: bool) -> None:
    """Full-batch AdamW on the gate's two layers; its norms keep the statistics of the first round."""
    grid = gate.grid
    places = [grid.index(grid.nearest(choice)) for choice in ladder]
    strides, shares = torch.tensor(places, device=aims.device)[aims].unbind(1)
    weights = caution ** (1 - aims / max(1, len(ladder) - 1))
    training = gate.training
    gate.eval()
    with torch.no_grad():
        if first:
            mean, var = gate.scale.running_mean, gate.scale.running_var
            assert mean is not None
            assert var is not None
            mean.copy_(features.mean(0))
            var.copy_(features.var(0, unbiased=False) + 1e-4)  # a feature that is constant here need not be elsewhere
        seen = gate.standardised(features.to(gate.out.weight.dtype)).float()
    parameters = [p for part in (gate.hidden, gate.norm, gate.out) for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LR, weight_decay=_WEIGHT_DECAY)
    num_strides = len(grid.frame_strides)
    for _ in range(_STEPS):
        z = gate.logits((seen + _NOISE * torch.randn_like(seen)).to(gate.out.weight.dtype)).float()
        losses = F.cross_entropy(z[:, :num_strides], strides, reduction="none")
        losses = losses + F.cross_entropy(z[:, num_strides:], shares, reduction="none")
        optimizer.zero_grad()
        (weights * losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    gate.train(training)
