"""The efficiency loss against numbers worked by hand."""

import pytest
import torch

import vared2_fx as vr
from vared2_fx.errors import ConvertError
from vared2_fx.train.losses import expected_share

TABLE = torch.tensor([[100, 60], [50, 30]])  # R = 1, 2 by r = 1, 1/2


def decision(weights: list[list[float]], gate: int = 10) -> vr.Decision:
    return vr.Decision(torch.tensor(weights), TABLE, torch.tensor(gate))


FULL = [1.0, 0.0, 1.0, 0.0]
HALF_FRAMES = [0.0, 1.0, 1.0, 0.0]


def test_share_of_the_regions_and_of_the_network():
    decisions = {"a": decision([FULL, HALF_FRAMES]), "b": decision([FULL, FULL])}
    torch.testing.assert_close(expected_share(decisions), torch.tensor([220 / 200, 170 / 200]))
    torch.testing.assert_close(expected_share(decisions, 1000), torch.tensor([1.02, 0.97]))


def test_soft_weights_are_averaged():
    decisions = {"a": decision([[0.5, 0.5, 0.5, 0.5]], gate=0)}
    torch.testing.assert_close(expected_share(decisions), torch.tensor([(100 + 60 + 50 + 30) / 4 / 100]))


def test_without_a_target_the_mean_square_of_correct_clips():
    decisions = {"a": decision([FULL, HALF_FRAMES], gate=0)}
    assert vr.efficiency_loss(decisions) == pytest.approx((1.0 + 0.25) / 2)
    assert vr.efficiency_loss(decisions, correct=torch.tensor([False, True])) == pytest.approx(0.25 / 2)
    assert vr.efficiency_loss(decisions, correct=torch.tensor([False, False])) == 0


def test_a_target_acts_on_the_mean_and_from_one_side():
    decisions = {"a": decision([FULL, HALF_FRAMES], gate=0)}
    assert vr.efficiency_loss(decisions, dense=100, target=0.5) == pytest.approx(0.25)
    assert vr.efficiency_loss(decisions, dense=100, target=0.9) == 0


@pytest.mark.parametrize("target", [None, 0.1])
def test_only_correct_clips_push(target):
    weights = torch.tensor([FULL, FULL], requires_grad=True)
    decisions = {"a": vr.Decision(weights, TABLE, torch.tensor(0))}
    correct = torch.tensor([True, False])
    vr.efficiency_loss(decisions, correct=correct, dense=100, target=target).backward()
    assert weights.grad[0].abs().sum() > 0
    assert weights.grad[1].abs().sum() == 0


def test_sums_beyond_32_bits():
    big = vr.Decision(torch.tensor([[1.0, 1.0]]), torch.tensor([[3_000_000_000]]), torch.tensor(0))
    torch.testing.assert_close(expected_share({"a": big, "b": big}, 12_000_000_000), torch.tensor([1.0]))


def test_misuse_is_named():
    with pytest.raises(ConvertError, match="with_decisions"):
        vr.efficiency_loss({})
    with pytest.raises(ConvertError, match="dense"):
        vr.efficiency_loss({"a": decision([FULL])}, target=0.5)
