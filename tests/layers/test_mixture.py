"""The hand-written backward pass of the mixture, and what it must leave alone."""

import pytest
import torch
from networks import make_clip, make_test_region, one_hot_decision
from torch import nn
from torch.func import functional_call

REGIONS = {
    "scale": {},
    "depthwise": {"channel_rebuild": "depthwise"},
    "interpolate": {"frame_rebuild": "interpolate"},
    "both": {"channel_rebuild": "depthwise", "frame_rebuild": "interpolate"},
}


def make_region(name: str = "scale", **options: object):
    torch.manual_seed(0)
    conv = nn.Conv3d(2, 5, (3, 1, 1), padding=(1, 0, 0)).double()
    return make_test_region(conv, channel_shares=(1.0, 0.5, 0.2), **REGIONS[name], **options)


def soft_decision(batch: int, closed: tuple[int, ...] = ()) -> torch.Tensor:
    decision = torch.rand(batch, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    decision[:, list(closed)] = 0.0
    return decision


def all_gradients_are_right(region, x, decision) -> bool:
    """Input, decision and every parameter, against finite differences."""
    named = {name: p for name, p in region.named_parameters() if not name.startswith("gate.")}

    def run(x, decision, *values):
        return functional_call(region, dict(zip(named, values, strict=True)), (x, decision))

    values = [p.detach().clone().requires_grad_() for p in named.values()]
    return torch.autograd.gradcheck(run, (x.requires_grad_(), decision.requires_grad_(), *values))


@pytest.mark.parametrize("num_frames", [1, 3, 5])
@pytest.mark.parametrize("name", REGIONS)
def test_gradients_of_the_full_mixture(name, num_frames):
    x = make_clip(2, 2, num_frames, 2, 1, dtype=torch.float64)
    assert all_gradients_are_right(make_region(name).train(), x, soft_decision(2))


@pytest.mark.parametrize("closed", [(0,), (3,), (0, 3), (0, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("name", REGIONS)
def test_gradients_of_what_evaluation_computes(name, closed):
    """Closed entries: the mixture starts from every second or fourth frame, or from fewer channels."""
    region = make_region(name).eval()
    x, decision = make_clip(1, 2, 5, 2, 1, dtype=torch.float64), soft_decision(1)
    entries = [e for e in range(6) if e not in closed]

    def run(x, weights):
        return region(x, torch.zeros(1, 6, dtype=torch.float64).index_copy(1, torch.tensor(entries), weights))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), decision[:, entries].requires_grad_()))


def test_gradients_reach_gathered_channels_twice():
    """Two rebuilt channels of one kept channel: their gradients add up."""
    region = make_region().train()
    for rebuild in region.channel_rebuilds:
        rebuild.source.zero_()
    x = make_clip(2, 2, 4, 2, 1, dtype=torch.float64)
    assert all_gradients_are_right(region, x, soft_decision(2))


def test_a_frozen_convolution_gets_no_gradient_the_rest_does():
    region = make_region().train()
    region.body.requires_grad_(False)
    decision = soft_decision(2).requires_grad_()
    region(make_clip(2, 2, 4, 2, 2, dtype=torch.float64), decision).square().sum().backward()
    assert region.body.weight.grad is None
    assert decision.grad.all()
    assert all(rebuild.scale.grad.all() for rebuild in [*region.frame_rebuilds, *region.channel_rebuilds])


def test_runs_without_gradients_too():
    region, x = make_region().train(), make_clip(2, 2, 4, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        without = region(x, soft_decision(2))
    assert not without.requires_grad
    assert torch.equal(without, region(x, soft_decision(2)))


def test_the_output_may_be_overwritten():
    """What follows is often a ReLU in place."""
    region = make_region("both").train()
    x = make_clip(2, 2, 4, 2, 2, dtype=torch.float64).requires_grad_()
    (apart,) = torch.autograd.grad(region(x, soft_decision(2)).relu().sum(), x)
    (in_place,) = torch.autograd.grad(region(x, soft_decision(2)).relu_().sum(), x)
    assert torch.equal(apart, in_place)


@pytest.mark.parametrize("name", REGIONS)
def test_channels_last_in_training(name):
    region, decision = make_region(name).train(), soft_decision(3)
    x = make_clip(3, 2, 5, 4, 4, dtype=torch.float64)
    by_layout = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        inputs = x.clone(memory_format=layout).requires_grad_()
        y = region(inputs, decision)
        by_layout.append((y, torch.autograd.grad(y.square().sum(), inputs)[0]))
    for plain, last in zip(*by_layout, strict=True):
        torch.testing.assert_close(plain, last, rtol=1e-12, atol=1e-12)  # float64; other kernels, other order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", REGIONS)
def test_autocast(name, dtype):
    """Against float32; 0.06 of the largest value: bfloat16 keeps 8 bits, and a handful of terms is added up."""
    region, x, decision = make_region(name).float().train(), make_clip(2, 2, 4, 4, 4), soft_decision(2).float()
    parameters = [p for n, p in region.named_parameters() if not n.startswith("gate.")]

    def run():
        y = region(x, decision)
        return y, torch.autograd.grad(y.float().square().sum(), parameters)

    y, gradients = run()
    with torch.autocast("cpu", dtype=dtype):
        y_low, gradients_low = run()  # the backward pass inside too, as some do
    assert y_low.dtype == dtype
    for exact, low in zip((y, *gradients), (y_low, *gradients_low), strict=True):
        assert (exact - low).abs().max() < 0.06 * exact.abs().max()


def test_one_hot_weights_copy_what_they_pick_to_the_bit():
    """Zeros times maps add nothing, and one times a value is that value: no rounding where nothing is rebuilt."""
    region, x = make_region().train(), make_clip(2, 2, 5, 4, 4, dtype=torch.float64)
    full = region.body(x)
    assert torch.equal(region(x, one_hot_decision(region.grid, 0, 0, 2)), full)
    assert torch.equal(region(x, one_hot_decision(region.grid, 1, 0, 2))[:, :, 1::2], full[:, :, 1::2])
    assert torch.equal(region(x, one_hot_decision(region.grid, 0, 1, 2))[:, :3], full[:, :3])
