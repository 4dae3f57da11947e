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

    Kernels with weight decay, norms and biases without, and what conversion added (gates, cheap operations)
    with a learning rate of its own.
    """
    added = {
        id(parameter)
        for region in dynamic.modules()
        if isinstance(region, DynamicRegion)
        for part in region.added()
        for parameter in part.parameters()
    }
    trainable = [parameter for parameter in dynamic.parameters() if parameter.requires_grad]
    own = [parameter for parameter in trainable if id(parameter) not in added]
    groups = (
        ([p for p in own if p.dim() > 1], config.lr, config.weight_decay),
        ([p for p in own if p.dim() <= 1], config.lr, 0.0),
        ([p for p in trainable if id(p) in added], config.gate_lr, 0.0),
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
