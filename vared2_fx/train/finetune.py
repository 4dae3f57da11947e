"""Fine-tuning: the network gets its accuracy back while its gates learn what can be left out."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from torch import Tensor, fx, nn

from vared2_fx.batches import generators_of, read_batch, set_epoch
from vared2_fx.config import FinetuneConfig
from vared2_fx.convert import conversion
from vared2_fx.errors import TrainError
from vared2_fx.layers import recomputing
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.reach import check_reachable
from vared2_fx.train.alarms import collapse_alarms
from vared2_fx.train.average import make_average
from vared2_fx.train.board import Board
from vared2_fx.train.distill import Answered, Teacher, classifier_of, make_teacher
from vared2_fx.train.evaluate import Evaluation, evaluate
from vared2_fx.train.gates import check_fittable, fit_gates
from vared2_fx.train.history import EpochLog, EpochMeter, best_of, log_of, rank
from vared2_fx.train.norms import has_own_norms, own_statistics, recalibrate_norms
from vared2_fx.train.objective import Objective, check_finite
from vared2_fx.train.optimizer import make_optimizer
from vared2_fx.train.precision import CheckedConvs
from vared2_fx.train.processes import average_over_processes, of_all_processes, shared_norms, weight_of_clips
from vared2_fx.train.progress import TrainingBar
from vared2_fx.train.setup import check_shared_out, make_accelerator, make_scheduler, num_batches, on_device_of
from vared2_fx.train.state import RunFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """What `finetune` reached."""

    history: tuple[EpochLog, ...]
    best_epoch: int
    """The one that `best_of` the history gives: the last that is, within its standard error, as good as any."""
    evaluation: Evaluation
    """Of the best epoch, whose weights the network has now."""

    @property
    def alarms(self) -> tuple[str, ...]:
        """Gates of that network that decide nothing; see `collapse_alarms`."""
        return collapse_alarms(self.evaluation)


def finetune(
    dynamic: fx.GraphModule,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    config: FinetuneConfig | None = None,
    *,
    original: nn.Module | None = None,
) -> FinetuneResult:
    """Train a converted network, weights, gates and cheap operations together.

    Loss: cross-entropy + λ · `efficiency_loss`, only clips classified correctly pushing [VA-RED², section 3, as we
    understand it]; warm-up of λ, the target, distillation and the schedule `variants_first` are ours. For a loop of
    your own: `with_decisions`, `efficiency_loss`, `distillation_loss`, `fit_gates`, `evaluate`.

    Args:
        dynamic: what `convert` returned; trained in place, and left with the weights of the best epoch, in
            evaluation mode. The network it was converted from is not touched.
        train_loader: batches as dicts with "video" and "label", or pairs (clips, labels). With distillation labels
            may be missing: the original's answers take their place.
        val_loader: the same, for choosing the best epoch and, with `variants_first`, for fitting the gates; so what the
            result says of it is optimistic.
        config: see `FinetuneConfig`.
        original: with distillation, whose answers are learned; put in evaluation mode and moved to where `dynamic`
            is trained. None: a copy of the network that `dynamic` was converted from, with the weights that `dynamic`
            has now.

    Returns:
        The history and the best epoch's evaluation.

    Raises:
        ConvertError: `dynamic` is not a converted network, or cannot come down to the target.
        DataError: a loader is empty, its labels are missing or do not fit the network's outputs, or the network takes
            boxes.
        TrainError: the loss is not finite, `original` shares weights with `dynamic`, an optimiser is unknown, gates are
            of a kind that the schedule cannot fit, or several processes were asked for what takes one.
        CheckpointError: the run to resume is damaged, or had another config, other batches, processes or teacher.
    """
    conversion(dynamic)
    packer(dynamic)  # refuses a network that takes more than clips
    config = config or FinetuneConfig()
    if config.schedule == "variants_first":
        check_fittable("finetune", dynamic)
    check_reachable("finetune", dynamic, val_loader, config.target)
    with on_device_of(dynamic):
        return _Run(dynamic, train_loader, val_loader, config, original).run()


class _Run:
    """One fine-tuning run: what its epochs share."""

    def __init__(
        self,
        dynamic: fx.GraphModule,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any],
        config: FinetuneConfig,
        original: nn.Module | None,
    ) -> None:
        self.dynamic, self.config = dynamic, config
        self.board = Board(config) if config.tensorboard else None
        self.val_loader, self.like = val_loader, next(dynamic.parameters())
        classifier = classifier_of(dynamic) if config.feature_distill_weight else None
        self.teacher: Teacher | None = None
        if config.distill_weight:
            self.teacher = make_teacher(dynamic, original, packer(dynamic), classifier=classifier)
        self.accelerator = make_accelerator(config, on_cpu=self.like.device.type == "cpu")
        several = self.accelerator.num_processes > 1  # alone, the loader stays what it is, with its counts
        if several and config.schedule == "variants_first":
            raise TrainError(
                "finetune: schedule='variants_first' runs in one process so far, as gates get no gradient in it; "
                "take schedule='joint', or a single process."
            )
        if several:
            check_shared_out(train_loader)
        self.train_loader = self.accelerator.prepare(train_loader) if several else train_loader
        self.num_steps = config.epochs * num_batches(self.train_loader)
        optimizer = make_optimizer(dynamic, config)
        self.scheduler = make_scheduler(optimizer, config, self.num_steps)
        self.observed, self.optimizer = self.accelerator.prepare(with_decisions(dynamic), optimizer)
        if self.teacher is not None:
            self.teacher.to(self.like.device)  # which is known only now: each process has a GPU of its own
        self.objective = Objective(dynamic, self.observed, config, self.accelerator, self.teacher, self.num_steps)
        self.gates = [region.gate for region in regions(dynamic).values()]
        self.recomputed = list(regions(dynamic).values()) if config.gradient_checkpointing else []
        of_gates = {module for gate in self.gates for module in gate.modules()}
        norms = (module for module in dynamic.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        self.norms = [norm for norm in norms if norm not in of_gates]
        variants_first = config.schedule == "variants_first"
        own_epochs = min(config.epochs - 1, round(config.own_share * config.epochs))
        self.first_fit = config.epochs - own_epochs if variants_first else config.epochs + 1
        self.fits = {self.first_fit, config.epochs} if variants_first else set()
        self.average = make_average(dynamic, config, self.accelerator)
        self.kept = dynamic if self.average is None else self.average.module
        self.generators = generators_of(train_loader, val_loader)  # of several processes, with one that prepare made
        self.folder = RunFolder(config, self.accelerator, self.generators)
        self.checked = nullcontext() if config.mixed_precision == "no" else CheckedConvs()
        self.history: list[EpochLog] = []
        self.best_weights: dict[str, Tensor] = {}

    def run(self) -> FinetuneResult:
        if (progress := self.folder.resume(**self._same())) is not None:
            self.history = [EpochLog(**line) for line in progress["history"]]
            self.best_weights = self.folder.best_weights()
        else:
            self._recalibrate(self.dynamic)  # before anything is saved: what is gone on with has these statistics
            if self.average is not None:
                self.average.module.load_state_dict(self.dynamic.state_dict())
            self._finish_epoch(0, EpochMeter(), 0.0)
        several = self.accelerator.num_processes > 1
        sharing = shared_norms(self.gates) if several else nullcontext()
        with TrainingBar(self.config.progress, self.num_steps) as bar, sharing:
            for epoch in range(len(self.history), self.config.epochs + 1):
                if self._patience_is_over():
                    log.info("no better epoch in the last %d; ended before epoch %d", self.config.patience, epoch)
                    break
                start = time.perf_counter()
                with self.checked, recomputing(self.recomputed, self.checked):
                    meter = self._train_epoch(epoch, bar)
                if epoch in self.fits:
                    self._fit_gates()
                elif epoch > self.first_fit:
                    self._recalibrate(self.dynamic, taken_only=True)
                elif epoch == self.config.epochs:
                    self._recalibrate(self.kept)
                self._finish_epoch(epoch, meter, time.perf_counter() - start)
        self.dynamic.load_state_dict(self.best_weights)
        self.dynamic.eval()
        return FinetuneResult(
            history=tuple(self.history),
            best_epoch=best_of(self.history).epoch,
            evaluation=evaluate(self.dynamic, self.val_loader, original=self.teacher),
        )

    def _same(self) -> dict[str, int | str | None]:
        """What a run and its continuation have in common."""
        return {
            "num_processes": self.accelerator.num_processes,
            "num_steps": self.num_steps,
            "num_generators": len(self.generators),
            "teacher": None if self.teacher is None else self.teacher.fingerprint(),
        }

    def _recalibrate(self, network: fx.GraphModule, *, taken_only: bool = False) -> None:
        """Measure the statistics of each choice, where it has some of its own; processes, which see parts, share."""
        if has_own_norms(network):
            recalibrate_norms(network, self.train_loader, taken_only=taken_only)
            average_over_processes(own_statistics(network))

    def _fit_gates(self) -> None:
        self._recalibrate(self.dynamic)
        loader = self.val_loader if self.teacher is None else Answered(self.val_loader, self.teacher, self.like)
        config = self.config
        fit = fit_gates(
            self.dynamic, loader, loss_weight=config.gate_loss_weight, target=config.target, settle=config.settle_gates
        )
        log.info("gates: %s", fit)
        if fit.settled is not None:
            self._recalibrate(self.dynamic, taken_only=True)

    def _train_epoch(self, epoch: int, bar: TrainingBar) -> EpochMeter:
        meter = EpochMeter()
        per_epoch = self.num_steps // self.config.epochs
        set_epoch(self.train_loader, epoch - 1)
        self.observed.train()
        if epoch > self.first_fit:  # fitted gates decide as they will, without draws
            for gate in self.gates:
                gate.eval()
        if self.config.freeze_norms:
            for norm in self.norms:
                norm.eval()
        self.optimizer.zero_grad()
        group: list[Iterator[Tensor]] = []
        for step, raw in enumerate(self.train_loader, start=(epoch - 1) * per_epoch):
            self._set_schedules(min(step, self.num_steps - 1))
            batch = read_batch(raw).to(self.like)
            meter.add_failed(batch.num_failed)
            weight = weight_of_clips(len(batch.video), self.accelerator.device)
            if weight:
                fitted = epoch > self.first_fit
                group.append(self.objective.losses(batch, step, meter, fitted=fitted, weight=weight))
            if len(group) == self.config.accumulate:
                self._learn(group, epoch, step)
                group = []
            bar.advance(epoch, self.config.epochs, meter.loss, meter.accuracy, meter.share)
        if group:
            self._learn(group, epoch, step)
        if self.accelerator.num_processes > 1:
            meter.over_processes(lambda sums: self.accelerator.reduce(sums.to(self.accelerator.device), "sum"))
        return meter

    def _learn(self, group: list[Iterator[Tensor]], epoch: int, step: int) -> None:
        """Move the weights once for each loss that batches have, by its mean over these batches."""
        for first in group[0]:
            for loss in chain([first], map(next, group[1:])):  # each is computed after the one before let its maps go
                check_finite(loss, epoch, step)
                self.accelerator.backward(loss / len(group))
            self._update(step)

    def _update(self, step: int) -> None:
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_(self.observed.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.dynamic, step + 1)

    def _patience_is_over(self) -> bool:
        waited = len(self.history) - 1 - min(self.history, key=rank).epoch
        return 0 < self.config.patience <= waited

    def _set_schedules(self, step: int) -> None:
        self.scheduler.step_update(step)
        first, last = self.config.temperature
        temperature = first * (last / first) ** (step / max(1, self.num_steps - 1))
        for gate in self.gates:
            gate.temperature.fill_(temperature)

    def _finish_epoch(self, epoch: int, meter: EpochMeter, seconds: float) -> None:
        """Evaluate, keep the best, write everything down."""
        evaluation = evaluate(self.kept, self.val_loader, original=self.teacher)
        alarms = collapse_alarms(evaluation)
        own = log_of(epoch, meter, evaluation, self.config, seconds=seconds, alarms=len(alarms))
        line: EpochLog = of_all_processes(own)[0]  # the first decides for all: what is charged, kept, and when it ends
        if self.objective.controller is not None:
            self.objective.controller.evaluated(line.share)
        self.history.append(line)
        log.info("epoch %d of %d: %s", epoch, self.config.epochs, evaluation)
        for alarm in alarms if epoch else ():  # as converted, no gate decides anything yet
            log.info("epoch %d: %s", epoch, alarm)
        if best_of(self.history).epoch == epoch:
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.kept.state_dict().items()}
            self.folder.save_best(self.kept)
        if self.board is not None and self.accelerator.is_main_process:
            self.board.write(line)
        self.folder.save_last({"history": [asdict(line) for line in self.history], **self._same()})
