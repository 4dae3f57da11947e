"""What fine-tuning minimises on a batch.

N clips, C channels, T frames, H height, W width.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vared2_fx.batches import Batch
from vared2_fx.config import FinetuneConfig
from vared2_fx.errors import DataError, TrainError
from vared2_fx.layers import Decision, Gate, fixed_decisions
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.statistics import dense_macs
from vared2_fx.train.blend import mixed
from vared2_fx.train.distill import Lesson, Teacher, classifier_of, distillation_loss, feature_loss, watching
from vared2_fx.train.evaluate import check_scores
from vared2_fx.train.history import EpochMeter
from vared2_fx.train.losses import efficiency_loss, expected_share
from vared2_fx.train.target import TargetController, charge
from vared2_fx.train.variants import drawn_policies, forgiving_loss, trained_choices

if TYPE_CHECKING:
    from accelerate import Accelerator


class Objective:
    """The losses of a batch, in either schedule."""

    def __init__(
        self,
        dynamic: fx.GraphModule,
        observed: nn.Module,
        config: FinetuneConfig,
        accelerator: "Accelerator",
        teacher: Teacher | None,
        num_steps: int,
    ) -> None:
        """Let `observed`, which shows the decisions of `dynamic`, answer; λ warms up over a share of `num_steps`."""
        self._dynamic, self._observed, self._config = dynamic, observed, config
        self._accelerator, self._teacher, self._num_steps = accelerator, teacher, num_steps
        self._pack = packer(dynamic)
        self._gates = [region.gate for region in regions(dynamic).values()]
        self._choices = trained_choices(dynamic)
        self._classifier: nn.Module | None = None
        if config.feature_distill_weight:
            self._classifier = dynamic.get_submodule(classifier_of(dynamic))
        self._self_taught = config.self_distill_weight > 0
        self._dense: dict[tuple[int, ...], int] = {}
        self.controller: TargetController | None = None
        if config.target is not None and config.schedule == "joint":
            self.controller = TargetController(config.target, num_steps)
            accelerator.register_for_checkpointing(self.controller)

    def losses(
        self, batch: Batch, step: int, meter: EpochMeter, *, fitted: bool, weight: float = 1.0
    ) -> Iterator[Tensor]:
        """The losses of a batch, equally many for every batch of an epoch, each to be followed by an update.

        Args:
            batch: clips on the device, with labels unless a teacher gives them.
            step: of the run.
            meter: counts the clips.
            fitted: with variants first, train what the gates decide, and that alone.
            weight: of these clips beside those of other processes, see `weight_of_clips`.

        Raises:
            DataError: no labels and no teacher, or labels that do not fit.
        """
        video, labelled, kept = batch.video, batch.labels is not None, 1.0
        if batch.labels is None and self._teacher is None:
            raise DataError(
                "finetune: the training clips have no labels. With distill_weight=1 the original network's answers "
                "take their place."
            )
        if self._config.mixup:
            video, kept = mixed(video, self._config.mixup)
        lesson = None if self._teacher is None else self._teacher.lesson(video)
        labels = batch.labels if batch.labels is not None else lesson.scores.argmax(1)  # type: ignore[union-attr]
        joint = self._config.schedule == "joint"
        taught = self._config.distill_weight
        for number, choices in enumerate(self._policies(fitted=fitted)):
            with fixed_decisions(choices), self._accelerator.autocast(), watching(self._classifier) as seen:
                output, decisions = self._observed(*self._pack(video))
                check_scores(labels, output)
                loss = self._task(output.float(), labels if labelled else None, kept, forgiving=not (joint or fitted))
                if lesson is not None:
                    loss = loss + taught * self._unlike(output, seen, lesson)
                correct, dense = output.argmax(1) == labels, self.dense(video)
                usage = expected_share(decisions, dense)
                meter.add(loss.detach(), correct, usage.detach())
                if joint:
                    price = self._efficiency(decisions, usage, correct, dense, weight)
                    loss = loss + self._efficiency_weight(step) * price
            if number == 0 and self._self_taught and not fitted:
                lesson = Lesson(output.detach().float(), seen[0].detach() if seen else None)
                taught = self._config.self_distill_weight
            yield weight * loss

    def _policies(self, *, fitted: bool) -> Iterator[Mapping[Gate, tuple[int, int]]]:
        """What to compute, one after another; where the full choice teaches the others, it is the first."""
        if fitted or self._config.schedule == "joint":
            yield {}
            return
        if self._self_taught:
            yield dict.fromkeys(self._gates, (0, 0))
        yield from drawn_policies(self._gates, self._choices)

    def dense(self, video: Tensor) -> int:
        """Multiply-adds of the original for a clip of this size, measured once."""
        shape = tuple(video.shape[1:])
        if shape not in self._dense:
            self._dense[shape] = dense_macs(self._dynamic, self._pack(video))
        return self._dense[shape]

    def _task(self, output: Tensor, labels: Tensor | None, kept: float, *, forgiving: bool) -> Tensor:
        if labels is None:
            return output.new_zeros(())
        if forgiving:
            return forgiving_loss(output, labels)
        cross_entropy = partial(F.cross_entropy, output, label_smoothing=self._config.label_smoothing)
        loss = kept * cross_entropy(labels)
        return loss if kept == 1.0 else loss + (1.0 - kept) * cross_entropy(labels.flip(0))

    def _unlike(self, output: Tensor, seen: list[Tensor], lesson: Lesson) -> Tensor:
        loss = distillation_loss(output.float(), lesson.scores, temperature=self._config.distill_temperature)
        if lesson.features is None:
            return loss
        return loss + self._config.feature_distill_weight * feature_loss(seen[0], lesson.features)

    def _efficiency(
        self, decisions: dict[str, Decision], usage: Tensor, correct: Tensor, dense: int, weight: float
    ) -> Tensor:
        if self.controller is None:
            return efficiency_loss(decisions, correct=correct, dense=dense)
        share = self._accelerator.reduce(weight * usage.detach().mean(), "mean")
        return charge(usage, self.controller.price(float(share)), correct)

    def _efficiency_weight(self, step: int) -> float:
        warmup = self._config.efficiency_warmup * self._num_steps
        return self._config.efficiency_weight * min(1.0, step / warmup if warmup else 1.0)


def check_finite(loss: Tensor, epoch: int, step: int) -> None:
    """Refuse to go on from a loss that is none.

    Raises:
        TrainError: saying where, and what to try.
    """
    if not torch.isfinite(loss):
        raise TrainError(
            f"finetune: the loss is {loss.item()} in epoch {epoch}, step {step}. "
            "Lower lr and gate_lr, or train with mixed_precision='no'."
        )
