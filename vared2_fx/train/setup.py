"""What a fine-tuning run is set up with."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from vared2_fx.config import FinetuneConfig
from vared2_fx.errors import DataError, TrainError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from timm.scheduler import CosineLRScheduler

# Imported inside: accelerate and timm take longer to import than all the rest of the package.


def make_accelerator(config: FinetuneConfig, *, on_cpu: bool) -> "Accelerator":
    """Accelerate's handle on devices, processes and precision, everything random seeded, in each process otherwise.

    Raises:
        TrainError: it was launched with weights in parts.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import set_seed

    set_seed(config.seed)
    if not dist.is_initialized():  # accelerate keeps an earlier run's device and precision in the process
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=on_cpu)
    except ValueError:  # one of several processes stays that, on its device, but for an earlier run's precision
        AcceleratorState._reset_state()
        accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=on_cpu)
    check_whole_weights(accelerator.distributed_type.value)
    if accelerator.num_processes > 1:  # or gates and dropout would draw alike in all
        set_seed(config.seed, device_specific=True)
    return accelerator


def check_whole_weights(distributed_type: str) -> None:
    """Refuse ways of accelerate in which a process holds a part of the weights.

    Raises:
        TrainError: saying what to launch with.
    """
    if distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
        raise TrainError(
            f"finetune: launched with {distributed_type}, which splits the weights; gates and evaluation need them "
            "whole. Launch with torchrun, or accelerate launch --multi_gpu: every process then has all of them."
        )


def check_shared_out(train_loader: Iterable[Any]) -> None:
    """Refuse a loader that accelerate cannot share out among processes, but would let each go through as a whole.

    Raises:
        TrainError: naming its type.
    """
    if not isinstance(train_loader, DataLoader):
        raise TrainError(
            f"finetune: in several processes the training loader has to be a torch DataLoader, of which each gets its "
            f"share; of a {type(train_loader).__name__} each would get all. Make it one, or train in a single process."
        )


def on_device_of(model: nn.Module) -> AbstractContextManager[object]:
    """Let accelerate, which takes the current GPU, take the model's inside; of several processes each has its own."""
    device = next(model.parameters()).device
    if device.type != "cuda" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return nullcontext()
    return torch.cuda.device(device)


def make_scheduler(optimizer: torch.optim.Optimizer, config: FinetuneConfig, num_steps: int) -> "CosineLRScheduler":
    """Learning rates for each of `num_steps`: up from zero, then along a cosine to zero."""
    from timm.scheduler import CosineLRScheduler

    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, num_steps),  # of one step it says that it has no effect
        warmup_t=min(num_steps - 1, round(config.warmup_epochs * num_steps / config.epochs)),
        warmup_lr_init=0.0,
        t_in_epochs=False,
    )


def num_batches(loader: Iterable[Any]) -> int:
    """Batches of an epoch.

    Raises:
        DataError: none, or nobody knows how many.
    """
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError:
        raise DataError("finetune: the training loader has no length; wrap it in one that knows its batches.") from None
    if count == 0:
        raise DataError("finetune: the training loader is empty.")
    return count
