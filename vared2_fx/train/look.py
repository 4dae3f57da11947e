"""What gates see of clips, what each choice would cost these, and what gates learn from that [ours].

N clips.
"""

import copy
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from vared2_fx.batches import Batch, read_labelled
from vared2_fx.errors import DataError, TrainError
from vared2_fx.layers import Choice, Gate, fixed_decisions
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import with_decisions
from vared2_fx.policy.fix import policy
from vared2_fx.policy.statistics import clip_macs, dense_macs
from vared2_fx.train.evaluate import check_scores
from vared2_fx.train.regress import fit_each
from vared2_fx.train.variants import ladder_of

log = logging.getLogger(__name__)

_LOST = 3.0
"""Cross-entropy from which on an answer is simply wrong: one hopeless clip shall not outweigh all others."""


class Look:
    """What the gates see, and what each choice would cost the clip that they see it of.

    A gate inside what torch.fx cannot follow may be in a branch that clips do not take, or be asked twice. Nothing says
    then which clip is in which row of what it saw, so it is left out of `gates`, and stays as it was.
    """

    def __init__(self, dynamic: fx.GraphModule, gates: dict[str, Gate]) -> None:
        self.dynamic, self.gates = dynamic, dict(gates)
        self._before = state_of(gates)
        self._missed: set[str] = set()
        self.pack, self.like, self.observed = packer(dynamic), next(dynamic.parameters()), with_decisions(dynamic)
        self.ladder: list[Choice] = []
        self.shares, self.dense = torch.empty(0), 0
        self.features: dict[str, list[Tensor]] = {path: [] for path in gates}
        self.losses: list[Tensor] = []  # (N, choices) of every row of each of `features`
        self.known: dict[bytes, Tensor] = {}  # (choices,) losses of every clip seen, by its values
        self.sources: list[Tensor] = []  # (N,) number of the video that each is from
        self.numbers: dict[str | bytes, int] = {}  # of videos, by name; of clips without one by their values

    def over(self, loader: Iterable[Any], *, own: bool) -> None:
        """Look at every clip, under its own decisions or under three of the ladder.

        Raises:
            DataError: the loader is empty, or a batch has no labels.
        """
        with evaluating(self.dynamic):
            for raw in loader:
                batch, labels = read_labelled(raw)
                if not len(labels):
                    continue
                batch, labels = batch.to(self.like), labels.to(self.like.device)
                if not self.ladder:
                    clip = self.pack(batch.video[:1])
                    self.dense = dense_macs(self.dynamic, clip)
                    self.ladder, self.shares = ladder_of(self.dynamic, clip)
                losses = self._losses(batch, labels, watch=not own)
                if own:
                    with self._watched(len(labels)):
                        self.dynamic(*self.pack(batch.video))
                    self._note(batch, losses, times=1)
        if not self.losses:
            raise DataError("fit_gates: the loader gave no clips.")
        self._leave_out()

    def fit(self, loss_weight: float) -> None:
        """Fit all gates to the clips seen so far."""
        self.regress(self.prices(loss_weight), slice(None))

    def prices(self, loss_weight: float) -> Tensor:
        """(N, choices) of everything in `features`."""
        return self.shares + loss_weight * torch.cat(self.losses)

    def regress(self, prices: Tensor, rows: Tensor | slice) -> None:
        """Fit all gates to some rows of `features`."""
        features = [torch.cat(self.features[path])[rows] for path in self.gates]
        if features:  # else all are left out
            fit_each(list(self.gates.values()), features, prices[rows], self.ladder)

    def outcome(
        self, video: Tensor, labels: Tensor, choices: Mapping[Gate, tuple[int, int]] = MappingProxyType({})
    ) -> tuple[Tensor, Tensor]:
        """Share of the multiply-adds, and loss, (N,) each, with some decisions taken from the gates."""
        with fixed_decisions(choices):
            output, decisions = self.observed(*self.pack(video))
        losses = F.cross_entropy(output.float(), labels, reduction="none").clamp_max(_LOST)
        return clip_macs(decisions, self.dense) / self.dense, losses

    def alike(self, choice: Choice) -> dict[Gate, tuple[int, int]]:
        """Decisions for one choice in all regions, or what is nearest to it."""
        return {gate: gate.grid.index(gate.taken(gate.grid.nearest(choice))) for gate in self.gates.values()}

    def _losses(self, batch: Batch, labels: Tensor, *, watch: bool) -> Tensor:
        """(N, choices); of clips that were seen before as they were, as weights are left alone."""
        keys = [_key(clip) for clip in batch.video]
        if not watch and all(key in self.known for key in keys):
            return torch.stack([self.known[key] for key in keys])
        found, shown = [], {0, len(self.ladder) // 2, len(self.ladder) - 1} if watch else set()
        for place, choice in enumerate(self.ladder):
            watched = self._watched(len(labels)) if place in shown else nullcontext()
            with policy(self.dynamic, {"*": choice}), watched:
                output = self.dynamic(*self.pack(batch.video)).float()
            check_scores(labels, output)
            if not output.isfinite().all():
                raise TrainError(f"fit_gates: the network's scores are not finite with {choice} in all regions.")
            found.append(F.cross_entropy(output, labels, reduction="none").clamp_max(_LOST))
        losses = torch.stack(found, 1)
        self.known.update(zip(keys, losses, strict=True))
        self._note(batch, losses, times=len(shown))
        return losses

    @contextmanager
    def _watched(self, num_clips: int) -> Iterator[None]:
        """Note what the gates look at while the network runs once on so many clips."""
        seen: dict[str, list[Tensor]] = {path: [] for path in self.gates}
        hooks = [
            self.gates[path].register_forward_pre_hook(
                lambda gate, args, into=into: into.append(gate.look(args[0]).float())
            )
            for path, into in seen.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        for path, looks in seen.items():
            if [len(rows) for rows in looks] == [num_clips]:
                self.features[path] += looks
            else:
                self._missed.add(path)

    def _note(self, batch: Batch, losses: Tensor, *, times: int) -> None:
        """Losses and sources of a batch, once for each time that it was watched."""
        numbers = [self.numbers.setdefault(name, len(self.numbers)) for name in names_of(batch)]
        self.losses += times * [losses]
        self.sources += times * [torch.tensor(numbers, device=losses.device)]

    def _leave_out(self) -> None:
        """Forget the gates that some run did not ask once for every clip, whatever they learned before it."""
        left = [path for path in self.gates if path in self._missed]
        for path in left:
            self.gates.pop(path).load_state_dict(self._before[path])
            del self.features[path]
        if left:
            log.info("these gates stay as they were, not asked once for every clip: %s", ", ".join(left))


def names_of(batch: Batch) -> Sequence[str | bytes]:
    """Of the videos that the clips are from, as far as somebody says."""
    return batch.names or [_key(clip) for clip in batch.video]


def _key(clip: Tensor) -> bytes:
    return hashlib.blake2b(clip.contiguous().cpu().view(torch.uint8).numpy().tobytes(), digest_size=16).digest()


def state_of(gates: dict[str, Gate]) -> dict[str, dict[str, Tensor]]:
    """A copy of their weights, to `restore` them by."""
    return {path: copy.deepcopy(gate.state_dict()) for path, gate in gates.items()}


def restore(gates: dict[str, Gate], state: dict[str, dict[str, Tensor]]) -> None:
    """Give them the weights of `state_of`."""
    for path, gate in gates.items():
        gate.load_state_dict(state[path])
