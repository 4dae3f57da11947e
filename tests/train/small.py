"""A task small enough for seconds: bright clips or dark ones."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vared2_fx as vr


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Conv3d(8, 16, 3, stride=(1, 2, 2), padding=1),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(16, 2),
    )


def bright_or_dark(num: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (num,), generator=generator)
    clips = torch.randn(num, 1, 8, 8, 8, generator=generator) + (labels * 1.0 - 0.5).view(-1, 1, 1, 1, 1)
    return TensorDataset(clips, labels)


def loaders(train: int = 64, seed: int = 0) -> tuple[DataLoader, DataLoader]:
    generator = torch.Generator().manual_seed(seed)
    return (
        DataLoader(bright_or_dark(train, 1), batch_size=16, shuffle=True, generator=generator),
        DataLoader(bright_or_dark(32, 2), batch_size=16),
    )


def unlabelled(train: int = 64, seed: int = 0) -> tuple[DataLoader, DataLoader]:
    """The same clips in the same order, without their labels."""
    generator = torch.Generator().manual_seed(seed)
    return (
        DataLoader(bright_or_dark(train, 1).tensors[0], batch_size=16, shuffle=True, generator=generator),
        DataLoader(bright_or_dark(32, 2).tensors[0], batch_size=16),
    )


def config(**changes: object) -> vr.FinetuneConfig:
    values = {"epochs": 4, "lr": 1e-3, "gate_lr": 2e-2, "progress": False, "efficiency_weight": 2.0} | changes
    return vr.FinetuneConfig(**values)
