"""`convert` and `scan`: exact at the start, trainable, and nothing of the caller's is touched."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.distributed as dist
from networks import (
    CONVS,
    Net,
    TinyNet,
    make_clip,
    randomise_gates,
    randomise_norms,
    randomise_rebuilds,
    tiny_net,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError
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
    assert [(e.path, e.grid) for e in without.converted] == [(e.path, e.grid) for e in with_inputs.converted]


@pytest.mark.parametrize("training", [False, True])
def test_modes_and_trainability_are_the_models(training):
    model = tiny_net().train(training)
    model.norm.eval()
    model.stem[0].requires_grad_(False)
    dynamic = vr.convert(model, CLIP)
    assert dynamic.training == training
    assert not dynamic.norm.training
    modes = {module.training for path, module in dynamic.named_modules() if path != "norm"}
    assert modes == {training}
    frozen = {name for name, parameter in dynamic.named_parameters() if not parameter.requires_grad}
    assert frozen == {"stem.0.body.weight"}


def failing(model: nn.Module) -> list[tuple[object, ConvertConfig]]:
    """Inputs and configs with which converting `model` fails, at different points."""
    return [
        (make_clip(1, 9, 8, 16, 16), ConvertConfig()),
        (make_clip(0, 3, 8, 16, 16), ConvertConfig()),
        (CLIP, ConvertConfig(include=("nowhere",))),
        (CLIP, ConvertConfig(min_channels=999)),
        ("clip", ConvertConfig()),
    ]


@pytest.mark.parametrize("training", [False, True])
def test_the_callers_network_is_untouched(untouched, training):
    model = tiny_net().train(training)
    model.depthwise.eval()
    model.grouped.requires_grad_(False)
    calls = []
    model.norm.register_forward_hook(lambda *args: calls.append("hook"))
    model(CLIP).sum().backward()
    with untouched(model):
        vr.scan(model, CLIP)
        vr.scan(model)
        dynamic = vr.convert(model, CLIP)
        vr.convert(model)
        dynamic.train()(CLIP).sum().backward()
        with torch.no_grad():
            for parameter in dynamic.parameters():
                parameter.add_(1.0)
        for inputs, config in failing(model):
            with pytest.raises(ConvertError):
                vr.convert(model, inputs, config)
    assert len(model.norm._forward_hooks) == 1


def test_the_callers_clips_are_untouched():
    clip = CLIP.clone()
    vr.convert(tiny_net(), clip)
    assert torch.equal(clip, CLIP)


@pytest.mark.parametrize("gate", GATES)
def test_every_parameter_gets_a_gradient(gate):
    """From one pass none is missing. From open gates none is zero, but where a norm in training takes out what it is
    given: the bias of each gate's hidden layer, and of a convolution in front of a norm."""
    config = ConvertConfig(gate=gate, frame_rebuild="interpolate", channel_rebuild="depthwise")
    dynamic = vr.convert(tiny_net(), CLIP, config).train()
    dynamic(CLIP).square().sum().backward()
    assert [name for name, parameter in dynamic.named_parameters() if parameter.grad is None] == []
    randomise_gates(randomise_rebuilds(dynamic), spread=0.7)
    torch.manual_seed(0)
    for seed in range(48):  # each opens other choices
        (dynamic(make_clip(6, 3, 8, 16, 16, seed=seed)) * make_clip(6, 5, seed=3)).sum().backward()
    largest = {name: float(p.grad.abs().max()) for name, p in dynamic.named_parameters()}
    zero = {name for name, value in largest.items() if value < 1e-6}
    assert zero <= {*(f"{path}.gate.hidden.bias" for path in CONVS), "down.0.body.bias"}


def test_right_after_conversion_soft_gates_hold_back_the_cheap_operations():
    """Closed entries weigh exactly zero, so Φ gets no gradient until its gate, which gets one, opens."""
    dynamic = vr.convert(tiny_net(), CLIP, ConvertConfig(gate="soft_modulation")).train()
    output, decisions = with_decisions(dynamic)(CLIP)
    (output.square().sum() + vr.efficiency_loss(decisions)).backward()
    for region in regions(dynamic).values():
        assert not any(rebuild.scale.grad.any() for rebuild in [*region.frame_rebuilds, *region.channel_rebuilds])
        assert region.gate.out.bias.grad[region.gate.out.bias < 0].all()


@pytest.mark.parametrize("gate", GATES)
def test_training_moves_the_gates(gate):
    """Twenty steps on the efficiency loss alone: fewer multiply-adds."""
    torch.manual_seed(0)
    dynamic = vr.convert(tiny_net(), CLIP, ConvertConfig(gate=gate)).train()
    observed = with_decisions(dynamic)
    optimizer = torch.optim.Adam(dynamic.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        loss = vr.efficiency_loss(observed(CLIP)[1])
        loss.backward()
        optimizer.step()
    assert vr.efficiency_loss(observed.eval()(CLIP)[1]) < 0.5


def test_a_deep_copy_is_independent():
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(tiny_net())))
    before, other = dynamic(CLIP), copy.deepcopy(dynamic)
    assert torch.equal(other(CLIP), before)
    assert conversion(other) == conversion(dynamic)
    assert not {id(p) for p in dynamic.parameters()} & {id(p) for p in other.parameters()}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(dynamic(CLIP), before)
    region = regions(other)["stem.0"]
    assert region.cost.macs.__self__ is region


@pytest.mark.parametrize(
    "make", [lambda d: d, with_decisions, copy.deepcopy, lambda d: vr.specialize(d, {"*": (2, 0.5)})]
)
def test_a_pickle_is_the_same_network(make):
    """Not how networks are saved, but how they reach other processes."""
    made = make(randomise_gates(randomise_rebuilds(vr.convert(tiny_net()))))
    other = pickle.loads(pickle.dumps(made))
    ours, theirs = made(CLIP), other(CLIP)
    if isinstance(ours, tuple):
        assert all(torch.equal(a, b) for p, d in ours[1].items() for a, b in zip(d, theirs[1][p], strict=True))
        ours, theirs = ours[0], theirs[0]
    assert torch.equal(ours, theirs)
    modes = [[module.training for module in network.modules()] for network in (made, other)]
    assert modes[0] == modes[1]
    if make is not copy.deepcopy:
        assert conversion(other) == conversion(made)


def test_a_state_dict_goes_through_torch_save():
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(tiny_net())))
    file = io.BytesIO()
    torch.save(dynamic.state_dict(), file)
    file.seek(0)
    other = vr.convert(tiny_net(1))
    assert not torch.equal(other(CLIP), dynamic(CLIP))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(CLIP), dynamic(CLIP))


def test_threads_share_a_network():
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(tiny_net())))
    clips = [make_clip(3, 3, frames, 16, 16, seed=frames) for frames in (4, 7, 8, 16)]
    expected = [dynamic(clip) for clip in clips]
    results: list[list[Tensor]] = [[] for _ in clips]
    start = threading.Barrier(len(clips))

    def work(k: int) -> None:
        for _ in range(5):
            start.wait(10)
            results[k].append(dynamic(clips[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, right in zip(results, expected, strict=True):
        assert len(result) == 5
        assert all(torch.equal(output, right) for output in result)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("gate", GATES)
def test_ddp_finds_every_parameter_used(gate, process_group):
    """With find_unused_parameters left off, the second step fails if the first one missed a parameter."""
    dynamic = vr.convert(tiny_net(), CLIP, ConvertConfig(gate=gate)).train()
    parallel = DistributedDataParallel(with_decisions(dynamic))
    for _ in range(3):
        output, decisions = parallel(CLIP)
        (output.square().sum() + vr.efficiency_loss(decisions)).backward()
    assert all(parameter.grad is not None for parameter in dynamic.parameters())


def test_conversion_tells_how():
    model = tiny_net()
    assert conversion(vr.convert(model, CLIP)).source is None
    config = ConvertConfig(exclude=("last",))
    made = conversion(with_decisions(vr.convert(model, CLIP, config)))
    assert made.config == config
    assert made.plan == vr.scan(model, CLIP, config)
    for other in (model, torch.fx.symbolic_trace(Net())):
        with pytest.raises(ConvertError, match="not a converted network; call convert"):
            conversion(other)


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


def hooked_net() -> nn.Module:
    model = tiny_net()
    model.register_forward_hook(lambda module, args, output: 2 * output)
    return model


class Branching(Net):
    def forward(self, *x: Tensor) -> Tensor:
        return super().forward(x[0] if x[0].sum() > 0 else -x[0])


REFUSED = {
    "hooks": (hooked_net, "TinyNet itself carries hooks, which would be lost; set them on the result"),
    "control flow": (Branching, r"cannot follow the whole network \(Branching, .*test_convert.py:\d+\)"),
    "no convolution": (
        lambda: nn.Sequential(nn.ReLU()),
        "nothing worth converting in Sequential, because it has no 3D",
    ),
    "nothing left": (
        lambda: nn.Sequential(nn.Conv3d(3, 4, 1)),
        r"because fewer than min_channels=8 .* \(few_channels\)",
    ),
    "data parallel": (lambda: nn.DataParallel(Net()), "DataParallel is a wrapper; .* model.module"),
    "compiled": (lambda: torch.compile(Net()), "OptimizedModule is a wrapper; .* model._orig_mod"),
    "scripted": (lambda: torch.jit.script(Net()), "a compiled program; convert the network that it was made from"),
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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_converted_without_gradients_can_be_trained(mode):
    model = tiny_net()
    with mode():
        dynamic = vr.convert(model, CLIP)
        assert torch.equal(dynamic(CLIP), model(CLIP))
    dynamic.train()(CLIP).square().sum().backward()
    assert all(parameter.grad is not None for parameter in dynamic.parameters())


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


def test_an_unbatched_clip_is_named():
    model = nn.Sequential(nn.Conv3d(3, 8, 1), nn.ReLU()).eval()
    dynamic = vr.convert(model)
    with pytest.raises(ConvertError, match=r"\(3, 8, 16, 16\).*also for one clip"):
        dynamic(CLIP[0])
