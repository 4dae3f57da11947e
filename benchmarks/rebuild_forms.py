"""Ways to write "hold each computed frame R times, scale and shift it, add the shortcut", in every engine.

    python benchmarks/rebuild_forms.py [--threads 1] [--rounds 15] [--engines torch,compile,onnx,openvino] [--quick]

Each form computes the same from (1, C, T/R, H, W) and a shortcut map (1, C, T, H, W): the frames of each group are the
computed one times a scale plus a bias, per channel and phase (phase 0: 1 and 0), plus the shortcut. `bare` is that
alone; `in a graph` stands between convolutions (1×1, then the form, then ReLU, then 1×1), as engines fuse. `nothing`
has the computed frames alone in place of the rebuilt ones, and adds them to every R-th frame of the shortcut: what a
form costs is what it takes beyond that. Every form is checked against the first. Times are medians in milliseconds, in
turns in one process.
"""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved, write
from torch import Tensor, nn

from vared2_fx.deploy.engines import BY_NAME, Settings
from vared2_fx.deploy.program import Program
from vared2_fx.deploy.signature import Signature
from vared2_fx.passes.deploy.pipeline import prepare

MAPS = ((192, 16, 14, 14), (256, 8, 56, 56), (24, 16, 112, 112))
"""C, T, H, W: the middle of x3d_m, the first stage of slow_r50, the front of x3d_m."""


class Form(nn.Module, ABC):
    """Tables that forms need."""

    def __init__(self, channels: int, frames: int, stride: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        scale = 1 + 0.1 * torch.randn(stride, channels, generator=generator)
        bias = 0.1 * torch.randn(stride, channels, generator=generator)
        scale[0], bias[0] = 1, 0
        self.stride, self.frames = stride, frames
        groups = frames // stride
        for name, table in (("scale", scale), ("bias", bias)):
            self.register_buffer(name, table)
            self.register_buffer(f"{name}_frames", table.repeat(groups, 1).t()[None, :, :, None, None].contiguous())
            self.register_buffer(f"{name}_phases", table.t()[None, :, None, :, None, None].contiguous())

    @abstractmethod
    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """(N, C, I, H, W) and (N, C, T, H, W) → (N, C, T, H, W)."""


class Rebuilt(Form):
    """The frames by themselves, then the sum."""

    @abstractmethod
    def rebuild(self, x: Tensor) -> Tensor:
        """(N, C, I, H, W) → (N, C, T, H, W)."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.rebuild(x) + shortcut


class Resize(Rebuilt):
    """Nearest-neighbour resize, constants per channel and frame."""

    def rebuild(self, x: Tensor) -> Tensor:
        y = F.interpolate(x, scale_factor=(float(self.stride), 1.0, 1.0), mode="nearest")
        return y * self.scale_frames + self.bias_frames


class ResizeMultiplyAdd(Rebuilt):
    """The same with one `addcmul`."""

    def rebuild(self, x: Tensor) -> Tensor:
        y = F.interpolate(x, scale_factor=(float(self.stride), 1.0, 1.0), mode="nearest")
        return torch.addcmul(self.bias_frames, y, self.scale_frames)


class ResizeHeld(Rebuilt):
    """Frames held as they are, without scale and bias: computes less."""

    def rebuild(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=(float(self.stride), 1.0, 1.0), mode="nearest")


class Repeat(Rebuilt):
    """`repeat_interleave`, constants per channel and frame."""

    def rebuild(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.stride, dim=2) * self.scale_frames + self.bias_frames


class Broadcast(Rebuilt):
    """Product with the phases along an axis of its own, which is then flattened."""

    def rebuild(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias_phases, x.unsqueeze(3), self.scale_phases).flatten(2, 3)


class Expand(Rebuilt):
    """`expand` and `reshape`, constants per channel and frame."""

    def rebuild(self, x: Tensor) -> Tensor:
        n, c, i, h, w = x.shape
        y = x.unsqueeze(3).expand(n, c, i, self.stride, h, w).reshape(n, c, i * self.stride, h, w)
        return y * self.scale_frames + self.bias_frames


class Stack(Rebuilt):
    """The phases computed one by one and stacked."""

    def rebuild(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1, 1)
        phases = [x] + [x * self.scale[p].view(shape) + self.bias[p].view(shape) for p in range(1, self.stride)]
        return torch.stack(phases, dim=3).flatten(2, 3)


class Index(Rebuilt):
    """`index_select` along time, constants per channel and frame."""

    def rebuild(self, x: Tensor) -> Tensor:
        return x.index_select(2, torch.arange(self.frames) // self.stride) * self.scale_frames + self.bias_frames


class Transposed(Rebuilt):
    """A depthwise transposed convolution along time."""

    def __init__(self, channels: int, frames: int, stride: int) -> None:
        super().__init__(channels, frames, stride)
        self.register_buffer("kernel", self.scale.t()[:, None, :, None, None].contiguous())

    def rebuild(self, x: Tensor) -> Tensor:
        y = F.conv_transpose3d(x, self.kernel, stride=(self.stride, 1, 1), groups=x.shape[1])
        return y + self.bias_frames


class AddToGroups(Form):
    """The sum with the shortcut's groups of frames: rebuilt frames are never written on their own."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        groups = torch.unflatten(shortcut, 2, (x.shape[2], self.stride))
        return (torch.addcmul(groups, x.unsqueeze(3), self.scale_phases) + self.bias_phases).flatten(2, 3)


class AddToGroupsHeld(Form):
    """The same without scale and bias: computes less."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return (torch.unflatten(shortcut, 2, (x.shape[2], self.stride)) + x.unsqueeze(3)).flatten(2, 3)


class AddToLaid(Form):
    """`AddToGroups` along the axes as they lie in memory (channels last), so that the sum runs through it once."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        y = torch.addcmul(in_groups(shortcut, self.stride), in_groups(x, 1), self.scale[:, None])
        return out_of_groups(y.add_(self.bias[:, None]), shortcut)


class AddToLaidHeld(Form):
    """The same without scale and bias: computes less."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return out_of_groups(in_groups(shortcut, self.stride) + in_groups(x, 1), shortcut)


def in_groups(x: Tensor, frames: int) -> Tensor:
    """(N, C, T, H, W) → (N·T/frames, frames, H·W, C), a view where x is in channels_last_3d."""
    n, c, t, h, w = x.shape
    return x.permute(0, 2, 3, 4, 1).reshape(n * t // frames, frames, h * w, c)


def out_of_groups(y: Tensor, like: Tensor) -> Tensor:
    """Undo `in_groups`, to the shape of `like`."""
    n, c, t, h, w = like.shape
    return y.view(n, t, h, w, c).permute(0, 4, 1, 2, 3)


class StridedWrites(Form):
    """Each phase written into its slice of a copy of the shortcut."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        shape, out = (1, -1, 1, 1, 1), shortcut.clone()
        for phase in range(self.stride):
            part = x if phase == 0 else x * self.scale[phase].view(shape) + self.bias[phase].view(shape)
            out[:, :, phase :: self.stride] += part
        return out


class StridedWritesHeld(Form):
    """The same without scale and bias: computes less."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        out = shortcut.clone()
        for phase in range(self.stride):
            out[:, :, phase :: self.stride] += x
        return out


class Nothing(Form):
    """No rebuild: computed frames and every R-th of the shortcut."""

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return x + shortcut[:, :, :: self.stride]


FORMS: dict[str, type[Form]] = {
    "resize": Resize,
    "resize, addcmul": ResizeMultiplyAdd,
    "repeat_interleave": Repeat,
    "broadcast": Broadcast,
    "expand": Expand,
    "stack": Stack,
    "index_select": Index,
    "transposed convolution": Transposed,
    "add to groups": AddToGroups,
    "add to groups as laid": AddToLaid,
    "strided writes": StridedWrites,
    "held: resize": ResizeHeld,
    "held: add to groups": AddToGroupsHeld,
    "held: add to groups as laid": AddToLaidHeld,
    "held: strided writes": StridedWritesHeld,
    "nothing": Nothing,
}
OTHERWISE = ("held: resize", "held: add to groups", "held: add to groups as laid", "held: strided writes", "nothing")
"""Compute something else than the rest."""


class Graph(nn.Module):
    """A form between convolutions."""

    def __init__(self, form: Form, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after, self.form = nn.Conv3d(channels, channels, 1), nn.Conv3d(channels, channels, 1), form

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.after(self.form(self.before(x), shortcut).relu())


def runners(engine: str, size: tuple[int, ...], stride: int, bare: bool, threads: int) -> dict[str, Callable[[], Any]]:
    """Each form in `engine`, on inputs in channels_last_3d where the engine keeps layouts."""
    channels, frames, height, width = size
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, channels, frames // stride, height, width, generator=generator)
    shortcut = torch.randn(1, channels, frames, height, width, generator=generator)
    layout = torch.channels_last_3d if engine in ("torch", "compile") else torch.contiguous_format
    x, shortcut = x.to(memory_format=layout), shortcut.to(memory_format=layout)
    found: dict[str, Callable[[], Any]] = {}
    expected: Tensor | None = None
    for name, form in FORMS.items():
        made = form(channels, frames, stride).eval()
        model = made if bare else Graph(made, channels).eval()
        try:
            with torch.no_grad():
                exported = torch.export.export(prepare(model, (x, shortcut), engine), (x, shortcut))
            program = Program(exported=exported, signature=Signature(inputs=(), nesting=(), output=None), notes=())
            running = BY_NAME[engine].build(program, Settings(threads=threads))
            (answer,) = running.run([x, shortcut])
        except Exception as exc:
            print(f"  {engine} has no `{name}`: {type(exc).__name__}: {str(exc)[:200]}")
            continue
        expected = answer if expected is None else expected
        if name not in OTHERWISE:
            torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
        found[name] = lambda running=running: running.run([x, shortcut])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engines", default="torch,compile,onnx,openvino")
    parser.add_argument("--quick", action="store_true", help="R = 2 only, in a graph only; writes nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for engine in args.engines.split(","):
        for size in MAPS:
            for stride in (2,) if args.quick else (2, 4):
                for bare in (False,) if args.quick else (True, False):
                    torch._dynamo.reset()
                    seconds = interleaved(
                        runners(engine, size, stride, bare, args.threads), rounds=args.rounds, warmup=3
                    )
                    ms = {name: round(1e3 * median(values), 3) for name, values in seconds.items()}
                    where = "bare" if bare else "in a graph"
                    rows.append({"engine": engine, "map": size, "stride": stride, "where": where, "ms": ms})
                    best = sorted(ms, key=lambda name: ms[name])
                    print(engine, size, f"R={stride}", where, ", ".join(f"{n} {ms[n]:.2f}" for n in best), flush=True)
    if not args.quick:
        write("rebuild_forms", {"dtype": "float32", "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    main()
