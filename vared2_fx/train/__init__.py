"""Losses, evaluation and fine-tuning."""

from vared2_fx.train.alarms import collapse_alarms
from vared2_fx.train.distill import distillation_loss
from vared2_fx.train.evaluate import ClipResult, Evaluation, evaluate
from vared2_fx.train.finetune import FinetuneResult, finetune
from vared2_fx.train.gates import GateFit, fit_gates
from vared2_fx.train.history import EpochLog
from vared2_fx.train.losses import efficiency_loss
from vared2_fx.train.norms import recalibrate_norms
from vared2_fx.train.oracle import Oracle, Rung, oracle
from vared2_fx.train.views import VideoResult

__all__ = [
    "ClipResult",
    "EpochLog",
    "Evaluation",
    "FinetuneResult",
    "GateFit",
    "Oracle",
    "Rung",
    "VideoResult",
    "collapse_alarms",
    "distillation_loss",
    "efficiency_loss",
    "evaluate",
    "finetune",
    "fit_gates",
    "oracle",
    "recalibrate_norms",
]
