"""Tiny networks, and ways to make them, their gates and their cheap operations anything but neutral."""

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from vared2_fx import ConvertConfig
from vared2_fx.layers import ChannelRebuild, ChoiceGrid, ConvGeometry, DynamicConv, FrameRebuild, Gate
from vared2_fx.passes.rewrite import make_region, regions


class TinyNet(nn.Module):
    """Six convolutions that between them have all that matters: strides, groups, biases, odd channels, a shortcut."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv3d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm3d(8), nn.SiLU()
        )
        self.expand = nn.Conv3d(8, 13, 1)
        self.down = nn.Sequential(
            nn.Conv3d(13, 12, (3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0)), nn.BatchNorm3d(12), nn.ReLU()
        )
        self.grouped = nn.Conv3d(12, 12, 3, padding=1, groups=3)
        self.last = nn.Conv3d(12, 16, (1, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(16)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, num_classes)."""
        x = self.down(self.expand(self.depthwise(self.stem(x))))
        x = x + self.grouped(x)
        x = self.norm(self.last(x)).relu()
        return self.head(self.dropout(x.mean((2, 3, 4))))


CONVS = ("stem.0", "depthwise.0", "expand", "down.0", "grouped", "last")


class Net(nn.Module):
    """Two convolutions and a linear layer; tests override `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv3d(3, 8, 3, padding=1)
        self.b = nn.Conv3d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, 4)."""
        return self.head(self.b(self.a(x).relu()).mean((2, 3, 4)))


class Asserting(Net):
    """Says what it expects; here, since pytest rewrites the assertions of test files."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, H, W) → (N, 4)."""
        assert x.dim() == 5, "clips"
        assert x.shape[1] == 3
        assert x.isfinite().all(), "finite"
        return super().forward(x)


def make_clip(*shape: int, seed: int = 0, **options: object) -> Tensor:
    """Noise, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**options)


def randomise_norms(model: nn.Module, *inputs: object, seed: int = 0) -> nn.Module:
    """Give every norm random weights and statistics, near enough to those of `inputs` that activations stay sane."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator).to(like) * (high - low) + low

    def measure(norm: nn.BatchNorm3d, args: tuple[Tensor]) -> None:
        dims = (0, 2, 3, 4)
        mean, var = args[0].mean(dims), args[0].var(dims, unbiased=False) + 1e-6
        norm.running_mean.copy_(mean + var.sqrt() * draw(mean, -0.5, 0.5))
        norm.running_var.copy_(var * draw(var, 0.5, 1.5))
        norm.weight.copy_(draw(mean, 0.5, 1.5))
        norm.bias.copy_(draw(mean, -0.5, 0.5))

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return model


def tiny_net(seed: int = 0) -> nn.Module:
    """A TinyNet in evaluation mode that no value of is at its initial one."""
    torch.manual_seed(seed)
    return randomise_norms(TinyNet(), make_clip(2, 3, 8, 16, 16, seed=seed))


def rebuilds(module: nn.Module) -> Iterator[FrameRebuild | ChannelRebuild]:
    """Every cheap operation in `module`."""
    for child in module.modules():
        if isinstance(child, (FrameRebuild, ChannelRebuild)):
            yield child


def randomise_rebuilds(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every cheap operation in `module` random values and, where its convolution allows, random sources."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for rebuild in rebuilds(module):
            for parameter in rebuild.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            if isinstance(rebuild, ChannelRebuild):
                rebuild.source.copy_(torch.randint(rebuild.kept, rebuild.source.shape, generator=generator))
    return module


def randomise_gates(dynamic: nn.Module, clips: Tensor | None = None, seed: int = 0, spread: float = 3.0) -> nn.Module:
    """Let every gate decide at random, differently for each of `clips`; `spread` is the standard deviation of z."""
    generator = torch.Generator().manual_seed(seed)
    clips = make_clip(6, 3, 8, 16, 16) if clips is None else clips

    def centre(gate: Gate, args: tuple[Tensor]) -> None:
        hidden = torch.tanh(gate.norm(gate.hidden(gate.standardised(gate.look(args[0])))))
        weight = torch.randn(gate.out.weight.shape, generator=generator).to(hidden)
        std, mean = torch.std_mean(hidden @ weight.t(), 0)
        gate.out.weight.copy_(weight * (spread / std)[:, None])
        gate.out.bias.copy_(-mean * spread / std)

    gates = [module for module in dynamic.modules() if isinstance(module, Gate)]
    hooks = [gate.register_forward_pre_hook(centre) for gate in gates]
    training = dynamic.training
    try:
        with torch.no_grad():
            dynamic.eval()(clips)
    finally:
        dynamic.train(training)
        for hook in hooks:
            hook.remove()
    return dynamic


def make_test_region(
    conv: nn.Conv3d,
    frame_strides: tuple[int, ...] = (1, 2, 4),
    channel_shares: tuple[float, ...] = (1.0, 0.5),
    **config: object,
) -> DynamicConv:
    """A region with random cheap operations; shares that keep as many channels as a larger one are left out."""
    geometry, shares = ConvGeometry.of(conv), {}
    for share in channel_shares:
        shares.setdefault(geometry.kept_channels(share), share)
    grid = ChoiceGrid(frame_strides, tuple(shares.values()))
    region = make_region(conv, grid, ConvertConfig(**config), mean=None)
    randomise_rebuilds(region)
    return region


def one_hot_decision(grid: ChoiceGrid, j: int, i: int, batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same choice for every clip."""
    decision = torch.zeros(batch, len(grid.frame_strides) + len(grid.channel_shares), dtype=dtype)
    decision[:, [j, len(grid.frame_strides) + i]] = 1.0
    return decision


def gate_linear_macs(dynamic: fx.GraphModule) -> int:
    """Multiply-adds per clip of the linear layers in all gates: the part of them that flop counters see."""
    gates = [region.gate for region in regions(dynamic).values()]
    return sum(gate.hidden.weight.numel() + gate.out.weight.numel() for gate in gates)
