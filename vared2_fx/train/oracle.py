"""The oracle: what gates could reach at best if each clip had one choice for all regions [ours]."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from vared2_fx.batches import read_labelled
from vared2_fx.errors import DataError
from vared2_fx.layers import Choice
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.policy.fix import converted, policy
from vared2_fx.tables import percent, text_table
from vared2_fx.train.evaluate import check_scores
from vared2_fx.train.variants import ladder_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One choice, taken in all regions alike."""

    frame_stride: int
    channel_share: float
    share: float
    """Multiply-adds, of the original's."""
    accuracy: float
    """Top-1 when every clip gets it."""
    clips: int
    """For which it is the cheapest choice that is right; of the cheapest also those for which none is."""

    @property
    def choice(self) -> Choice:
        """What is computed."""
        return Choice(self.frame_stride, self.channel_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Oracle:
    """The cheapest right choice of each clip; `print` it."""

    rungs: tuple[Rung, ...]
    """Dearest first."""
    accuracy: float
    """Share of the clips for which some choice is right."""

    @property
    def num_clips(self) -> int:
        """Clips that were looked at."""
        return sum(rung.clips for rung in self.rungs)

    @property
    def share(self) -> float:
        """Multiply-adds, of the original's, when each clip gets its cheapest right choice."""
        return sum(rung.share * rung.clips for rung in self.rungs) / self.num_clips

    def __str__(self) -> str:
        rows = [(str(r.choice), percent(r.share), percent(r.accuracy), str(r.clips)) for r in self.rungs]
        table = text_table(("all regions", ">MACs", ">top-1", ">clips for which it is the cheapest right one"), rows)
        return f"{table}\noracle: top-1 {percent(self.accuracy)} at {percent(self.share)} of the multiply-adds"


def oracle(dynamic: fx.GraphModule, loader: Iterable[Any]) -> Oracle:
    """Try every choice, in all regions alike, on every clip, and take the cheapest that is right.

    It says how much gates can gain at most, and, beside `evaluate`, how far they are from it. It looks at the labels,
    which no gate can: with two classes, a coin is right half of the time too. Regions that decide differently from
    each other can do better still.

    Args:
        dynamic: a converted network; not changed.
        loader: batches as dicts with "video" and "label", or pairs (clips, labels).

    Raises:
        ConvertError: not a converted network.
        DataError: the loader is empty, or a batch has no labels that fit the network.
    """
    network = converted("oracle", dynamic)
    pack, like = packer(network), next(network.parameters())
    ladder: list[Choice] = []
    right: list[torch.Tensor] = []
    with evaluating(network):
        for raw in loader:
            batch, labels = read_labelled(raw)
            if not len(labels):
                continue
            batch, labels = batch.to(like), labels.to(like.device)
            if not ladder:
                ladder, shares = ladder_of(network, pack(batch.video[:1]))
            answers = []
            for choice in ladder:
                with policy(network, {"*": choice}):
                    output = network(*pack(batch.video))
                check_scores(labels, output)
                answers.append(output.argmax(1) == labels)
            right.append(torch.stack(answers, 1))
    if not right:
        raise DataError("oracle: the loader gave no clips.")
    return _summed(ladder, shares.tolist(), torch.cat(right).tolist())


def _summed(ladder: list[Choice], shares: list[float], right: list[list[bool]]) -> Oracle:
    cheapest = Counter(max((place for place, is_right in enumerate(row) if is_right), default=-1) for row in right)
    cheapest[len(ladder) - 1] += cheapest.pop(-1, 0)  # nothing helps, so nothing is spent
    rungs = [
        Rung(
            frame_stride=choice.frame_stride,
            channel_share=choice.channel_share,
            share=share,
            accuracy=sum(row[place] for row in right) / len(right),
            clips=cheapest[place],
        )
        for place, (choice, share) in enumerate(zip(ladder, shares, strict=True))
    ]
    return Oracle(rungs=tuple(rungs), accuracy=sum(map(any, right)) / len(right))
