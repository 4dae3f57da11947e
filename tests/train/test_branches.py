"""Training where a convolution is in a branch on values, or called twice, inside what torch.fx cannot follow."""

import logging

import pytest
import torch
from networks import Net, make_clip
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx.passes.rewrite import regions
from vared2_fx.train.look import Look, state_of


class Seldom(nn.Module):
    """Its convolution runs for bright batches only, so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.conv, self.times = nn.Conv3d(3, 3, 3, padding=1), times

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1:
            for _ in range(self.times):
                x = self.conv(x)
        return x


class Branching(Net):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.first = Seldom(times)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.first(x))


SELDOM = "first.conv"
DARK, DARKER, BRIGHT, BRIGHTER = (make_clip(6, 3, 8, 8, 8, seed=seed) + 2 * (seed // 2) for seed in range(4))
LABELS = torch.arange(6) % 4
CASES = {
    "never taken": (1, [DARK, DARKER]),
    "taken in some batches": (1, [DARK, BRIGHT, DARKER]),
    "called twice": (2, [BRIGHT, BRIGHTER]),
    "as often as there are batches": (2, [DARK, BRIGHT]),
}


def branching(times: int) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    dynamic = vr.convert(Branching(times).eval(), config=vr.ConvertConfig(min_channels=1))
    assert list(regions(dynamic)) == [SELDOM, "a", "b"]
    return dynamic


def labelled(clips: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(batch, LABELS) for batch in clips]


@pytest.mark.parametrize(("times", "clips"), CASES.values(), ids=CASES)
def test_gates_that_not_every_clip_asked_once_stay_as_they_were(times, clips, caplog):
    dynamic = branching(times)
    gates = {path: region.gate for path, region in regions(dynamic).items()}
    before = state_of(gates)
    with caplog.at_level(logging.INFO, "vared2_fx"):
        fit = vr.fit_gates(dynamic, labelled(clips), loss_weight=1e-3)
    assert f"not asked once for every clip: {SELDOM}" in caplog.text
    for path, gate in gates.items():
        same = [torch.equal(value, before[path][name]) for name, value in gate.state_dict().items()]
        assert all(same) == (path == SELDOM)
    assert fit.num_clips == len(clips) * len(LABELS)
    assert vr.evaluate(dynamic, labelled(clips)).share < 0.9, "the others save"


def test_the_others_are_settled():
    dynamic, loader = branching(times=1), labelled([DARK, BRIGHT, DARKER])
    fit = vr.fit_gates(dynamic, loader, loss_weight=20.0, settle=True, rounds=1)
    assert fit.settled is not None
    assert set(fit.settled) == {"a", "b"}


@pytest.mark.parametrize(("times", "clips"), CASES.values(), ids=CASES)
def test_every_row_of_features_has_its_own_prices(times, clips):
    dynamic = branching(times)
    look = Look(dynamic, {path: region.gate for path, region in regions(dynamic).items()})
    for own in (False, True):
        look.over(labelled(clips), own=own)
    num_rows = (3 + 1) * len(LABELS) * len(clips)
    assert len(look.prices(1.0)) == len(torch.cat(look.sources)) == num_rows
    assert {path: len(torch.cat(rows)) for path, rows in look.features.items()} == {"a": num_rows, "b": num_rows}


def test_branches_that_every_clip_takes_are_fitted():  # the control
    dynamic = branching(times=1)
    gate = regions(dynamic)[SELDOM].gate
    before = gate.out.weight.clone()
    vr.fit_gates(dynamic, labelled([BRIGHT]))
    assert not torch.equal(gate.out.weight, before)


def test_without_any_gate_to_fit_nothing_changes():
    model = Branching(times=1).eval()
    dynamic = vr.convert(model, config=vr.ConvertConfig(min_channels=1, include=(SELDOM,)))
    fit = vr.fit_gates(dynamic, labelled([DARK]), settle=True)
    assert fit.settled is None
    assert torch.equal(dynamic(DARK), model(DARK))


def test_variants_first_trains_beside_a_branch_that_no_clip_takes():
    dynamic, loader = branching(times=1), labelled([DARK])
    config = vr.FinetuneConfig(schedule="variants_first", epochs=2, own_share=0.5, progress=False)
    result = vr.finetune(dynamic, loader, loader, config)
    assert [epoch.epoch for epoch in result.history] == [0, 1, 2]
