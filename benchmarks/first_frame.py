"""Which frame of every R is computed: accuracy of the demo's network, untrained, every convolution at R.

    python benchmarks/first_frame.py

For R = 2 and 4 and each first frame f, every convolution's output holds frame iR + f for the frames iR … iR + R − 1.
The paper's form, as we understand it, is f = 0; ours is f = 1.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import write
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx.data import ClipConfig, make_loader
from vared2_fx.data.scenes import generate_scenes
from vared2_fx.demo import NETWORK, accuracy_per_kind


def hold(stride: int, first: int) -> Any:
    """A forward hook that holds one of every `stride` frames."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        known = torch.arange(first, y.shape[2], stride)
        return y[:, :, known[(torch.arange(y.shape[2]) // stride).clamp(max=len(known) - 1)]]

    return hook


def main() -> None:
    torch.set_num_threads(2)
    model = vr.zoo.load(NETWORK, pretrained=True)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv3d)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        listing = generate_scenes(Path(folder) / "scenes", videos_per_class=30, seed=3)
        loader = make_loader(listing, ClipConfig.from_spec(vr.zoo.spec(NETWORK)), batch_size=30)
        for stride in (1, 2, 4):
            for first in range(stride):
                hooks = [conv.register_forward_hook(hold(stride, first)) for conv in convs]
                evaluation = vr.evaluate(model, loader)
                for hook in hooks:
                    hook.remove()
                rows.append({"R": stride, "first": first, "top1_per_kind": accuracy_per_kind(evaluation)})
    write("first_frame", {"scenes": len(listing), "rows": rows})


if __name__ == "__main__":
    main()
