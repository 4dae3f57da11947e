"""The pipeline as a whole: exact, in channels_last_3d from end to end, on what the caller keeps."""

import pytest
import torch
from networks import make_clip, randomise_norms, tiny_net
from torch import fx, nn

import vared2_fx as vr
from vared2_fx.deploy.program import programs
from vared2_fx.errors import DeployError
from vared2_fx.passes.check import largest_difference
from vared2_fx.passes.deploy.memory_format import channels_last
from vared2_fx.passes.deploy.onednn import onednn_convs
from vared2_fx.passes.deploy.pipeline import prepare
from vared2_fx.passes.deploy.precision import compute_in_bf16
from vared2_fx.passes.trace import calls

CLIP = make_clip(1, 3, 8, 16, 16)
LAST = torch.channels_last_3d
CLIPS = {"x3d_xs": (4, 160), "r3d_18": (8, 40), "r2plus1d_18": (8, 40), "mc3_18": (8, 40)}
LARGE = {"slow_r50": (8, 224), "csn_r101": (32, 224), "r2plus1d_r50": (16, 224), "i3d_inception": (9, 193)}
NETWORKS = [*CLIPS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
FOLDED = 1e-3
"""Of the largest output; see `vared2_fx.deploy.parity.FLOAT32`."""


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    frames, pixels = (CLIPS | LARGE)[name]
    torch.manual_seed(0)
    clip = make_clip(1, 3, frames, pixels, pixels)
    return randomise_norms(vr.zoo.load(name, num_classes=10), clip), clip


class Layouts(fx.Interpreter):
    """Runs a graph, and notes which clip-shaped maps do not lie in channels_last_3d."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.lost, self.maps = [], 0

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        is_map = isinstance(result, torch.Tensor) and result.dim() == 5 and n.op not in ("placeholder", "get_attr")
        if is_map and n.target is not torch.ops.aten.permute.default:
            self.maps += 1
            if not result.is_contiguous(memory_format=LAST):
                self.lost.append(n.name)
        return result


@pytest.mark.parametrize("name", NETWORKS)
def test_no_map_of_a_network_loses_its_layout(name):
    model, clip = network(name)
    gm = prepare(model, clip, "torch")
    with torch.no_grad():
        run = Layouts(onednn_convs(next(programs(gm, (clip,), model(clip))).exported.module(check_guards=False)))
        expected, output = model(clip), run.run(clip)
    assert run.lost == []
    assert run.maps > 20
    assert largest_difference(expected, output) <= FOLDED
    assert len(calls(gm, nn.BatchNorm3d)) == 0


def test_torchs_own_choice_of_kernels_loses_it():  # the control, and why there is `onednn_convs`
    model, clip = network("r3d_18")
    with torch.no_grad():
        run = Layouts(prepare(model, clip, "torch"))
        run.run(clip)
    assert run.lost


@pytest.mark.parametrize("engine", ["torch", "compile", "onnx", "openvino"])
def test_every_engine_gets_the_same_function(engine, untouched):
    model = tiny_net()
    with untouched(model):
        gm = prepare(model, CLIP, engine)
    assert largest_difference(model(CLIP), gm(CLIP)) <= 1e-5  # a rounding per weight more, in six layers
    kinds = {type(gm.get_submodule(node.target)) for node in gm.graph.find_nodes(op="call_module")}
    assert not kinds & {nn.BatchNorm3d, nn.Dropout}
    conv = gm.get_submodule("stem.0")
    assert conv.weight.is_contiguous(memory_format=LAST) == (engine in ("torch", "compile"))


def test_the_mode_of_the_caller_does_not_matter(untouched):
    model = tiny_net()
    expected = model(CLIP)
    model.train()
    with untouched(model):
        gm = prepare(model, CLIP)
    assert model.training
    assert largest_difference(expected, gm(CLIP)) <= 1e-5


def test_layout_keeps_every_bit():
    gm = prepare(tiny_net(), CLIP, "onnx")
    out = channels_last(gm)
    assert not gm.get_submodule("stem.0").weight.is_contiguous(memory_format=LAST)
    weights = zip(gm.parameters(), out.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert largest_difference(gm(CLIP), out(CLIP)) <= 1e-6  # another kernel may add up in another order


def test_bf16_is_near_and_no_more(untouched):
    gm = prepare(tiny_net(), CLIP, "onnx")
    with untouched(gm):
        out = compute_in_bf16(gm, args=(CLIP,))
    difference = largest_difference(gm(CLIP), out(CLIP))
    assert 1e-4 < difference < 5e-2  # eight bits: 4e-3 per rounding, some layers
    assert out(CLIP).dtype == torch.float32


class Pooled(nn.Module):
    """Torch has no average pooling in bfloat16; the second pooling shares the module."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1)
        self.pool = nn.AvgPool3d(2)

    def forward(self, x):
        return self.pool(self.b(self.pool(self.a(x))))


def test_bf16_keeps_in_float32_what_torch_has_not():
    torch.manual_seed(0)
    gm = prepare(Pooled(), CLIP, "onnx")
    out = compute_in_bf16(gm, args=(CLIP,))
    assert {out.get_submodule(path).weight.dtype for path in "ab"} == {torch.bfloat16}
    assert 0 < largest_difference(gm(CLIP), out(CLIP)) < 2e-2


def test_what_has_gates_is_refused():
    dynamic = vr.convert(tiny_net(), CLIP)
    with pytest.raises(DeployError, match=r'vr.specialize\(dynamic, \{"\*": \(2, 1.0\)\}\)'):
        prepare(dynamic, CLIP)
    static = vr.specialize(dynamic, {"*": (2, 1.0)})
    assert largest_difference(static(CLIP), prepare(static, CLIP)(CLIP)) <= 1e-5


@pytest.mark.parametrize("granularity", ["block", "stage"])
@pytest.mark.parametrize("choice", [(1, 1.0), (2, 1.0), (2, 0.5)])
def test_norms_of_a_specialised_block_are_folded(granularity, choice):
    model, clip = network("r3d_18")
    dynamic = vr.convert(model, clip, vr.ConvertConfig(granularity=granularity))
    static = vr.specialize(dynamic, {"*": choice})
    gm = prepare(static, clip, "onnx")
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in gm.modules())
    with torch.no_grad():
        assert largest_difference(static(clip), gm(clip)) <= FOLDED


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_net().double(), "weights are float64; deploy a float32 network"),
        (tiny_net().to("meta"), "is on the meta device"),
        ("r3d_18", "expected a torch.nn.Module, got str"),
    ],
)
def test_what_cannot_be_deployed_is_refused(model, message):
    with pytest.raises(DeployError, match=message):
        prepare(model, CLIP)


def test_inputs_that_do_not_fit():
    with pytest.raises(DeployError, match="does not run on example inputs of shape"):
        prepare(tiny_net(), make_clip(1, 5, 8, 16, 16))
