"""Ordinary training: of the base network, and of every control."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from avletters_parts.clips import Loader
from torch import Tensor, nn

import vared2_fx as vr

SMOOTHING, WEIGHT_DECAY, _CLIP_GRAD = 0.1, 0.05, 5.0


def train(
    model: nn.Module,
    loader: Loader,
    *,
    epochs: int,
    lr: float,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """AdamW, one cycle, cross-entropy with smoothed labels; with a teacher also `distillation_loss`, of weight 1.

    Returns the seconds of processor time that it took.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=epochs * len(loader), pct_start=0.2
    )
    start = time.process_time()
    for epoch in range(epochs):
        model.train()
        loader.set_epoch(epoch)
        for batch in loader:
            output = model(batch["video"])
            loss = F.cross_entropy(output, batch["label"], label_smoothing=SMOOTHING)
            if teacher is not None:
                loss = loss + vr.distillation_loss(output, teacher(batch["video"]))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP_GRAD)
            optimizer.step()
            schedule.step()
    model.eval()
    return time.process_time() - start


def top1(model: nn.Module, loader: Loader) -> float:
    """Share of the clips that are answered right."""
    return vr.evaluate(model, loader).accuracy
