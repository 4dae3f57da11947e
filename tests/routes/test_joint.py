"""Routes and router trained together, on copies: the network of the other tests stays as it is."""

import copy

import pytest
import torch

import vared2_fx as vr
from vared2_fx.errors import ConvertError, DataError, TrainError
from vared2_fx.routes import measure_routes
from vared2_fx.routes.curve import mean_quality


def make_routed(dynamic, loader):
    dynamic = copy.deepcopy(dynamic)
    return dynamic, vr.train_router(dynamic, vr.find_routes(dynamic, loader), loader, loader, epochs=10)


def test_it_gets_better_or_is_undone(dynamic, loader):
    """A third of the labels are wrong at first, and there is room in the weights for all of them."""
    dynamic, routed = make_routed(dynamic, loader)
    modes = [module.training for module in dynamic.modules()]
    joint = vr.finetune_routes(dynamic, routed, loader, loader, loader, epochs=40, lr=1e-2, router_epochs=10)
    assert joint is not routed
    assert [module.training for module in dynamic.modules()] == modes
    low = min(joint.curve[0].share, routed.curve[0].share)
    assert mean_quality(joint.curve, low) > mean_quality(routed.curve, low)
    for point in joint.curve:  # the curve is what the new weights do
        assert joint.evaluate(loader, budget=point.share).accuracy == pytest.approx(point.quality, abs=1e-6)
    for before, after in zip(routed.routes.routes, joint.routes.routes, strict=True):
        assert before.choices == after.choices
        assert before.macs == after.macs
    assert joint.routes == measure_routes(dynamic, joint.routes, loader)


def test_what_is_no_better_is_given_back(dynamic, loader):
    dynamic, routed = make_routed(dynamic, loader)
    before = copy.deepcopy(dynamic.state_dict())
    # a rate that ruins every answer
    joint = vr.finetune_routes(dynamic, routed, loader, loader, loader, epochs=2, lr=30.0, router_epochs=2)
    assert joint is routed
    after = dynamic.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_labels_the_full_answers_are_learned(dynamic, clips, loader):
    dynamic = copy.deepcopy(dynamic)
    routed = vr.train_router(dynamic, vr.find_routes(dynamic, clips), clips, clips, epochs=2)
    joint = vr.finetune_routes(dynamic, routed, clips, clips, clips, epochs=2, lr=1e-3, router_epochs=2)
    assert not joint.labelled


def test_each_clip_is_sent_as_the_routed_network_sends_it(routed, clips):
    for point in routed.curve:
        assert torch.equal(routed.choose(clips, budget=point.share), routed.answer(clips, budget=point.share).routes)


def test_errors_change_nothing(dynamic, loader, clips):
    dynamic, routed = make_routed(dynamic, loader)
    before = copy.deepcopy(dynamic.state_dict())
    with pytest.raises(ConvertError, match="share"):
        vr.finetune_routes(copy.deepcopy(dynamic), routed, loader, loader, loader)
    with pytest.raises(TrainError, match="epochs"):
        vr.finetune_routes(dynamic, routed, loader, loader, loader, epochs=0)
    with pytest.raises(DataError, match="empty"):
        vr.finetune_routes(dynamic, routed, [], loader, loader)
    with pytest.raises(DataError, match="after clips of"):
        vr.finetune_routes(dynamic, routed, [*loader, (clips[:, :, :4], torch.zeros(24).long())], loader, loader)
    with pytest.raises(DataError, match="gave no clips"):
        vr.finetune_routes(dynamic, routed, loader, [], loader, epochs=1, lr=1e-2)
    after = dynamic.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
