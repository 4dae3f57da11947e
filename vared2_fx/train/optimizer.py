"""Which parameters learn how fast."""

import difflib
from typing import Any

import torch
from torch import nn

from vared2_fx.config import FinetuneConfig
from vared2_fx.errors import TrainError
from vared2_fx.layers import DynamicRegion


def parameter_groups(dynamic: nn.Module, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Trainable parameters in groups for an optimiser.

    Kernels with weight decay; norms, biases and cheap operations without; gates with a learning rate of their own.
    Cheap operations begin near to what they are to be, by calibration or as copies: the rate of gates, which begin at
    random, would throw them off in a step.
    """
    gates, cheap = set(), set()
    for region in dynamic.modules():
        if isinstance(region, DynamicRegion):
            gates |= {id(parameter) for parameter in region.gate.parameters()}
            cheap |= {id(parameter) for part in region.added() for parameter in part.parameters()}
    trainable = [parameter for parameter in dynamic.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trainable if id(parameter) not in gates]
    decaying = {id(parameter) for parameter in weights if parameter.dim() > 1 and id(parameter) not in cheap}
    groups = (
        ([p for p in weights if id(p) in decaying], config.lr, config.weight_decay),
        ([p for p in weights if id(p) not in decaying], config.lr, 0.0),
        ([p for p in trainable if id(p) in gates], config.gate_lr, 0.0),
    )
    return [{"params": params, "lr": lr, "weight_decay": decay} for params, lr, decay in groups if params]


def make_optimizer(dynamic: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """The config's optimiser over `parameter_groups`.

    Raises:
        TrainError: timm knows none of that name.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    known = [str(name) for name in list_optimizers()]
    if config.optimizer not in known:
        near = difflib.get_close_matches(config.optimizer, known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise TrainError(f"optimizer {config.optimizer!r}: timm knows none of that name.{hint}")
    return create_optimizer_v2(parameter_groups(dynamic, config), opt=config.optimizer, lr=config.lr)
