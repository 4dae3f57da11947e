"""One gate: it learns what its features tell, or takes one choice whatever it sees."""

import torch

from vared2_fx.layers import Choice, ChoiceGrid, Gate
from vared2_fx.train.regress import fit_each, settle_gate, standardise

LADDER = [Choice(1, 1.0), Choice(2, 1.0)]


def make_gate() -> Gate:
    torch.manual_seed(0)
    return Gate(2, ChoiceGrid((1, 2), (1.0,)), lambda frames: frames)


def decisions(gate: Gate, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return gate.eval().logits(gate.standardised(features))[:, :2].argmax(1)


def test_a_gate_learns_which_clips_need_more():
    gate = make_gate().train()
    features = torch.randn(400, gate.hidden.in_features)
    needy = (features[:, 0] > 0).float()
    standardise(gate, features)
    fit_each([gate], [features], torch.stack([torch.full_like(needy, 0.6), needy], 1), LADDER)
    assert gate.training
    assert (decisions(gate, features) == (features[:, 0] <= 0)).float().mean() > 0.9


def test_gates_fitted_together_learn_each_from_its_own_features():
    gates = [make_gate(), Gate(3, ChoiceGrid((1, 2), (1.0,)), lambda frames: frames)]
    features = [torch.randn(800, gate.hidden.in_features) for gate in gates]
    needy = (features[1][:, 0] > 0).float()  # which the first gate cannot know
    prices = torch.stack([torch.full_like(needy, 0.6), needy], 1)
    for gate, seen in zip(gates, features, strict=True):
        standardise(gate, seen)
    fit_each(gates, [seen[:400] for seen in features], prices[:400], LADDER)
    right = [
        (decisions(gate, seen[400:]) == (needy[400:] == 0)).float().mean()
        for gate, seen in zip(gates, features, strict=True)
    ]
    assert right[0] < 0.6
    assert right[1] > 0.85


def test_a_settled_gate_takes_one_choice_whatever_comes():
    gate = make_gate()
    settle_gate(gate, Choice(4, 0.5))  # of the whole network; its own nearest is (2, 1)
    assert (decisions(gate, 100 * torch.randn(50, gate.hidden.in_features)) == 1).all()
