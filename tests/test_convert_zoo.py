"""Every CNN of the zoo: converts exactly, skips what it says it skips, and the counts agree with two other counters.

Random weights, norms with random weights and statistics; the smallest clip that each network accepts.
"""

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from networks import make_clip, randomise_norms, randomise_rebuilds
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

import vared2_fx as vr
from vared2_fx import Choice
from vared2_fx.layers import FULL
from vared2_fx.layers.geometry import Size
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.statistics import clip_macs, dense_macs

CLIPS = {  # frames, pixels; pytorchvideo's heads and s3d's pool over fixed windows
    "x3d_xs": (4, 160),
    "r3d_18": (8, 40),
    "r2plus1d_18": (8, 40),
    "mc3_18": (8, 40),
    "x3d_s": (13, 160),
    "x3d_m": (16, 224),
    "s3d": (14, 224),
    "c2d_r50": (8, 224),
    "slow_r50": (8, 224),
    "i3d_r50": (8, 224),
    "r2plus1d_r50": (16, 224),
    "csn_r101": (32, 224),
    "i3d_inception": (9, 193),
}
QUICK = ("x3d_xs", "r3d_18", "r2plus1d_18", "mc3_18")
NEAR = 1e-6
"""Of the largest output. The same convolutions run on the same values, so the bits are equal wherever a library picks
its kernels by shape and layout; one that looks at addresses too may add up some thousand products otherwise."""


@dataclass(frozen=True)
class Case:
    """A network, its conversion, and what both give for a clip."""

    model: nn.Module
    dynamic: fx.GraphModule
    clip: Tensor
    expected: Tensor
    in_sizes: dict[str, Size]
    mixed: dict[str, Choice]
    """Another choice than the full one for every region, drawn at random."""


@pytest.fixture(scope="module", params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLIPS])
def case(request):
    frames, pixels = CLIPS[request.param]
    torch.manual_seed(0)
    clip = make_clip(1, 3, frames, pixels, pixels)
    model = randomise_norms(vr.zoo.load(request.param, num_classes=10), clip)
    with torch.no_grad():
        for parameter in model.parameters():  # some linear heads start with almost equal answers
            if parameter.dim() == 2:
                nn.init.normal_(parameter)
        expected = model(clip)
    dynamic, in_sizes, mixed = randomise_rebuilds(vr.convert(model, clip)), {}, {}
    for path, region in regions(dynamic).items():
        region.register_forward_pre_hook(lambda m, args, path=path: in_sizes.update({path: tuple(args[0].shape[2:])}))
        choices = region.grid.all()
        mixed[path] = choices[int(torch.randint(1, len(choices), ()))]
    with torch.no_grad():
        dynamic(clip)
    return Case(model, dynamic, clip, expected, in_sizes, mixed)


def relative(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).abs().max() / expected.abs().max())


def convolved(case: Case, choices: dict[str, Choice]) -> int:
    """Multiply-adds of convolutions and matrix products alone, by the analytic count."""
    total = dense_macs(case.dynamic, case.clip)
    for path, region in regions(case.dynamic).items():
        size, geometry = case.in_sizes[path], region.geometry
        total += geometry.macs(size, choices[path]) - geometry.macs(size, FULL)
    return total


def counted(case: Case, choices: dict[str, Choice]) -> int:
    """The same with cheap operations: what the report says of this policy, but for the gates."""
    total = dense_macs(case.dynamic, case.clip)
    for path, region in regions(case.dynamic).items():
        total += region.macs(case.in_sizes[path], choices[path]) - region.macs(case.in_sizes[path], FULL)
    return total


def fvcore_counts(network: nn.Module, clip: Tensor) -> dict[str, int]:
    """By kind of operator; a cheap operation is one `addcmul` per multiply-add."""

    def addcmul(inputs: list[Any], outputs: list[Any]) -> int:
        return math.prod(outputs[0].type().sizes())

    analysis = FlopCountAnalysis(network, clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that it takes for constants
        return dict(analysis.set_op_handle("aten::addcmul", addcmul).by_operator())


def test_converts_most_of_its_multiply_adds(case):
    plan = vr.scan(case.model, case.clip)
    assert sum(entry.macs for entry in plan.converted) > 0.9 * plan.macs


def test_the_converted_network_computes_what_the_original_computed(case):
    with torch.no_grad():
        assert relative(case.dynamic(case.clip), case.expected) <= NEAR
        other = case.model(make_clip(*case.clip.shape, seed=1))
    assert relative(other, case.expected) > 0.01, "the answer hardly depends on the clip: this says little"


def test_another_policy_gives_another_answer_and_runs_what_is_counted(case):
    with torch.no_grad(), vr.policy(case.dynamic, case.mixed) as taken, FlopCounterMode(display=False) as counter:
        output = case.dynamic(case.clip)
    assert taken == case.mixed
    assert relative(output, case.expected) > 0.01
    assert counter.get_total_flops() == 2 * convolved(case, case.mixed)
    with torch.no_grad():
        static = vr.specialize(case.dynamic, case.mixed)
        assert relative(static(case.clip), output) <= NEAR


def test_gates_and_cheap_operations_are_in_the_count(case):
    with torch.no_grad(), vr.policy(case.dynamic, case.mixed):
        _, decisions = vr.with_decisions(case.dynamic)(case.clip)
    gates = sum(region.gate.macs(case.in_sizes[path]) for path, region in regions(case.dynamic).items())
    total = clip_macs(decisions, dense_macs(case.dynamic, case.clip))
    assert total.tolist() == [counted(case, case.mixed) + gates]


@pytest.mark.parametrize("policy", ["full", "mixed"])
def test_two_other_counters_agree(case, policy):
    """Exactly: fvcore in all that counts, torch (a multiply-add is two) in convolutions and matrix products."""
    choices = case.mixed if policy == "mixed" else dict.fromkeys(case.mixed, FULL)
    static = vr.specialize(case.dynamic, choices)
    counts = fvcore_counts(static, case.clip)
    norms_and_pools = {"batch_norm", "layer_norm", "adaptive_avg_pool3d"}
    assert counts.keys() <= {"conv", "linear", "addmm", "matmul", "addcmul"} | norms_and_pools
    assert sum(n for kind, n in counts.items() if kind not in norms_and_pools) == counted(case, choices)
    assert ("addcmul" in counts) == (policy == "mixed")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(static).to("meta")(case.clip.to("meta"))
    assert counter.get_total_flops() == 2 * convolved(case, choices)


@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated:DeprecationWarning")  # pytorchvideo's Swish
@pytest.mark.parametrize("name", ["r3d_18", "x3d_xs"])
def test_every_parameter_gets_a_gradient(name):
    frames, pixels = CLIPS[name]
    dynamic = vr.convert(vr.zoo.load(name, num_classes=10)).train()
    output, decisions = vr.with_decisions(dynamic)(make_clip(2, 3, frames, pixels, pixels))
    (output.square().sum() + vr.efficiency_loss(decisions)).backward()
    assert [name for name, parameter in dynamic.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in dynamic.parameters())
