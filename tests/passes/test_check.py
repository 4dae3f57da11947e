"""The check: it passes what is equal and finds what is not."""

import operator

import pytest
import torch
from networks import CONVS, Net, make_clip, tiny_net
from torch import Tensor

import vared2_fx as vr
from vared2_fx import Choice, ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import ChoiceGrid
from vared2_fx.passes.check import TOLERANCE, check
from vared2_fx.passes.rewrite import fix_choices, gate_convs, regions
from vared2_fx.passes.trace import trace

CLIP = make_clip(2, 3, 8, 16, 16)


def test_a_right_conversion_passes():
    assert check(tiny_net(), vr.convert(tiny_net()), CLIP) < 1e-6


@pytest.mark.parametrize("path", CONVS)
def test_a_gate_that_starts_wrong_is_found(path):
    dynamic = vr.convert(tiny_net())
    regions(dynamic)[path].gate.out.bias.data[1] = 9.0
    with pytest.raises(ConvertError, match=r"check: .* differs from the original's by 0\.\d+ of its largest"):
        check(tiny_net(), dynamic, CLIP)


@pytest.mark.parametrize("path", CONVS)
def test_a_choice_that_is_not_the_full_one_is_found(path):
    dynamic = vr.convert(tiny_net())
    choices = dict.fromkeys(CONVS, Choice(1, 1.0)) | {path: Choice(1, 0.5)}
    with pytest.raises(ConvertError, match="differs"):
        check(tiny_net(), fix_choices(dynamic, choices), CLIP)


def test_a_lost_part_is_found():
    wrong = gate_convs(trace(tiny_net()), sites={"last": ChoiceGrid((1, 2), (1.0,))}, config=ConvertConfig())
    (norm,) = wrong.graph.find_nodes(op="call_module", target="norm")
    norm.replace_all_uses_with(norm.args[0])
    wrong.recompile()
    with pytest.raises(ConvertError, match="differs"):
        check(tiny_net(), wrong, CLIP)


def test_the_first_node_that_differs_is_named():
    dynamic = vr.convert(tiny_net())
    regions(dynamic)["down.0"].gate.out.bias.data[1] = 9.0
    with pytest.raises(ConvertError, match=r"first in what `down\.0` gives"):
        check(tiny_net(), dynamic, CLIP)
    wrong = trace(tiny_net())
    (added,) = [node for node in wrong.graph.nodes if node.target is operator.add]
    added.replace_all_uses_with(added.args[0])
    wrong.recompile()
    with pytest.raises(ConvertError, match=r"first in what `last` is given \(node `down_2`\)"):
        check(tiny_net(), wrong, CLIP)


class Reshaping(Net):
    """What a graph that was made for one shape does at another."""

    def __init__(self, right: bool, frames: int | None = None, clips: int | None = None) -> None:
        super().__init__()
        self.right, self.frames, self.clips = right, frames, clips

    def forward(self, x: Tensor) -> Tensor:
        wrong = self.frames not in (None, x.shape[2]) or self.clips not in (None, x.shape[0])
        return super().forward(x if self.right or not wrong else -x)


@pytest.mark.parametrize(
    ("frozen", "size"), [({"frames": 8}, r"\(2, 3, 5, 16, 16\)"), ({"clips": 2}, r"\(1, 3, 8, 16, 16\)")]
)
def test_another_batch_size_and_clip_length_are_looked_at(frozen, size):
    def made(right: bool) -> Reshaping:
        torch.manual_seed(0)
        return Reshaping(right, **frozen).eval()

    assert check(made(True), trace(made(True)), CLIP) == 0.0
    with pytest.raises(ConvertError, match=rf"on inputs of shape {size} .* first in what `a` is given"):
        check(made(True), trace(made(False)), CLIP)


class OneLength(Reshaping):
    """Accepts `frames` and more only, or exactly them."""

    def __init__(self, right: bool, frames: int, longest: int) -> None:
        super().__init__(right, frames)
        self.longest = longest

    def forward(self, x: Tensor) -> Tensor:
        if not self.frames <= x.shape[2] <= self.longest:
            raise ValueError(x.shape[2])
        return super().forward(x)


def test_a_length_that_the_original_refuses_is_left_out():
    def made(right: bool, longest: int) -> OneLength:
        torch.manual_seed(0)
        return OneLength(right, 8, longest).eval()

    assert check(made(True, 8), trace(made(False, 8)), CLIP) == 0.0  # nothing to compare at another length
    with pytest.raises(ConvertError, match=r"\(2, 3, 12, 16, 16\)"):
        check(made(True, 12), trace(made(False, 12)), CLIP)


def test_a_converted_network_that_does_not_run_is_found():
    class Refusing(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 1:
                raise ValueError("no single clip")
            return super().forward(x)

    torch.manual_seed(0)
    original = Net().eval()
    torch.manual_seed(0)
    with pytest.raises(ConvertError, match=r"runs on inputs of shape \(1, .* does not \(ValueError: no single clip"):
        check(original, trace(Refusing().eval()), CLIP)


class Returning(Net):
    """Returns what it is told to."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor):
        return self.change(super().forward(x))


@pytest.fixture
def returning():
    def make(change):
        torch.manual_seed(0)
        return Returning(change).eval()

    return make


OUTPUTS = {
    "shape": (lambda y: y, lambda y: y[:, :3], r"\[\(2, 4\)\], the converted network \[\(2, 3\)\]"),
    "number": (lambda y: [y, y], lambda y: [y], "the converted network"),
    "second": (lambda y: [y, {"z": y}], lambda y: [y, {"z": y + 1}], "differs"),
    "nan": (lambda y: y, lambda y: y * float("nan"), "differs .* by nan"),
    "half nan": (lambda y: y, lambda y: torch.cat([y[:1] * float("nan"), y[1:]]), "differs .* by nan"),
    "inf": (lambda y: y, lambda y: y + float("inf"), "differs .* by inf"),
    "other inf": (lambda y: y * 0 + float("inf"), lambda y: y * 0 - float("inf"), "differs .* by inf"),
    "zero": (lambda y: y * 0, lambda y: y, "differs"),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_differing_outputs_are_found(case, returning):
    right, wrong, message = OUTPUTS[case]
    with pytest.raises(ConvertError, match=message):
        check(returning(right), trace(returning(wrong)), CLIP)
    assert check(returning(right), trace(returning(right)), CLIP) == 0.0


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y * float("nan"),
        lambda y: torch.cat([y[:1] * float("inf"), y[1:]]),
        lambda y: y.argmax(1),
        lambda y: y[:0],
        lambda y: (y, None),
    ],
)
def test_unusual_outputs_that_agree_pass(change, returning):
    assert check(returning(change), trace(returning(change)), CLIP) == 0.0


def test_rounding_is_no_difference_more_is(returning):
    dtype_of = {dtype: tolerance for dtype, tolerance in TOLERANCE.items() if dtype in (torch.float32, torch.float64)}
    for dtype, tolerance in dtype_of.items():
        model, clip = returning(lambda y: y).to(dtype), CLIP.to(dtype)
        scale = float(model(clip).detach().abs().max())
        near, far = (returning(lambda y, d=factor * tolerance * scale: y + d).to(dtype) for factor in (0.5, 2.0))
        assert 0 < check(model, trace(near), clip) < tolerance
        with pytest.raises(ConvertError, match="differs"):
            check(model, trace(far), clip)


def test_both_run_in_evaluation_mode_and_get_their_modes_back():
    model = tiny_net().train()
    dynamic = vr.convert(model)
    model.norm.eval()
    before = [[m.training for m in network.modules()] for network in (model, dynamic)]
    check(model, dynamic, CLIP)
    assert [[m.training for m in network.modules()] for network in (model, dynamic)] == before


class WritesIntoItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2.0))


def test_a_network_that_writes_into_its_input_gets_copies():
    clip = CLIP.clone()
    model = WritesIntoItsInput().eval()
    vr.convert(model, clip)
    assert torch.equal(clip, CLIP)
