"""Whether a gate found something: kept where it holds for other videos, settled at one choice where it does not."""

import pytest
import torch

from vared2_fx.layers import Choice, ChoiceGrid, Gate
from vared2_fx.train.regress import fit_gate, standardise

VIDEOS, COPIES = 60, 4
LADDER = [Choice(1, 1.0), Choice(2, 1.0)]


def make_gate() -> Gate:
    torch.manual_seed(0)
    return Gate(2, ChoiceGrid((1, 2), (1.0,)), lambda frames: frames)


def features_of(values: torch.Tensor) -> torch.Tensor:
    """Rows (N, F) of which the first feature is `values`, the others noise."""
    torch.manual_seed(1)
    features = torch.randn(len(values), make_gate().hidden.in_features)
    features[:, 0] = values
    return features


def fitted(features: torch.Tensor, prices: torch.Tensor, sources: torch.Tensor | None) -> tuple[Gate, bool]:
    gate = make_gate()
    standardise(gate, features)
    return gate, fit_gate(gate, features, prices, LADDER, sources)


def decisions(gate: Gate, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return gate.eval().logits(gate.standardised(features))[:, :2].argmax(1)


def test_what_holds_for_other_videos_is_kept():
    values = torch.randn(VIDEOS * COPIES, generator=torch.Generator().manual_seed(2))
    features = features_of(values)
    needy = (values > 0).float()
    gate, apart = fitted(features, torch.stack([torch.full_like(needy, 0.6), needy], 1), torch.arange(len(values)))
    assert apart
    assert (decisions(gate, features) == (values <= 0)).float().mean() > 0.9


def test_what_is_chance_is_settled():
    """Prices have nothing to do with the features; the second choice is the cheaper one in the mean."""
    features = features_of(torch.randn(VIDEOS * COPIES))
    chance = torch.rand(VIDEOS * COPIES, generator=torch.Generator().manual_seed(3))
    prices = torch.stack([torch.full_like(chance, 0.6), chance], 1)
    gate, apart = fitted(features, prices, torch.arange(len(chance)))
    assert not apart
    assert (decisions(gate, 100 * features) == 1).all(), "one choice for all, whatever comes"


@pytest.mark.parametrize("named", [True, False])
def test_copies_of_a_video_are_held_out_together(named):
    """Known by heart, a video's other copies are no evidence; who does not say what is a copy is fooled."""
    believed = 0
    for seed in range(5):
        torch.manual_seed(100 + seed)
        chance = torch.rand(VIDEOS).repeat(COPIES)
        features = (3 * torch.randn(VIDEOS, make_gate().hidden.in_features)).repeat(COPIES, 1)
        features += 0.1 * torch.randn_like(features)
        sources = torch.arange(VIDEOS).repeat(COPIES) if named else torch.arange(VIDEOS * COPIES)
        believed += fitted(features, torch.stack([torch.full_like(chance, 0.5), chance], 1), sources)[1]
    assert believed <= 1 if named else believed >= 4, "by luck one of forty is, named"


def test_without_sources_a_gate_is_believed():
    chance = torch.rand(VIDEOS, generator=torch.Generator().manual_seed(3))
    features = features_of(torch.randn(VIDEOS))
    gate, apart = fitted(features, torch.stack([1 - chance, chance], 1), None)
    assert apart
    assert len(decisions(gate, features).unique()) == 2, "it has learned these by heart"


def test_few_videos_prove_nothing_and_the_gate_is_believed():
    features = features_of(torch.randn(8))
    chance = torch.rand(8)
    assert fitted(features, torch.stack([1 - chance, chance], 1), torch.arange(8))[1]
