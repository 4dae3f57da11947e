"""The clips that a command runs a network on.

N clips, C channels, T frames, H height, W width.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vared2_fx.cli.networks import CLIP_FILE, Network
from vared2_fx.cli.output import say
from vared2_fx.convert import conversion
from vared2_fx.errors import Vared2Error
from vared2_fx.packing import packer
from vared2_fx.typed_json import as_type

if TYPE_CHECKING:
    from vared2_fx.data import ClipConfig


def check_data(data: Path, option: str = "--data") -> None:
    """Find that there is nothing at what `option` names before anything takes long.

    Raises:
        Vared2Error: naming it.
    """
    if not data.exists():
        raise Vared2Error(f"{option} {data}: there is no such folder or file.")


def example_clip(network: Network, *, frames: int | None, size: int | None) -> Tensor | None:
    """A made-up clip (1, 3, T, H, W) of the size that the network is used with; None where nothing says which.

    Raises:
        Vared2Error: one of `frames` and `size` is missing, and cannot be known.
    """
    known = _known_size(network)
    if known is None and frames is None and size is None:
        return None
    t, s = (frames, size) if known is None else (frames or known[0], size or known[1])
    if t is None or s is None:
        raise Vared2Error("--frames and --size: give both, for a network that is not the zoo's.")
    return torch.randn(1, 3, t, s, s, generator=torch.Generator().manual_seed(0))


def example_inputs(network: Network, *, frames: int | None, size: int | None) -> tuple[Any, ...] | None:
    """What the network is called with for `example_clip`; None where nothing says its size."""
    clip = example_clip(network, frames=frames, size=size)
    return None if clip is None else packer(network.model, boxes=True)(clip)


def clip_config(network: Network, *, frames: int | None, size: int | None, sampling_rate: int | None) -> "ClipConfig":
    """How to cut clips from videos, changed by the options.

    As the network was fine-tuned, if the command `finetune` wrote that beside it; else as the zoo says; else of the
    size that it was converted for.

    Raises:
        Vared2Error: a network of the user's own, and no size; or what fine-tuning wrote is damaged.
    """
    from vared2_fx.data import ClipConfig  # takes a second to import

    known = _known_size(network)
    if network.folder is not None and (network.folder / CLIP_FILE).is_file():
        config = _read_clip_config(network.folder / CLIP_FILE)
        known = config.frames, config.crop
    elif network.spec is not None:
        config = ClipConfig.from_spec(network.spec)
    elif known is not None or (frames and size):
        t, s = known or (frames or 1, size or 1)
        config = ClipConfig(frames=t, crop=s, short_side=round(s * 8 / 7))  # 256 : 224, as most are trained
    else:
        raise Vared2Error(
            "the clips: say with --frames and --size how large they are; only the zoo's networks are known."
        )
    t, s = frames or (known[0] if known else config.frames), size or (known[1] if known else config.crop)
    return replace(
        config,
        frames=t,
        crop=s,
        short_side=round(config.short_side * s / config.crop),
        sampling_rate=sampling_rate or config.sampling_rate,
    )


def _read_clip_config(path: Path) -> "ClipConfig":
    from vared2_fx.data import ClipConfig

    try:
        config: ClipConfig = as_type(ClipConfig, json.loads(path.read_text(encoding="utf-8")), "it")
    except (OSError, ValueError, Vared2Error) as exc:
        raise Vared2Error(f"{path} does not say how clips are cut: {exc} Delete it, and give the options.") from exc
    say(f"clips as in {path}")
    return config


def _known_size(network: Network) -> tuple[int, int] | None:
    """(T, H = W) that the network was converted for, or that the zoo names."""
    if network.converted is not None:
        plan = conversion(network.converted).plan
        if plan.input_shape is not None and len(plan.input_shape) == 5 and not plan.input_is_guess:
            return plan.input_shape[2], plan.input_shape[3]
    return None if network.spec is None else (network.spec.frames, network.spec.crop)
