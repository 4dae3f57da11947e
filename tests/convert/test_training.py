"""A converted network can be trained from the start."""

import pytest
import torch
import torch.distributed as dist
from networks import (
    CONVS,
    make_clip,
    randomise_gates,
    randomise_rebuilds,
    tiny_net,
)
from torch.nn.parallel import DistributedDataParallel

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.passes.rewrite import regions, with_decisions

CLIP = make_clip(4, 3, 8, 16, 16)

GATES = ("softmax", "gumbel", "soft_modulation")


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
    """Twenty steps on the efficiency loss alone: fewer multiply-adds. Soft modulation opens what is closed slowly."""
    torch.manual_seed(0)
    dynamic = vr.convert(tiny_net(), CLIP, ConvertConfig(gate=gate)).train()
    observed = with_decisions(dynamic)
    optimizer = torch.optim.Adam(dynamic.parameters(), lr=0.1)
    for _ in range(120 if gate == "soft_modulation" else 20):
        optimizer.zero_grad()
        loss = vr.efficiency_loss(observed(CLIP)[1])
        loss.backward()
        optimizer.step()
    assert vr.efficiency_loss(observed.eval()(CLIP)[1]) < 0.5


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_converted_without_gradients_can_be_trained(mode):
    model = tiny_net()
    with mode():
        dynamic = vr.convert(model, CLIP)
        assert torch.equal(dynamic(CLIP), model(CLIP))
    dynamic.train()(CLIP).square().sum().backward()
    assert all(parameter.grad is not None for parameter in dynamic.parameters())
