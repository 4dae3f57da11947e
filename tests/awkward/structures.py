"""Awkward networks: how their parts are put together. Each maps (N, 3, T, H, W) to scores or maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(c_in: int, c_out: int, kernel: int | tuple[int, int, int] = 3, **more: object) -> nn.Conv3d:
    padding = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
    return nn.Conv3d(c_in, c_out, kernel, **{"padding": padding, **more})


class Base(nn.Module):
    """Two convolutions, to be used in some way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)


class CalledTwice(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.b(self.a(x)).relu())


class Unrolled(Base):
    """Recurrent over steps, one convolution for all."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        for _ in range(3):
            h = torch.tanh(self.b(h) + h)
        return h


class OneModuleTwoNames(Base):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.b

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.b(self.a(x)))


class Inception(nn.Module):
    """Paths of other kernels, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList([conv(3, 8, 1), nn.Sequential(conv(3, 9, 1), conv(9, 11)), conv(3, 8, (5, 1, 1))])
        self.pool = nn.Sequential(nn.MaxPool3d(3, 1, 1), conv(3, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([path(x) for path in [*self.paths, self.pool]], dim=1)


class Dense(nn.Module):
    """Each layer sees all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({f"layer{i}": conv(3 + 8 * i, 8) for i in range(4)})

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers.values():
            seen.append(layer(torch.cat(seen, 1)).relu())
        return torch.cat(seen, 1)


class UNet(nn.Module):
    """Down, up by a transposed convolution, across."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv(3, 8, stride=2)
        self.up = nn.ConvTranspose3d(8, 8, 2, 2)
        self.out = conv(11, 8)

    def forward(self, x: Tensor) -> Tensor:
        up = F.interpolate(self.up(self.down(x).relu()), size=x.shape[2:])
        return self.out(torch.cat([x, up], 1))


class SqueezeExcite(Base):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool3d(1), conv(8, 4, 1), nn.ReLU(), conv(4, 8, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x + self.b(x) * self.squeeze(x)


class ChannelShuffle(nn.Module):
    """Groups, and a shuffle by views of the size that arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 12), conv(12, 12, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, t, h, w = x.shape
        x = x.view(n, 3, c // 3, t, h, w).transpose(1, 2).reshape(n, c, t, h, w)
        return self.second(x)


class NonLocal(Base):
    """Attention over all places."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        q = x.flatten(2)
        attention = (q.transpose(1, 2) @ q / 8).softmax(-1)
        return self.b((q @ attention.transpose(1, 2)).view_as(x))


class TemporalShift(Base):
    """Some channels from the frame before, written into a new map in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out = torch.zeros_like(x)
        out[:, :4, 1:] = x[:, :4, :-1]
        out[:, 4:] = x[:, 4:]
        return self.b(out)


class InPlace(Base):
    """What is given to a convolution, and what it gave, is changed in place afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x)
        x.mul_(2.0)
        y.narrow(1, 0, 2).zero_()
        y += x
        return y.relu_()


class Frames(Base):
    """Every frame on its own, as a batch, and back."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, t, h, w = x.shape
        y = self.b(x.transpose(1, 2).reshape(n * t, c, 1, h, w))
        return y.view(n, t, c, h, w).transpose(1, 2)


class Outputs(Base):
    """A nest of outputs, one of them twice, one no tensor."""

    def forward(self, x: Tensor):
        x = self.a(x)
        y = self.b(x)
        return {"scores": y.mean((2, 3, 4)), "maps": [x, (y, y)], "name": "outputs", "none": None}


class Multiple(Base):
    """Unequal kinds of arguments."""

    def forward(self, x: Tensor, *, scale: float = 2.0, flip: bool = False) -> Tensor:
        return self.b(self.a(x) * scale)


class NeverCalled(Base):
    """One convolution that no one calls, and one whose output no one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.b(x)
        return x


class Named(nn.Module):
    """Parts that are called as parts of ours are."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.body = conv(3, 8), nn.Sequential(conv(8, 8), nn.Sequential(conv(8, 8)))
        self.cost = nn.Module()
        self.cost.gate = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.cost.gate(self.body(self.gate(x)))


class GraphNamed(nn.Module):
    """Parts that are called as attributes of a GraphModule are."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.code = conv(3, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self.graph(x))


class Repeated(nn.Module):
    """A block of the same type in itself, six levels deep."""

    def __init__(self, depth: int = 6, channels: int = 3) -> None:
        super().__init__()
        self.conv = conv(channels, 8)
        self.inner = Repeated(depth - 1, 8) if depth else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.conv(x).relu())


class Checkpointed(Base):
    """Saves memory in training."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.b, self.a(x), use_reentrant=False)


class Autocast(Base):
    """Chooses its own precision inside."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.b(self.a(x))


class OptionalMask(Base):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.a(x)
        if mask is not None:
            x = x * mask
        return self.b(x)


class Asserting(Base):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3, "three channels"
        return self.b(self.a(x))


class ValueDependent(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) if x.mean() > 0 else x


class Sized(Base):
    """Python numbers from sizes."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.linspace(0, 1, int(x.shape[2]))
        return self.b(self.a(x) * weights.view(1, 1, -1, 1, 1))


class Checking(Base):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("only tensors")
        return self.b(self.a(x))


class Listed(Base):
    """Writes into the list it is given."""

    def forward(self, x: Tensor) -> Tensor:
        streams = [self.a(x), x]
        for i in range(len(streams)):
            streams[i] = streams[i] * 2
        return self.b(streams[0])


class Counting(Base):
    """A buffer that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.b(self.a(x)) + 0 * self.calls


class Reassigning(Counting):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.b(self.a(x))
