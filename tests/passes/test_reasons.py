"""Reasons: every kind of convolution that stays static is listed with its own, and still computes the same."""

import warnings
from typing import get_args

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.nn.functional as F
from networks import Net, make_clip
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.passes.regions import Reason

CLIP = make_clip(1, 3, 8, 8, 8)


class CalledTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.b(self.a(x))).mean((2, 3, 4)))


class ReadElsewhere(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.b.weight.sum()


class OneClip(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)[0])[None]


class Doubling(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class DoublingInside(nn.Conv3d):
    def _conv_forward(self, *args: Tensor) -> Tensor:
        return 2 * super()._conv_forward(*args)


class SamePadding(nn.Conv3d):
    """Pads by what its input needs, as TensorFlow does: at the end more than at the start."""

    def forward(self, x: Tensor) -> Tensor:
        sizes = zip(reversed(x.shape[2:]), reversed(self.kernel_size), reversed(self.stride), strict=True)
        needed = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in sizes]
        return super().forward(F.pad(x, [side for total in needed for side in (total // 2, total - total // 2)]))


def ran_lazily() -> nn.Module:
    conv = nn.LazyConv3d(8, 3, padding=1)
    conv(torch.zeros(1, 8, 4, 4, 4))
    return conv


class Plain(nn.Conv3d):
    """A subclass that computes what Conv3d does."""


def with_b(b: nn.Module, kind: type[Net] = Net) -> Net:
    model = kind()
    model.b = b
    return model


def patched() -> nn.Conv3d:
    conv = nn.Conv3d(8, 8, 3, padding=1)
    conv.forward = lambda x, inner=conv.forward: 2 * inner(x)
    return conv


def hooked(register: str) -> nn.Conv3d:
    conv = nn.Conv3d(8, 8, 3, padding=1)
    getattr(conv, register)(lambda *args: None)
    return conv


def made(kind, *args, **kwargs) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some forms are deprecated, and what published networks are made of
        return kind(*args, **kwargs)


def normed(norm) -> nn.Module:
    return made(norm, nn.Conv3d(8, 8, 3, padding=1))


class Functional(nn.Module):
    """A convolution without a module; the graph does not look in here."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3, 3) / 15)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, weight=self.weight, padding=1)


class FunctionalTransposed(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose3d(x, self.weight, None, 1, 1)


class Quantized(nn.Module):
    """A quantised convolution between the two that translate."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = made(nnq.Conv3d, 8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)).dequantize()


def scripted() -> nn.Module:
    return made(torch.jit.script, nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.ReLU()))


class ViewedAsReal(Net):
    """A complex convolution between real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv3d(8, 8, 3, padding=1, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(self.b(torch.complex(x, x)).abs().mean((2, 3, 4)))


CASES: dict[str, tuple[str, Net, ConvertConfig]] = {
    "subclass": ("convert", with_b(Plain(8, 8, 3, padding=1)), ConvertConfig()),
    "twice": ("called_twice", CalledTwice(), ConvertConfig()),
    "torch.nn subclass": ("convert", with_b(ran_lazily()), ConvertConfig()),
    "padding of its own": ("custom_forward", with_b(SamePadding(8, 8, 3, stride=2)), ConvertConfig()),
    "subclass forward": ("custom_forward", with_b(Doubling(8, 8, 3, padding=1)), ConvertConfig()),
    "subclass _conv_forward": ("custom_forward", with_b(DoublingInside(8, 8, 3, padding=1)), ConvertConfig()),
    "patched": ("custom_forward", with_b(patched()), ConvertConfig()),
    "filter": ("filtered", Net(), ConvertConfig(filter=lambda module, path: path != "b")),
    "old weight norm": ("hooks", with_b(normed(nn.utils.weight_norm)), ConvertConfig()),
    "old spectral norm": ("hooks", with_b(normed(nn.utils.spectral_norm)), ConvertConfig()),
    "spectral norm": ("parametrized", with_b(normed(parametrizations.spectral_norm)), ConvertConfig()),
    "orthogonal": ("parametrized", with_b(normed(parametrizations.orthogonal)), ConvertConfig()),
    "functional": ("functional", with_b(Functional()), ConvertConfig()),
    "functional, transposed": ("functional", with_b(FunctionalTransposed()), ConvertConfig()),
    "quantized": ("quantized", with_b(Quantized()), ConvertConfig()),
    "scripted": ("scripted", with_b(scripted()), ConvertConfig()),
    "reflect": ("padding", with_b(nn.Conv3d(8, 8, 3, padding=1, padding_mode="reflect")), ConvertConfig()),
    "replicate": ("padding", with_b(nn.Conv3d(8, 8, 3, padding=1, padding_mode="replicate")), ConvertConfig()),
    "complex": ("dtype", ViewedAsReal(), ConvertConfig()),
    "exclude": ("excluded", Net(), ConvertConfig(exclude=("b",))),
    "include": ("excluded", Net(), ConvertConfig(include=("a*",))),
    "both": ("excluded", Net(), ConvertConfig(include=("a", "b"), exclude=("[b-z]",))),
    "channels": ("few_channels", with_b(nn.Conv3d(8, 7, 3), Net), ConvertConfig()),
    "frames": ("few_frames", with_b(nn.Conv3d(8, 8, (8, 1, 1))), ConvertConfig()),
    "macs": ("few_macs", with_b(nn.Conv3d(8, 8, 1)), ConvertConfig(min_macs_share=0.2)),
    "hook": ("hooks", with_b(hooked("register_forward_hook")), ConvertConfig()),
    "pre hook": ("hooks", with_b(hooked("register_forward_pre_hook")), ConvertConfig()),
    "backward hook": ("hooks", with_b(hooked("register_full_backward_hook")), ConvertConfig()),
    "no choice": (
        "no_choice",
        with_b(nn.Conv3d(8, 8, (5, 1, 1), stride=(2, 1, 1))),  # two frames are left
        ConvertConfig(frame_strides=(1, 4), channel_shares=(1.0,)),
    ),
    "circular": ("padding", with_b(nn.Conv3d(8, 8, 3, padding=1, padding_mode="circular")), ConvertConfig()),
    "uneven": ("padding", with_b(nn.Conv3d(8, 8, 2, padding="same")), ConvertConfig()),
    "weight norm": ("parametrized", with_b(parametrizations.weight_norm(nn.Conv3d(8, 8, 3))), ConvertConfig()),
    "read elsewhere": ("read_elsewhere", ReadElsewhere(), ConvertConfig()),
    "transposed": ("transposed", with_b(nn.ConvTranspose3d(8, 8, 3)), ConvertConfig()),
    "unbatched": ("unbatched", OneClip(), ConvertConfig()),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_reasons(case):
    reason, model, config = CASES[case]
    if case == "channels":
        model.head = nn.Linear(7, 4)
    plan = vr.scan(model, CLIP, config)
    entries = {entry.path: entry for entry in plan.entries}
    assert entries["a"].converts
    entries["b"] = next(entry for path, entry in entries.items() if path.split(".")[0] == "b")
    assert entries["b"].reason == reason
    assert entries["b"] in (plan.converted if reason == "convert" else plan.skipped)
    assert reason == "convert" or entries["b"].detail
    dynamic = vr.convert(model.eval(), CLIP, config)  # and what stays static still computes the same
    torch.testing.assert_close(dynamic(CLIP), model(CLIP), rtol=0, atol=0)


def test_every_reason_has_a_case():
    elsewhere = {"not_worth_it", "no_block", "not_faster"}
    assert {reason for reason, *_ in CASES.values()} | elsewhere == set(get_args(Reason))


class AlsoFunctional(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.conv3d(self.a(x), self.b.weight, self.b.bias, padding=1)
        y = torch.ops.aten.conv3d.default(y, self.b.weight, self.b.bias, [1, 1, 1], [1, 1, 1])
        return self.head(torch.conv_transpose3d(y, self.b.weight, stride=(1, 2, 1)).mean((2, 3, 4)))


def test_functions_are_listed_and_counted():
    model = AlsoFunctional().eval()
    plan = vr.scan(model, torch.cat([CLIP, CLIP]))
    once = 8 * 8 * 27 * 512  # 8 filters on 8 channels at 8×8×8 places
    assert [(e.path, e.operation, e.macs) for e in plan.entries[1:]] == [
        ("conv3d", "F.conv3d", once),
        ("conv3d_default", "F.conv3d", once),
        ("conv_transpose3d", "F.conv_transpose3d", once),
    ]
    assert plan.macs == plan.entries[0].macs + 3 * once + 8 * 4
    assert "static: functional" in str(plan)
    assert torch.equal(model(CLIP), vr.convert(model, CLIP)(CLIP))


def test_functions_inside_of_modules_are_counted_too():
    model = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.Sequential(Functional(), FunctionalTransposed()))
    plan = vr.scan(model, torch.cat([CLIP, CLIP]))
    assert [(e.path, e.operation, e.macs) for e in plan.entries[1:]] == [
        ("1.0", "F.conv3d", 8 * 8 * 27 * 512),
        ("1.1", "F.conv_transpose3d", 8 * 8 * 27 * 512),
    ]
    assert plan.macs == sum(entry.macs for entry in plan.entries)


def test_a_network_of_functions_alone_has_nothing_to_convert():
    with pytest.raises(
        ConvertError, match=r"nothing worth converting .*, because called as a function, .* \(functional\)"
    ):
        vr.convert(Functional(), torch.cat([CLIP] * 3, 1)[:, :8])


def test_exclude_may_name_a_function():
    assert vr.scan(AlsoFunctional(), CLIP, ConvertConfig(exclude=("conv3d*",))).entries[1].reason == "functional"
