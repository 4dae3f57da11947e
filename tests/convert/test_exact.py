"""`convert` computes what the original computed, in every form of input."""

import pytest
import torch
from networks import (
    Net,
    TinyNet,
    make_clip,
    randomise_gates,
    randomise_norms,
    tiny_net,
)
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.convert import conversion
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.zoo.demo_net import DemoNet

CLIP = make_clip(4, 3, 8, 16, 16)

GATES = ("softmax", "gumbel", "soft_modulation")

CONFIGS = {
    "default": ConvertConfig(),
    "soft": ConvertConfig(gate="soft_modulation"),
    "cheap operations": ConvertConfig(frame_rebuild="interpolate", channel_rebuild="depthwise"),
    "more choices": ConvertConfig(frame_strides=(1, 3, 6), channel_shares=(1.0, 0.75, 0.5, 0.1), min_channels=1),
    "frames only": ConvertConfig(channel_shares=(1.0,)),
    "channels only": ConvertConfig(frame_strides=(1,)),
    "some": ConvertConfig(include=("*.0", "last"), exclude=("depthwise.*",)),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("inputs", [None, CLIP], ids=["without", "with"])
def test_the_converted_network_computes_what_the_original_computed(config, inputs):
    """To the bit: the same convolutions run on the same values."""
    model = tiny_net()
    dynamic = vr.convert(model, inputs, CONFIGS[config])
    for clip in (CLIP, make_clip(1, 3, 5, 20, 12), make_clip(2, 3, 1, 16, 16), 100 * CLIP, torch.zeros_like(CLIP)):
        assert torch.equal(dynamic(clip), model(clip))
    with vr.policy(dynamic, {"*": (2, 0.5)}):  # the control
        assert not torch.allclose(dynamic(CLIP), model(CLIP), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["contiguous", "last"])
@pytest.mark.parametrize("gate", GATES)
def test_in_every_dtype_and_layout(gate, layout, dtype):
    model, clip = tiny_net().to(dtype, memory_format=layout), CLIP.to(dtype, memory_format=layout)
    dynamic = vr.convert(model, clip, ConvertConfig(gate=gate))
    assert torch.equal(dynamic(clip), model(clip))
    assert {t.dtype for t in dynamic.state_dict().values() if t.is_floating_point()} == {dtype}
    dynamic.train()(clip).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dynamic.parameters())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype, gate):
    model = tiny_net()
    dynamic = vr.convert(model, CLIP, ConvertConfig(gate=gate))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(dynamic(CLIP), model(CLIP))
        output, decisions = with_decisions(dynamic.train())(CLIP)
        loss = output.float().square().sum() + vr.efficiency_loss(decisions)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dynamic.parameters())


def test_without_gradients():
    model = tiny_net()
    dynamic = randomise_gates(vr.convert(model))
    with torch.inference_mode():
        inside = dynamic(CLIP)
    torch.testing.assert_close(inside, dynamic(CLIP), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert dynamic.train()(CLIP).isfinite().all()


@pytest.mark.parametrize("gate", GATES)
def test_no_clip_is_no_answer(gate):
    dynamic = vr.convert(tiny_net(), config=ConvertConfig(gate=gate))
    for training in (False, True):
        assert dynamic.train(training)(CLIP[:0]).shape == (0, 5)


def test_convert_without_inputs_finds_the_same_layers():
    """32 frames of 320 × 320 are guessed: more than there are here, so the same layers are worth it."""
    with_inputs, without = vr.scan(tiny_net(), CLIP), vr.scan(tiny_net())
    assert without.input_is_guess
    assert [(r.path, r.grid) for r in without.regions] == [(r.path, r.grid) for r in with_inputs.regions]


def test_networks_of_the_zoo_are_known_and_measured_at_their_size():
    model = vr.zoo.load("r3d_18", num_classes=3)
    plan = vr.scan(model)
    assert plan.input_shape == (1, 3, 16, 112, 112)
    assert not plan.input_is_guess
    assert plan == vr.scan(model, vr.zoo.spec("r3d_18").example_inputs())
    assert conversion(vr.convert(model)).source == {"name": "r3d_18", "num_classes": 3}


def test_networks_on_the_meta_device_can_be_looked_at():
    """The plan of the largest network in no memory."""
    with torch.device("meta"):
        zoo, own = vr.zoo.load("csn_r101"), TinyNet()
    assert vr.scan(zoo).input_shape == (1, 3, 32, 256, 256)
    assert vr.scan(own).input_shape == (1, 3, 32, 320, 320)
    converted = vr.convert(own, CLIP.to("meta"))
    assert {parameter.device.type for parameter in converted.parameters()} == {"meta"}


def test_the_demos_network_converts_exactly():
    torch.manual_seed(0)
    clip = make_clip(2, 3, 16, 64, 64)
    model = randomise_norms(DemoNet(4), clip)
    assert torch.equal(vr.convert(model)(clip), model(clip))


def test_the_papers_form_of_soft_modulation_starts_near_and_is_checked_in_full():
    model, config = tiny_net(), ConvertConfig(gate="soft_modulation", normalize=False)
    dynamic = vr.convert(model, CLIP, config)
    assert not torch.equal(dynamic(CLIP), model(CLIP))
    with vr.full(dynamic):
        assert torch.equal(dynamic(CLIP), model(CLIP))


class TwoInputs(Net):
    """A convolution whose input comes from two places, and an argument that has a default."""

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> Tensor:
        return self.head(self.b(self.a(x) + scale * torch.cat([y, y], dim=1)).mean((2, 3, 4)))


def test_several_inputs():
    model, args = TwoInputs().eval(), (CLIP, make_clip(4, 4, 8, 16, 16, seed=1))
    for dynamic in (vr.convert(model), vr.convert(model, args)):
        assert torch.equal(dynamic(*args), model(*args))
        assert torch.equal(dynamic(*args, scale=3.0), model(*args, scale=3.0))
        assert list(regions(dynamic)) == ["a", "b"]


def test_tied_weights_stay_tied():
    model = tiny_net()
    model.grouped.weight = nn.Parameter(model.grouped.weight.data)
    other = nn.Conv3d(12, 12, 3, padding=1, groups=3)
    other.weight = model.grouped.weight
    model.last = nn.Sequential(other, model.last).eval()
    dynamic = vr.convert(model, CLIP)
    assert torch.equal(dynamic(CLIP), model(CLIP))
    assert regions(dynamic)["grouped"].body.weight is regions(dynamic)["last.0"].body.weight


class Hooked(nn.Module):
    """A block whose hook is part of what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(8, 8, 1)
        self.register_forward_hook(lambda module, args, output: 2 * output)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_a_hook_on_a_block_is_traced_with_it():
    model = nn.Sequential(nn.Conv3d(3, 8, 1), Hooked()).eval()
    assert torch.equal(vr.convert(model, CLIP)(CLIP), model(CLIP))


def test_parameters_and_buffers_of_the_network_itself_are_kept():
    class Shifted(Net):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(1, 8, 1, 1, 1))
            self.register_buffer("mean", torch.tensor(0.45))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x - self.mean) + self.shift).mean((2, 3, 4)))

    model = Shifted().eval()
    dynamic = vr.convert(model, CLIP)
    assert torch.equal(dynamic(CLIP), model(CLIP))
    assert {"shift", "mean"} <= dynamic.state_dict().keys()
    dynamic.train()(CLIP).sum().backward()
    assert dynamic.shift.grad.any()
    assert model.shift.grad is None


@pytest.mark.parametrize("granularity", ["conv", "block", "stage"])
def test_buffers_inside_a_region_move_with_it(granularity):
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gain", torch.rand(1, 8, 1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x) * self.gain).mean((2, 3, 4)))

    dynamic = vr.convert(Scaled().eval(), CLIP, ConvertConfig(granularity=granularity, min_macs_share=0.0))
    with vr.policy(dynamic, {"*": (2, 0.5)}):
        before = dynamic(CLIP)
        dynamic.double()
        with torch.no_grad():
            torch.testing.assert_close(dynamic(CLIP.double()).float(), before)
            for name, buffer in dynamic.named_buffers():
                if name.endswith("gain"):
                    buffer.mul_(2)
            assert not torch.allclose(dynamic(CLIP.double()).float(), before)
    static = vr.specialize(dynamic, {"*": (2, 0.5)})
    assert static(CLIP.double()).dtype == torch.float64


def test_a_network_compiled_in_place():
    model = tiny_net()
    model.compile()
    dynamic = vr.convert(model)
    assert torch.equal(dynamic(CLIP), tiny_net()(CLIP))


def test_a_network_traced_before():
    model = torch.fx.symbolic_trace(tiny_net())
    assert torch.equal(vr.convert(model, CLIP)(CLIP), model(CLIP))


@pytest.mark.gpu
@pytest.mark.parametrize("gate", GATES)
def test_on_a_gpu(gate, monkeypatch):
    """The same kernels on the same values, there as here; cheap operations and gates are where the network is."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it rounds by the batch's size
    model, clip = tiny_net().cuda(), CLIP.cuda()
    dynamic = vr.convert(model, clip, ConvertConfig(gate=gate))
    assert {tensor.device.type for tensor in dynamic.state_dict().values()} == {"cuda"}
    assert torch.equal(dynamic(clip), model(clip))
    assert vr.scan(model).converted == vr.convert(model).meta["vared2_fx"].plan.converted
    randomise_gates(dynamic, clip)
    mixed = dynamic(clip)
    torch.testing.assert_close(mixed, torch.cat([dynamic(one[None]) for one in clip]), rtol=1e-4, atol=1e-4)
    dynamic.train()(clip).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in dynamic.parameters())
