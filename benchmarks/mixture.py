"""Forms of the training mixture: small matrices (ours) against the sum of all rebuilt maps, layer by layer.

    python benchmarks/mixture.py [--threads 2]

Each run is forward and backward of convolution, (mixture,) batch norm and ReLU on 8 clips; ratios to the same
without a mixture, interleaved.
"""

import argparse
from collections.abc import Callable

import torch
from common import interleaved, ratios, write
from torch import Tensor, nn

from vared2_fx.config import ConvertConfig
from vared2_fx.layers import ChoiceGrid, DynamicConv
from vared2_fx.passes.rewrite import make_region

LAYERS = {
    "3x3x3 64 channels, 8x56x56": ((64, 64, 3, 1), (8, 64, 8, 56, 56)),
    "3x3x3 128 channels, 4x28x28": ((128, 128, 3, 1), (8, 128, 4, 28, 28)),
    "1x1x1 64 channels, 8x56x56": ((64, 64, 1, 1), (8, 64, 8, 56, 56)),
    "depthwise 3x3x3 54 channels, 8x56x56": ((54, 54, 3, 54), (8, 54, 8, 56, 56)),
}
GRID = ChoiceGrid((1, 2, 4), (1.0, 0.5))


def summed(region: DynamicConv, x: Tensor) -> Tensor:
    """The same mixture, every choice rebuilt to a whole map and added up."""
    decision, y = region.gate(x), region.body(x)
    total = torch.zeros_like(y)
    for choice in GRID.all():
        j, i = GRID.index(choice)
        variant = region.variant(choice)
        part = y[:, : region.geometry.kept_channels(choice.channel_share), :: choice.frame_stride]
        if variant.channel_rebuild is not None:
            part = variant.channel_rebuild.complete(part)
        if variant.frame_rebuild is not None:
            part = variant.frame_rebuild(part, y.shape[2])
        weight = decision[:, j] * decision[:, len(GRID.frame_strides) + i]
        total = total + part * weight.view(-1, 1, 1, 1, 1)
    return total


def runs_of(conv_args: tuple[int, int, int, int], shape: tuple[int, ...]) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    channels, out_channels, kernel, groups = conv_args
    conv = nn.Conv3d(channels, out_channels, kernel, padding=kernel // 2, groups=groups)
    region = make_region(conv, GRID, ConvertConfig(), mean=None).train()
    norm, x = nn.BatchNorm3d(out_channels), torch.randn(shape, requires_grad=True)

    def run(forward: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: norm(forward()).relu_().sum().backward()

    return {
        "base": run(lambda: conv(x)),
        "matrices": run(lambda: region(x, region.gate(x))),
        "summed": run(lambda: summed(region, x)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = {}
    for name, (conv_args, shape) in LAYERS.items():
        seconds = interleaved(runs_of(conv_args, shape), rounds=args.rounds)
        time_ratio = {form: ratios(seconds, form, "base") for form in ("matrices", "summed")}
        result[name] = {"seconds": seconds, "time_ratio": time_ratio}
    write("mixture", {"dtype": "float32", "layout": "contiguous", "layers": result})


if __name__ == "__main__":
    main()
