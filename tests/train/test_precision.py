import logging

import pytest
import torch
from small import config, small_net
from torch import nn
from torch.overrides import TorchFunctionMode

import vared2_fx as vr
from vared2_fx.train.precision import CheckedConvs, relative_errors


class WrongWeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class Processor(TorchFunctionMode):
    """One whose bf16 convolutions over two frames have wrong weight gradients, as METHOD's was found to have."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args = list(args)
        if func is torch.conv3d and torch.is_autocast_enabled("cpu") and args and args[0].shape[2] == 2:
            args[1] = WrongWeightGradient.apply(args[1])
        return func(*args, **(kwargs or {}))


def gradients(conv, clips, *contexts):
    conv.zero_grad()
    for context in contexts:
        context.__enter__()
    with torch.autocast("cpu", torch.bfloat16):
        output = conv(clips)
    output.float().square().sum().backward()
    for context in reversed(contexts):
        context.__exit__(None, None, None)
    return output.dtype, conv.weight.grad.clone()


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return nn.Conv3d(4, 4, 3, padding=1)


def test_what_is_right_stays_in_reduced_precision(conv):
    checked = CheckedConvs()
    dtype, _ = gradients(conv, torch.randn(2, 4, 6, 5, 5), checked)
    assert dtype == torch.bfloat16
    assert not checked.failed


def test_what_is_wrong_is_computed_in_fp32_and_said(conv, caplog):
    clips, checked = torch.randn(2, 4, 2, 5, 5), CheckedConvs()
    exact = torch.autograd.grad(conv(clips).square().sum(), conv.weight)[0]
    _, wrong = gradients(conv, clips, Processor())
    assert (wrong - exact).norm() > exact.norm()  # the control
    with caplog.at_level(logging.WARNING):
        dtype, mended = gradients(conv, clips, Processor(), checked)
    assert dtype == torch.float32
    torch.testing.assert_close(mended, exact)
    assert "3×3×3" in caplog.text
    assert "weight gradient by 199.9 %" in caplog.text
    gradients(conv, clips, Processor(), checked)
    assert len(caplog.records) == 1  # said once


def test_other_shapes_are_left_alone(conv):
    checked = CheckedConvs()
    gradients(conv, torch.randn(2, 4, 2, 5, 5), Processor(), checked)
    dtype, _ = gradients(conv, torch.randn(3, 4, 4, 5, 5), Processor(), checked)
    assert dtype == torch.bfloat16
    assert len(checked.failed) == 1


def test_without_autocast_nothing_is_checked(conv):
    clips, checked = torch.randn(2, 4, 2, 5, 5), CheckedConvs()
    with checked:
        assert torch.equal(conv(clips), conv(clips))
    assert not checked.failed


@pytest.mark.parametrize("settings", [{"stride": (1, 2, 2)}, {"groups": 4}, {"dilation": 2, "padding": 2}])
def test_errors_of_correct_convolutions_are_small(settings):
    call = {"input": torch.ones(2, 8, 6, 6, 6), "weight": torch.ones(8, 8 // settings.get("groups", 1), 3, 3, 3)}
    before = torch.get_rng_state()
    assert max(relative_errors(torch.conv3d, call | settings).values()) < 0.02
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_not_finite_is_wrong():
    def broken(input, weight, bias=None, **settings):
        output = torch.conv3d(input, weight, bias, **settings)
        return output * float("nan") if torch.is_autocast_enabled("cpu") else output

    call = {"input": torch.ones(1, 2, 3, 3, 3), "weight": torch.ones(2, 2, 1, 1, 1)}
    assert min(relative_errors(broken, call).values()) == float("inf")


@pytest.mark.parametrize("recomputed", [False, True])
def test_finetune_mends_such_a_processor(caplog, recomputed):
    torch.manual_seed(0)
    clips = [(torch.randn(2, 1, 4, 8, 8), torch.tensor([0, 1])) for _ in range(3)]
    dynamic = vr.convert(small_net(), config=vr.ConvertConfig(granularity="block", frame_strides=(1, 2, 4)))
    options = config(epochs=1, schedule="variants_first", mixed_precision="bf16", gradient_checkpointing=recomputed)
    with caplog.at_level(logging.WARNING), Processor():
        vr.finetune(dynamic, clips, clips, options)
    assert "it is computed in fp32" in caplog.text
