"""What cannot be converted says why."""

import pytest
import torch
from networks import (
    Net,
    make_clip,
    tiny_net,
)
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx.errors import ConvertError

CLIP = make_clip(4, 3, 8, 16, 16)


def hooked_net() -> nn.Module:
    model = tiny_net()
    model.register_forward_hook(lambda module, args, output: 2 * output)
    return model


class Branching(Net):
    def forward(self, *x: Tensor) -> Tensor:
        return super().forward(x[0] if x[0].sum() > 0 else -x[0])


def with_part(path: str, part) -> nn.Module:
    """Net with another part; a function is given the part that was there."""
    model = nn.Sequential(Net())
    model[0].set_submodule(path, part if isinstance(part, nn.Module) else part(model[0].get_submodule(path)))
    return model


def patched_net() -> nn.Module:
    model = Net()
    model.forward = lambda x, inner=model.forward: 2 * inner(x)
    return model


def compiled_forward() -> nn.Module:
    model = Net()
    model.forward = torch.compile(model.forward)
    return model


class Calling(nn.Conv3d):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class CallingRoot(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


def hooked_block(register: str, hook) -> nn.Module:
    model = nn.Sequential(nn.Conv3d(3, 8, 1), nn.Sequential(nn.Conv3d(8, 8, 1)))
    getattr(model[1], register)(hook)
    return model


SEEN: list[object] = []


REFUSED = {
    "hooks": (hooked_net, "TinyNet itself carries hooks, which would be lost; set them on the result"),
    "control flow": (Branching, r"cannot follow the whole network \(Branching, .*test_refused.py:\d+\)"),
    "no convolution": (
        lambda: nn.Sequential(nn.ReLU()),
        "nothing worth converting in Sequential, because it has no 3D",
    ),
    "nothing left": (
        lambda: nn.Sequential(nn.Conv3d(3, 4, 1)),
        r"because fewer than min_channels=8 .* \(few_channels\)",
    ),
    "data parallel": (lambda: nn.DataParallel(Net()), r"model is a wrapper \(DataParallel\); pass .* model.module"),
    "compiled": (lambda: torch.compile(Net()), r"model is a wrapper \(OptimizedModule\); .* model._orig_mod"),
    "scripted": (lambda: torch.jit.script(Net()), "a compiled program; convert the network that it was made from"),
    "both": (lambda: torch.compile(nn.DataParallel(Net())), r"model is a wrapper \(OptimizedModule\)"),
    "parallel inside": (
        lambda: with_part("b", nn.DataParallel),
        r"model.0.b is a wrapper \(DataParallel\); pass a network with what is inside it, model.0.b.module",
    ),
    "compiled inside": (lambda: with_part("b", torch.compile), r"model.0.b is a wrapper .* model.0.b._orig_mod"),
    "patched": (patched_net, "forward of this Net was replaced on the object"),
    "compiled forward": (compiled_forward, "forward of this Net was replaced on the object"),
    "call of its own": (lambda: with_part("b", Calling(8, 8, 3)), r"Calling \(`0.b`\) has a __call__ of its own"),
    "call of the root": (CallingRoot, "CallingRoot .* has a __call__ of its own"),
    "listening hook": (
        lambda: hooked_block("register_forward_hook", lambda module, args, output: SEEN.append(output)),
        r"`1` \(Sequential\) carries a hook that returns nothing",
    ),
    "listening pre hook": (
        lambda: hooked_block("register_forward_pre_hook", lambda module, args: None),
        r"`1` \(Sequential\) carries a hook that returns nothing",
    ),
    "converted": (lambda: vr.convert(Net()), "converted already"),
    "specialised": (lambda: vr.specialize(vr.convert(Net()), {}), "converted already"),
    "converted inside": (lambda: nn.Sequential(vr.convert(Net())), "converted already"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv3d(8, 3)), "lazy layers without weights; run it once"),
    "name": (lambda: "x3d_s", "expected a torch.nn.Module, got str; a network of the zoo is zoo.load"),
    "class": (lambda: Net, "expected a torch.nn.Module, got type"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_says_why(case):
    make, message = REFUSED[case]
    with pytest.raises(ConvertError, match=message):
        vr.convert(make())


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_block_with_a_backward_hook_is_kept_whole_and_calls_it(register):
    seen: list[nn.Module] = []
    model = hooked_block(register, lambda module, *grads: seen.append(type(module))).eval()
    dynamic = vr.convert(model)
    assert [where.path for where in vr.scan(model).untraced] == ["1"]
    assert torch.equal(dynamic(CLIP), model(CLIP))
    assert seen == []
    dynamic(CLIP).sum().backward()
    assert seen == [nn.Sequential]


def test_an_unbatched_clip_is_named():
    model = nn.Sequential(nn.Conv3d(3, 8, 1), nn.ReLU()).eval()
    dynamic = vr.convert(model)
    with pytest.raises(ConvertError, match=r"\(3, 8, 16, 16\).*also for one clip"):
        dynamic(CLIP[0])
