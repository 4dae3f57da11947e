"""A deployed network answers as the network does, in every engine."""

import threading

import pytest
import torch
import torch.nn.functional as F
from networks import Net, make_clip, randomise_norms, tiny_net
from torch import nn

import vared2_fx as vr
from vared2_fx.deploy import parity
from vared2_fx.errors import DeployError
from vared2_fx.passes.check import largest_difference

CLIP = make_clip(1, 3, 8, 16, 16)
NEAR = 1e-4
"""Of the largest output; engines add up in other orders, 6e-8 each, in six layers."""


def test_it_answers_as_the_network(engine, made):
    model, deployed = tiny_net().requires_grad_(False), made(engine)
    shapes = [(1, 3, 8, 16, 16), (2, 3, 8, 16, 16), (3, 3, 6, 16, 16)]
    for shape in shapes[:2] if engine == "compile" else shapes:  # compiled anew for each, in seconds
        x = make_clip(*shape, seed=1)
        answer = deployed(x)
        assert (answer.shape, answer.dtype, answer.requires_grad) == ((shape[0], 5), torch.float32, False)
        assert largest_difference(model(x), answer) <= NEAR
    assert (deployed.engine_name, deployed.precision, deployed.threads) == (engine, "fp32", None)
    assert 0 <= deployed.parity.difference <= NEAR < deployed.parity.tolerance


def openvino_has_bf16():
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_in_bf16(engine, made):
    if engine == "onnx":
        with pytest.raises(DeployError, match=r"onnxruntime has no convolution in bfloat16.*engine='openvino'"):
            made(engine, "bf16")
        return
    has_bf16 = {"openvino": openvino_has_bf16, "torch": torch.ops.mkldnn._is_mkldnn_bf16_supported}.get(engine)
    if has_bf16 is not None and not has_bf16():
        with pytest.raises(DeployError, match="this processor has no bfloat16; take precision='fp32'"):
            made(engine, "bf16")
        return
    deployed = made(engine, "bf16")
    with torch.no_grad():
        expected = tiny_net()(CLIP)
    difference = largest_difference(expected, deployed(CLIP))
    assert 1e-4 < difference < 5e-2  # it is bf16 and no better, and six layers of rounding by 4e-3 no worse
    assert deployed(CLIP).dtype == torch.float32
    assert difference <= deployed.parity.difference <= deployed.parity.tolerance  # that of the worst size


def test_all_in_inference_mode(quick_engine):
    with torch.inference_mode():
        model, clip = tiny_net().requires_grad_(False), CLIP.clone()
        dynamic = vr.convert(model, clip, vr.ConvertConfig(granularity="block", min_macs_share=0.0))
        static = vr.specialize(dynamic, {"*": (2, 1.0)})
        for network in (model, static):
            answer = vr.deploy(network, quick_engine, example_inputs=clip)(clip)
            assert largest_difference(network(clip), answer) <= NEAR


def test_the_caller_keeps_its_model(engine, untouched):
    model = Net().train()
    with untouched(model):
        deployed = vr.deploy(model, engine, example_inputs=CLIP)
    expected = model.eval()(CLIP)
    with torch.no_grad():
        model.a.weight.add_(1)
    assert largest_difference(expected, deployed(CLIP)) <= NEAR  # what becomes of the model does not matter to it


def test_from_several_threads(engine, made):
    deployed = made(engine)
    clips = [make_clip(1 + i % 2, 3, 8, 16, 16, seed=i) for i in range(8)]
    alone, together = [deployed(clip) for clip in clips], {}
    start = threading.Barrier(4)

    def work(first: int) -> None:
        start.wait()
        for i in range(first, 8, 4):
            together[i] = [deployed(clips[i]) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, expected in enumerate(alone):
        for answer in together[i]:
            torch.testing.assert_close(answer, expected, rtol=0, atol=0)


def test_threads_are_those_that_were_asked_for(engine):
    before = torch.get_num_threads()
    deployed = vr.deploy(Net().eval(), engine, example_inputs=CLIP, threads=2)
    deployed(CLIP)
    assert deployed.threads == 2
    assert torch.get_num_threads() == before


def test_an_answer_stays_when_the_next_is_given(engine, made):
    deployed = made(engine)
    first = deployed(CLIP)
    kept = first.clone()
    deployed(-CLIP)
    assert torch.equal(first, kept)


def test_other_layouts_of_the_input(engine, made):
    deployed = made(engine)
    strided = CLIP.transpose(3, 4).contiguous().transpose(3, 4)
    assert largest_difference(deployed(CLIP), deployed(strided)) <= NEAR
    assert largest_difference(deployed(CLIP), deployed(CLIP.to(memory_format=torch.channels_last_3d))) <= NEAR


def test_autocast_around_it_changes_nothing(quick_engine):
    model = tiny_net()
    expected = model(CLIP)
    with torch.autocast("cpu", torch.bfloat16):
        deployed = vr.deploy(model, quick_engine, example_inputs=CLIP)
        answer = deployed(CLIP)
    assert deployed.parity.difference <= NEAR
    assert answer.dtype == torch.float32
    assert largest_difference(expected, answer) <= NEAR


def test_threads_of_calls_at_a_time_stay_inside():
    """Also where each is the first in its thread, which begins with what another has just set."""
    before = torch.get_num_threads()
    few, many = (vr.deploy(Net().eval(), example_inputs=CLIP, threads=number) for number in (1, before + 1))
    left = []

    def work(deployed: vr.Deployed) -> None:
        for _ in range(3):
            deployed(CLIP)
        left.append(torch.get_num_threads())

    for _ in range(10):
        workers = [threading.Thread(target=work, args=(deployed,)) for deployed in (few, many, few, many)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    after: list[int] = []
    fresh = threading.Thread(target=lambda: after.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert {*left, *after, torch.get_num_threads()} == {before}


def test_what_was_specialised(quick_engine, untouched):
    dynamic = vr.convert(tiny_net(), CLIP)
    static = vr.specialize(dynamic, {"*": (2, 0.5)})
    with untouched(dynamic):
        deployed = vr.deploy(static, quick_engine)  # the clip that it was converted with is known
    assert largest_difference(static(CLIP), deployed(CLIP)) <= NEAR
    assert largest_difference(tiny_net()(CLIP), deployed(CLIP)) > 1e-2  # the control: it does compute less


class Padded(Net):
    """Pads the frames to a multiple of three, as "same" padding does: OpenVINO knows no remainder of a free size."""

    def forward(self, x):
        x = F.pad(self.a(x), (0, 0, 0, 0, 0, -x.shape[2] % 3))
        return self.head(F.avg_pool3d(x, (3, 1, 1)).mean((2, 3, 4)))


def test_axes_that_the_engine_cannot_keep_free_are_fixed(quick_engine):
    model = Padded().eval()
    deployed = vr.deploy(model, quick_engine, example_inputs=CLIP)
    clips = make_clip(3, 3, 8, 16, 16, seed=2)
    assert largest_difference(model(clips), deployed(clips)) <= NEAR
    refused = [note for note in deployed.notes if "refused free axes" in note]
    assert len(refused) == (quick_engine == "openvino")
    assert (str(deployed.signature.inputs[0].axes[2]) == "8") == (quick_engine == "openvino")


CLIPS = {"x3d_xs": (4, 160), "r3d_18": (8, 40)}


def test_a_network_of_the_zoo(zoo_engine):
    name = "r3d_18" if zoo_engine == "onnx" else "x3d_xs"
    check_network(name, zoo_engine, *CLIPS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x3d_xs", "r3d_18", "slow_r50", "csn_r101", "r2plus1d_r50", "i3d_inception", "s3d"])
def test_large_networks(engine, name):
    sizes = {"slow_r50": (8, 224), "csn_r101": (32, 224), "r2plus1d_r50": (16, 224)}
    sizes |= {"i3d_inception": (9, 193), "s3d": (14, 224)}
    check_network(name, engine, *(CLIPS | sizes)[name])


def check_network(name: str, engine: str, frames: int, pixels: int) -> None:
    torch.manual_seed(0)
    clip = make_clip(1, 3, frames, pixels, pixels)
    model = randomise_norms(vr.zoo.load(name, num_classes=10), clip)
    deployed = vr.deploy(model, engine, example_inputs=clip)
    other = make_clip(1, 3, frames, pixels, pixels, seed=1)
    with torch.no_grad():
        assert largest_difference(model(other), deployed(other)) <= parity.FLOAT32


@pytest.mark.slow
def test_slowfast(engine):
    spec = vr.zoo.spec("slowfast_r50")
    model, inputs = vr.zoo.load("slowfast_r50"), spec.pack(make_clip(1, 3, 32, 224, 224))
    deployed = vr.deploy(model, engine, example_inputs=inputs)
    with torch.no_grad():
        assert largest_difference(model(list(inputs)), deployed(inputs)) <= parity.FLOAT32


def test_example_inputs_of_the_zoo_and_none():
    deployed = vr.deploy(vr.zoo.load("vared2_demo"))
    assert [axis.size for axis in deployed.signature.inputs[0].axes] == [1, 3, 16, 64, 64]
    with pytest.raises(DeployError, match="say with example_inputs= what TinyNet is called with"):
        vr.deploy(tiny_net())


def test_fixed_sizes_are_told():
    model = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 8 * 16 * 16, 4)).eval()
    deployed = vr.deploy(model, example_inputs=CLIP)
    assert str(deployed.signature) == "1…×3×8×16×16 float32"
    assert any(note.startswith("takes 8 frames") for note in deployed.notes)
    assert "note: takes 8 frames" in str(deployed)


class ByValue(Net):
    """Decides on values what it computes."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Text(Net):
    """Gives more than tensors."""

    def forward(self, x):
        return super().forward(x), "text"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Net(), {"engine": "tensorrt"}, "no engine 'tensorrt'; there are torch, compile, onnx, openvino"),
        (Net(), {"precision": "int8"}, "no precision 'int8'; there are fp32, bf16"),
        (Net(), {"threads": 0}, "threads=0; it must be a number of at least 1"),
        (ByValue(), {}, "torch.export cannot follow this network"),
        (
            Text(),
            {},
            "the network gives str; tensors can be, and lists, tuples and dicts of them, whose keys",
        ),
        (Net(), {"example_inputs": make_clip(1, 7, 8, 8, 8)}, "does not run on"),
    ],
    ids=["engine", "precision", "threads", "branches", "output", "inputs"],
)
def test_mistakes(model, options, message):
    with pytest.raises(DeployError, match=message):
        vr.deploy(model, **{"example_inputs": CLIP, **options})


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it raises ImportError
    with pytest.raises(DeployError, match=r"needs openvino.*pip install 'vared2_fx\[openvino\]'"):
        vr.deploy(Net(), "openvino", example_inputs=CLIP)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DeployError, match=r"needs a C\+\+ compiler"):
        vr.deploy(Net(), "compile", example_inputs=CLIP)


def test_a_dynamic_network_is_refused(engine):
    with pytest.raises(DeployError, match="still has gates"):
        vr.deploy(vr.convert(tiny_net(), CLIP), engine)


def test_another_output_is_noticed(monkeypatch):
    from vared2_fx.deploy.engines import BY_NAME

    run = BY_NAME["torch"].run
    monkeypatch.setattr(BY_NAME["torch"], "run", lambda self, x: [1.01 * y for y in run(self, x)])
    with pytest.raises(DeployError, match=r"the engine's output differs from the network's by 0\.01 of its largest"):
        vr.deploy(tiny_net(), example_inputs=CLIP)


def test_another_shape_is_noticed(monkeypatch):
    from vared2_fx.deploy.engines import BY_NAME

    run = BY_NAME["torch"].run
    monkeypatch.setattr(BY_NAME["torch"], "run", lambda self, x: [y[:1, :2] for y in run(self, x)])
    with pytest.raises(DeployError, match="Please report this network"):
        vr.deploy(tiny_net(), example_inputs=CLIP)
