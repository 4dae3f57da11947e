"""Fifty policies drawn for each network: fixed for a while, specialised, in onnxruntime and in OpenVINO, all alike."""

import random

import pytest
import torch
from networks import make_clip, randomise_norms
from torch import nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.deploy import parity
from vared2_fx.passes.check import largest_difference
from vared2_fx.passes.rewrite import regions

NETWORKS = ("x3d_m", "slow_r50", "i3d_r50", "r2plus1d_r50", "csn_r101", "r3d_18")
QUICK = ("x3d_m", "slow_r50", "r3d_18")
PIXELS = 32
FRAMES = {"r3d_18": 10}
"""Of a clip, 4 elsewhere; r3d_18 halves them three times, so that branches compute other numbers of them."""
NUM_POLICIES = 50


@pytest.mark.parametrize("granularity", ["block", "stage"])
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def test_a_policy_is_its_specialised_network(name, granularity):
    """In float64: what differs by the order of sums alone then differs by nothing that could hide a fault."""
    dynamic, clip = converted(name, granularity)
    dynamic, clip = dynamic.double(), clip.double()
    with torch.inference_mode():
        for number, choices in enumerate(policies(dynamic, NUM_POLICIES if granularity == "block" else 10)):
            with vr.policy(dynamic, choices):
                expected = dynamic(clip)
            found = vr.specialize(dynamic, choices)(clip)
            assert largest_difference(expected, found) < 1e-9, f"policy {number}: {choices}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_policy_is_the_same_in_engines(name, runtime):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[runtime])
    dynamic, clip = converted(name, "block")
    other = make_clip(1, *clip.shape[1:], seed=1)
    with torch.inference_mode(False), torch.no_grad():
        for number, choices in enumerate(policies(dynamic, NUM_POLICIES)):
            with vr.policy(dynamic, choices):
                expected = dynamic(other)
            found = vr.deploy(vr.specialize(dynamic, choices), runtime, example_inputs=clip)(other)
            assert largest_difference(expected, found) <= parity.FLOAT32, f"policy {number}: {choices}"


def converted(name, granularity):
    torch.manual_seed(0)
    clip = make_clip(1, 3, FRAMES.get(name, 4), PIXELS, PIXELS)
    model = vr.zoo.load(name, num_classes=10).eval()
    for module in model.modules():  # pytorchvideo's heads pool over the published clip size
        for child, pool in module.named_children():
            if isinstance(pool, nn.AvgPool3d) and max(pool.kernel_size) > 3:
                setattr(module, child, nn.AdaptiveAvgPool3d(1))
    model = randomise_norms(model, clip)
    return vr.convert(model, clip, ConvertConfig(granularity=granularity, min_macs_share=0.0)).eval(), clip


def policies(dynamic, number):
    """Drawn, each different from all before; gates never ask for more frames than there are."""
    draw = random.Random(0)
    grids = {path: region.grid.all() for path, region in regions(dynamic).items()}
    found = []
    while len(found) < number:
        choices = {path: draw.choice(grid) for path, grid in grids.items()}
        if choices not in found:
            found.append(choices)
    return found
