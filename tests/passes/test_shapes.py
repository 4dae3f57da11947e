"""Shapes and multiply-adds: right, and had without computing anything."""

import pytest
import torch
from networks import CONVS, Net, TinyNet, make_clip, tiny_net
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vared2_fx.errors import ConvertError
from vared2_fx.passes.shapes import guess_shapes, measure_shapes, total_macs
from vared2_fx.passes.trace import trace


def test_shapes_are_those_of_a_run():
    model, clip = tiny_net(), make_clip(2, 3, 9, 15, 16)
    seen = {}
    for path in CONVS:
        model.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: seen.update({path: tuple(o.shape)}))
    model(clip)
    measured = measure_shapes(trace(tiny_net()), clip)
    nodes = {node.target: node for node in measured.graph.nodes}
    assert {path: nodes[path].meta["shape"] for path in CONVS} == seen


def test_multiply_adds_are_those_of_a_run():
    model, clip = tiny_net(), make_clip(2, 3, 9, 15, 16)
    with FlopCounterMode(display=False) as counter:
        model(clip)
    assert 2 * total_macs(measure_shapes(trace(model), clip)) == counter.get_total_flops()


def test_nothing_is_computed():
    """10^13 numbers, in a tensor that holds one: no machine could run this."""
    clip = torch.zeros(()).expand(1, 3, 1024, 65536, 65536)
    assert total_macs(measure_shapes(trace(TinyNet()), clip)) > 10**15


@pytest.mark.parametrize("training", [False, True])
def test_modes_and_statistics_stay(training):
    model = tiny_net().train(training)
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    traced = trace(model)
    measure_shapes(traced, make_clip(1, 3, 8, 16, 16))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConvertError):
        measure_shapes(traced, make_clip(1, 4, 8, 16, 16))
    assert [module.training for module in model.modules()] == modes


class ListInput(Net):
    def forward(self, clips: list[Tensor]) -> Tensor:
        return self.head((self.a(clips[0]) + self.b(clips[1])).mean((2, 3, 4)))


def test_arguments_may_be_lists_of_clips():
    gm = measure_shapes(trace(ListInput()), ([make_clip(1, 3, 4, 8, 8), make_clip(1, 8, 4, 8, 8)],))
    assert total_macs(gm) == (3 + 8) * 8 * 27 * 4 * 64 + 8 * 4


class Reading(nn.Module):
    """Looks at a value, as fake tensors have none."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.mean().item() < 1e9)


class WithReading(Net):
    def __init__(self) -> None:
        super().__init__()
        self.reading = Reading()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.reading(x))


def test_a_module_that_reads_values_runs_for_real():
    assert total_macs(measure_shapes(trace(WithReading()), make_clip(1, 3, 4, 8, 8))) == 11 * 8 * 27 * 4 * 64 + 8 * 4
    assert guess_shapes(trace(WithReading())) is None


def test_autocast_outside_does_not_disturb():
    model, clip = tiny_net(), make_clip(1, 3, 8, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(clip)
        measured = measure_shapes(trace(model), clip)
        model(clip)
    assert measured.graph.find_nodes(op="call_module", target="last")[0].meta["dtype"] == torch.float32


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (make_clip(1, 4, 8, 16, 16), r"does not run on example inputs of shape \(1, 4, 8, 16, 16\): .*3 channels"),
        (make_clip(0, 3, 8, 16, 16), r"\(0, 3, 8, 16, 16\) hold no clip"),
        (make_clip(1, 3, 8, 16, 16, dtype=torch.float64), "does not run.*Pass example_inputs"),
        ([], "shape unknown"),
        ("clip", "shape unknown"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ConvertError, match=message):
        measure_shapes(trace(tiny_net()), inputs)


class Fixed(Net):
    """A linear layer that fits one clip size only."""

    def __init__(self, frames: int, pixels: int, channels: int = 3) -> None:
        super().__init__()
        self.a = nn.Conv3d(channels, 8, 3, padding=1)
        self.b = nn.Conv3d(8, 1, 3, padding=1, stride=(1, 16, 16))
        self.head = nn.Linear(frames * (-(-pixels // 16)) ** 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).flatten(1))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (TinyNet(), (1, 3, 32, 320, 320)),
        (Fixed(16, 112), (1, 3, 16, 112, 112)),
        (Fixed(8, 224, channels=1), (1, 1, 8, 224, 224)),
        (Fixed(7, 99), None),
        (ListInput(), None),
    ],
)
def test_guess(model, shape):
    gm = trace(model)
    assert guess_shapes(gm) == shape
    assert all(("shape" in node.meta) == (shape is not None) for node in calls_of(gm))


def calls_of(gm):
    return gm.graph.find_nodes(op="call_module")


def test_guess_follows_dtype_and_device():
    assert guess_shapes(trace(Fixed(16, 112).half())) == (1, 3, 16, 112, 112)
    with torch.device("meta"):
        model = Fixed(16, 112)
    assert guess_shapes(trace(model)) == (1, 3, 16, 112, 112)
