"""What `routed_accuracy.py` runs on: the demo's scenes, and AVLetters, each with clips for every part of the work."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from avletters_parts.clips import Loader, read_parts
from avletters_parts.learned import Recipe, converted
from avletters_parts.networks import make_network
from avletters_parts.training import WEIGHT_DECAY, train
from torch import fx, nn

import vared2_fx as vr
from vared2_fx.data import ClipConfig, make_loader
from vared2_fx.data.scenes import generate_scenes
from vared2_fx.demo import CONVERT, FINETUNE, NETWORK

SCENES = {"train": 60, "gates": 60, "routes": 60, "curve": 60}
"""Videos per class."""
LETTERS = {"gates": 4, "routes": 4}
"""Clips per letter that the weights, 12 of each, never see. The curve is measured on those of the gates: there are no
more."""
NUM_LETTERS, WIDTH, BASE_EPOCHS, BASE_LR = 26, 12, 120, 4e-3


@dataclass(frozen=True)
class Task:
    """One seed of a task."""

    base: nn.Module
    dynamic: fx.GraphModule
    """The base, converted and not trained yet."""
    finetune: vr.FinetuneConfig
    loaders: dict[str, Any]
    """`train`; `gates`, `routes`, `curve` and `test`: lists of batches, the same in every pass."""


def scenes(seed: int, folder: Path, test_videos: int) -> Task:
    """As in the demo, with other videos, `test_videos` of each class; they are written to `folder`."""
    config, loaders = ClipConfig.from_spec(vr.zoo.spec(NETWORK)), dict[str, Any]()
    for offset, (split, count) in enumerate((SCENES | {"test": test_videos}).items()):
        listing = generate_scenes(folder / split, videos_per_class=count, seed=1000 + 10 * seed + offset)
        training = split == "train"
        loader = make_loader(listing, config, batch_size=16, training=training, seed=seed, flip=False)
        loaders[split] = loader if training else list(loader)
    base = vr.zoo.load(NETWORK, pretrained=True)
    torch.manual_seed(seed)
    return Task(base, vr.convert(base, config=CONVERT), replace(FINETUNE, seed=seed, progress=False), loaders)


def avletters(seed: int) -> Task:
    """The 3D ResNet of `avletters.py`, trained on fewer clips; gates of blocks, not settled; each choice kept good."""
    parts = read_parts(seed, NUM_LETTERS, LETTERS)
    loaders: dict[str, Any] = {name: list(Loader(parts[name], batch_size=52)) for name in ("gates", "routes", "test")}
    torch.manual_seed(seed)
    base = make_network("resnet", num_classes=NUM_LETTERS, width=WIDTH).to(memory_format=torch.channels_last_3d)
    train(base, Loader(parts["train"], training=True, seed=seed), epochs=BASE_EPOCHS, lr=BASE_LR)
    recipe = Recipe(frame_strides=(1, 2))
    dynamic = converted(base, recipe, Loader(parts["train"], training=True, batch_size=32, seed=seed), seed)
    config = vr.FinetuneConfig(
        schedule="variants_first",
        epochs=12,
        lr=1e-3,
        weight_decay=WEIGHT_DECAY,
        freeze_norms=False,
        distill_weight=1.0,
        self_distill_weight=1.0,
        target_macs=0.6,
        seed=seed,
        progress=False,
    )
    loaders |= {"train": Loader(parts["train"], training=True, seed=seed + 1), "curve": loaders["gates"]}
    return Task(base, dynamic, config, loaders)
