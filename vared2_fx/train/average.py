"""A moving average of the weights, kept in place of the last ones."""

from typing import TYPE_CHECKING

from torch import nn

from vared2_fx.config import FinetuneConfig

if TYPE_CHECKING:
    from accelerate import Accelerator
    from timm.utils import ModelEmaV3


def make_average(dynamic: nn.Module, config: FinetuneConfig, accelerator: "Accelerator") -> "ModelEmaV3 | None":
    """Timm's moving average of `dynamic`, warming up, saved and resumed with the run; None without `ema_decay`.

    Its `module` is a copy of `dynamic`: a converted network that can be evaluated and saved.
    """
    if not config.ema_decay:
        return None
    from timm.utils import ModelEmaV3

    average = ModelEmaV3(dynamic, decay=config.ema_decay, use_warmup=True)
    accelerator.register_for_checkpointing(average)
    return average
