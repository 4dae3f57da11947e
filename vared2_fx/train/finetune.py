"""Fine-tuning: the network gets its accuracy back while its gates learn what can be left out."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vared2_fx.batches import read_labelled, set_epoch
from vared2_fx.config import FinetuneConfig
from vared2_fx.convert import conversion
from vared2_fx.errors import DataError, TrainError
from vared2_fx.layers import Decision, fixed_decisions
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.reach import check_reachable
from vared2_fx.policy.statistics import dense_macs
from vared2_fx.train.evaluate import Evaluation, check_scores, evaluate
from vared2_fx.train.gates import fit_gates
from vared2_fx.train.history import EpochLog, EpochMeter, rank
from vared2_fx.train.losses import efficiency_loss, expected_share
from vared2_fx.train.norms import has_own_norms, recalibrate_norms
from vared2_fx.train.optimizer import make_optimizer
from vared2_fx.train.progress import TrainingBar
from vared2_fx.train.state import RunFolder
from vared2_fx.train.variants import drawn_policies, forgiving_loss, trained_choices

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """What `finetune` reached."""

    history: tuple[EpochLog, ...]
    best_epoch: int
    evaluation: Evaluation
    """Of the best epoch, whose weights the network has now."""


def finetune(
    dynamic: fx.GraphModule,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    config: FinetuneConfig | None = None,
) -> FinetuneResult:
    """Train a converted network, weights, gates and cheap operations together.

    Loss: cross-entropy + λ · `efficiency_loss`, only clips classified correctly pushing [VA-RED², section 3, as we
    understand it]; warm-up of λ, the target and the schedule `variants_first` are ours. For a loop of your own:
    `with_decisions`, `efficiency_loss`, `fit_gates`, `evaluate`.

    Args:
        dynamic: what `convert` returned; trained in place, and left with the weights of the best epoch, in
            evaluation mode. The network it was converted from is not touched.
        train_loader: batches as dicts with "video" and "label", or pairs (clips, labels).
        val_loader: the same, for choosing the best epoch.
        config: see `FinetuneConfig`.

    Returns:
        The history and the best epoch's evaluation.

    Raises:
        ConvertError: `dynamic` is not a converted network, or cannot come down to the target.
        DataError: a loader is empty, its labels do not fit the network's outputs, or the network takes boxes.
        CheckpointError: the run to resume is damaged, or had another config.
    """
    conversion(dynamic)
    config = config or FinetuneConfig()
    check_reachable("finetune", dynamic, val_loader, config.target)
    return _Run(dynamic, train_loader, val_loader, config).run()


class _Run:
    """One fine-tuning run: what its epochs share."""

    def __init__(
        self, dynamic: fx.GraphModule, train_loader: Iterable[Any], val_loader: Iterable[Any], config: FinetuneConfig
    ) -> None:
        # Not at the top of the file: they take longer to import than all the rest of the package.
        from accelerate.utils import set_seed
        from timm.scheduler import CosineLRScheduler

        self.dynamic, self.config, self.pack = dynamic, config, packer(dynamic)
        self.val_loader = val_loader
        set_seed(config.seed)
        self.accelerator = _accelerator(config, on_cpu=next(dynamic.parameters()).device.type == "cpu")
        several = self.accelerator.num_processes > 1  # alone, the loader stays what it is, with its counts
        if several and config.schedule == "variants_first":
            raise TrainError(
                "finetune: schedule='variants_first' runs in one process so far, as gates get no gradient in it; "
                "take schedule='joint', or a single process."
            )
        self.train_loader = self.accelerator.prepare(train_loader) if several else train_loader
        self.num_steps = config.epochs * _num_batches(self.train_loader)
        optimizer = make_optimizer(dynamic, config)
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=max(2, self.num_steps),  # of one step it says that it has no effect
            warmup_t=min(self.num_steps - 1, round(config.warmup_epochs * self.num_steps / config.epochs)),
            warmup_lr_init=0.0,
            t_in_epochs=False,
        )
        self.observed, self.optimizer = self.accelerator.prepare(with_decisions(dynamic), optimizer)
        self.gates = [region.gate for region in regions(dynamic).values()]
        of_gates = {module for gate in self.gates for module in gate.modules()}
        norms = (module for module in dynamic.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        self.norms = [norm for norm in norms if norm not in of_gates]
        self.choices = trained_choices(dynamic)
        variants_first = config.schedule == "variants_first"
        own_epochs = min(config.epochs - 1, round(config.own_share * config.epochs))
        self.first_fit = config.epochs - own_epochs if variants_first else config.epochs + 1
        self.fits = {self.first_fit, config.epochs} if variants_first else set()
        self.folder = RunFolder(config, self.accelerator)
        self.dense: dict[tuple[int, ...], int] = {}
        self.history: list[EpochLog] = []
        self.best_weights: dict[str, Tensor] = {}

    def run(self) -> FinetuneResult:
        if (progress := self.folder.resume()) is not None:
            self.history = [EpochLog(**line) for line in progress["history"]]
            self.best_weights = self.folder.best_weights()
        else:
            self._finish_epoch(0, EpochMeter(), 0.0)
            self._recalibrate()
        with TrainingBar(self.config.progress, self.num_steps) as bar:
            for epoch in range(len(self.history), self.config.epochs + 1):
                start = time.perf_counter()
                meter = self._train_epoch(epoch, bar)
                if epoch in self.fits:
                    self._fit_gates()
                elif epoch > self.first_fit:
                    self._recalibrate()
                self._finish_epoch(epoch, meter, time.perf_counter() - start)
        self.dynamic.load_state_dict(self.best_weights)
        self.dynamic.eval()
        return FinetuneResult(
            history=tuple(self.history),
            best_epoch=min(self.history, key=rank).epoch,
            evaluation=evaluate(self.dynamic, self.val_loader),
        )

    def _recalibrate(self) -> None:
        """With variants first each choice is trained with statistics of its own, where it has some."""
        if self.config.schedule == "variants_first" and has_own_norms(self.dynamic):
            recalibrate_norms(self.dynamic, self.train_loader)

    def _fit_gates(self) -> None:
        self._recalibrate()
        fit = fit_gates(self.dynamic, self.val_loader, loss_weight=self.config.gate_loss_weight)
        log.info("gates: %s", fit)

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
        like = next(self.dynamic.parameters())
        for step, raw in enumerate(self.train_loader, start=(epoch - 1) * per_epoch):
            self._set_schedules(min(step, self.num_steps - 1))
            batch, labels = read_labelled(raw)
            if not len(labels):
                continue
            batch, labels = batch.to(like), labels.to(like.device)
            for loss in self._losses(batch.video, labels, step, meter):
                if not torch.isfinite(loss):
                    raise TrainError(
                        f"finetune: the loss is {loss.item()} in epoch {epoch}, step {step}. "
                        "Lower lr and gate_lr, or train with mixed_precision='no'."
                    )
                self.optimizer.zero_grad()
                self.accelerator.backward(loss)
                if self.config.clip_grad:
                    self.accelerator.clip_grad_norm_(self.observed.parameters(), self.config.clip_grad)
                self.optimizer.step()
            bar.advance(epoch, self.config.epochs, meter.loss, meter.accuracy, meter.share)
        return meter

    def _losses(self, video: Tensor, labels: Tensor, step: int, meter: EpochMeter) -> Iterator[Tensor]:
        """The losses of a batch, each to be followed by an update."""
        if self.config.schedule == "joint":
            with self.accelerator.autocast():
                output, decisions = self.observed(*self.pack(video))
                loss = self._loss(video, labels, output, decisions, step, meter)
            yield loss
            return
        fitted = step >= self.first_fit * (self.num_steps // self.config.epochs)
        policies: Iterable[Any] = ({},) if fitted else drawn_policies(self.gates, self.choices)
        for choices in policies:
            with fixed_decisions(choices), self.accelerator.autocast():
                output, decisions = self.observed(*self.pack(video))
            check_scores(labels, output)
            loss = forgiving_loss(output.float(), labels)
            with torch.no_grad():
                meter.add(loss, output.argmax(1) == labels, expected_share(decisions, self._dense(video)))
            yield loss

    def _dense(self, video: Tensor) -> int:
        shape = tuple(video.shape[1:])
        if shape not in self.dense:
            self.dense[shape] = dense_macs(self.dynamic, self.pack(video))
        return self.dense[shape]

    def _loss(
        self,
        video: Tensor,
        labels: Tensor,
        output: Tensor,
        decisions: dict[str, Decision],
        step: int,
        meter: EpochMeter,
    ) -> Tensor:
        check_scores(labels, output)
        dense = self._dense(video)
        correct = output.argmax(1) == labels
        task = F.cross_entropy(output.float(), labels, label_smoothing=self.config.label_smoothing)
        efficiency = efficiency_loss(decisions, correct=correct, dense=dense, target=self.config.target)
        with torch.no_grad():
            meter.add(task, correct, expected_share(decisions, dense))
        return task + self._efficiency_weight(step) * efficiency

    def _efficiency_weight(self, step: int) -> float:
        warmup = self.config.efficiency_warmup * self.num_steps
        return self.config.efficiency_weight * min(1.0, step / warmup if warmup else 1.0)

    def _set_schedules(self, step: int) -> None:
        self.scheduler.step_update(step)
        first, last = self.config.temperature
        temperature = first * (last / first) ** (step / max(1, self.num_steps - 1))
        for gate in self.gates:
            gate.temperature.fill_(temperature)

    def _finish_epoch(self, epoch: int, meter: EpochMeter, seconds: float) -> None:
        """Evaluate, keep the best, write everything down."""
        evaluation = evaluate(self.dynamic, self.val_loader)
        self.history.append(
            EpochLog(
                epoch=epoch,
                train_loss=meter.loss,
                train_accuracy=meter.accuracy,
                train_share=meter.share,
                accuracy=evaluation.accuracy,
                share=evaluation.share,
                min_share=evaluation.min_macs / evaluation.dense_macs,
                max_share=evaluation.max_macs / evaluation.dense_macs,
                objective=self._objective(evaluation),
                seconds=seconds,
                layers={path: asdict(layer) for path, layer in evaluation.layers.items()},
            )
        )
        log.info("epoch %d of %d: %s", epoch, self.config.epochs, evaluation)
        if min(self.history, key=rank).epoch == epoch:
            self.best_weights = {k: v.detach().cpu().clone() for k, v in self.dynamic.state_dict().items()}
            self.folder.save_best(self.dynamic)
        self.folder.save_last({"history": [asdict(line) for line in self.history]})

    def _objective(self, evaluation: Evaluation) -> float:
        """The loss that training minimises, with errors in place of cross-entropy, on what evaluation computed."""
        if self.config.target is None:
            efficiency = sum((c.macs / evaluation.dense_macs) ** 2 for c in evaluation.clips) / len(evaluation.clips)
        else:
            efficiency = max(0.0, evaluation.share - self.config.target)
        return 1.0 - evaluation.accuracy + self.config.efficiency_weight * efficiency


def _accelerator(config: FinetuneConfig, *, on_cpu: bool) -> "Accelerator":
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    try:
        return Accelerator(mixed_precision=config.mixed_precision, cpu=on_cpu)
    except ValueError:  # accelerate keeps precision and device per process; an earlier run had others
        AcceleratorState._reset_state()
        return Accelerator(mixed_precision=config.mixed_precision, cpu=on_cpu)


def _num_batches(loader: Iterable[Any]) -> int:
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError:
        raise DataError("finetune: the training loader has no length; wrap it in one that knows its batches.") from None
    if count == 0:
        raise DataError("finetune: the training loader is empty.")
    return count
