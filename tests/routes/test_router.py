"""The router and what it is compared with."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from networks import make_clip, tiny_net
from torch.utils.flop_counter import FlopCounterMode

import vared2_fx as vr
from vared2_fx.errors import ConvertError, DataError, TrainError
from vared2_fx.routes.curve import at, front, measure, winner
from vared2_fx.routes.router import fit_router, make_router
from vared2_fx.runtime import largest_softmax, route_batch, taken


def test_every_clip_gets_its_routes_answer(routed, clips):
    for point in routed.curve:
        got = routed.answer(clips, budget=point.share)
        assert got.shares.mean().item() == pytest.approx(point.share, rel=1e-6)
        for n, (route, again) in enumerate(zip(got.routes.tolist(), got.again.tolist(), strict=True)):
            network = routed.networks[-1 if again else route].eval()
            with torch.no_grad():
                torch.testing.assert_close(got.output[n : n + 1], network(clips[n : n + 1]), rtol=1e-4, atol=1e-5)


def test_the_curve_is_what_the_routed_network_does(routed, loader):
    for point in routed.curve:
        measured = routed.evaluate(loader, budget=point.share)
        assert measured.accuracy == pytest.approx(point.quality, abs=1e-6)
        assert measured.share == pytest.approx(point.share, rel=1e-6)
    shares = [point.share for point in routed.curve]
    assert shares == sorted(shares)
    assert routed.point(1e-9) == routed.curve[0]
    assert "chosen by" in str(routed)


def test_without_labels_the_full_networks_answer_is_kept(dynamic, clips, loader):
    routed = vr.train_router(dynamic, vr.find_routes(dynamic, clips), clips, clips, epochs=2)
    assert not routed.labelled
    assert routed.curve[-1].quality == 1.0
    assert "agrees" in str(routed)


def test_a_network_in_bfloat16(dynamic, clips, loader):
    half = copy.deepcopy(dynamic).bfloat16()
    routed = vr.train_router(half, vr.find_routes(half, loader), loader, loader, epochs=2)
    assert {p.dtype for p in routed.router.parameters()} == {torch.float32}
    for point in routed.curve:
        assert routed.evaluate(loader, budget=point.share).accuracy == pytest.approx(point.quality, abs=1e-6)
    got = routed.answer(clips)
    assert got.output.dtype == torch.float32
    for n, (route, again) in enumerate(zip(got.routes.tolist(), got.again.tolist(), strict=True)):
        with torch.no_grad():
            alone = routed.networks[-1 if again else route].eval()(clips[n : n + 1].bfloat16())
        torch.testing.assert_close(got.output[n : n + 1], alone.float(), rtol=0, atol=2**-6)  # 8 bits, scores below 2
    assert torch.equal(routed.choose(clips, budget=0.5), routed.answer(clips, budget=0.5).routes)


@pytest.mark.gpu
def test_on_a_gpu(dynamic, clips, loader):
    """Clips may be there or here; the router is where the network is."""
    there = copy.deepcopy(dynamic).cuda()
    routed = vr.train_router(there, vr.find_routes(there, loader), loader, loader, epochs=2)
    assert {p.device.type for p in routed.router.parameters()} == {"cuda"}
    for point in routed.curve:
        got, wanted = routed.answer(clips.cuda(), budget=point.share), routed.answer(clips, budget=point.share)
        assert (got.output.device.type, wanted.output.device.type) == ("cuda", "cpu")
        torch.testing.assert_close(got.output.cpu(), wanted.output)
        assert torch.equal(got.routes, wanted.routes)
        assert routed.evaluate(loader, budget=point.share).accuracy == pytest.approx(point.quality, abs=1e-6)
    tuned = vr.finetune_routes(there, routed, loader, loader, loader, epochs=1, router_epochs=2)
    assert vr.deploy_routed(tuned, "torch")(clips).shape == (len(clips), 5)


def test_a_budget_that_cannot_be_is_refused(routed, clips):
    for budget in (0, -1, math.nan, "60%"):
        with pytest.raises(ConvertError, match="budget"):
            routed(clips, budget=budget)
    with pytest.raises(DataError, match="these routes take"):
        routed(clips[:, :, :4])


def test_errors(dynamic, loader, clips):
    routes = vr.find_routes(dynamic, loader)
    with pytest.raises(TrainError, match="epochs"):
        vr.train_router(dynamic, routes, loader, loader, epochs=0)
    with pytest.raises(DataError, match="gave no clips"):
        vr.train_router(dynamic, routes, [], loader)
    with pytest.raises(DataError, match="give one kind"):
        vr.train_router(dynamic, routes, [*loader, clips], loader)
    with pytest.raises(DataError, match="after clips of"):
        vr.train_router(dynamic, routes, [clips[:, :, :4]], loader)


@pytest.mark.parametrize("shape", [(3, 16, 64, 64), (3, 16, 224, 224), (3, 32, 112, 171), (3, 2, 24, 24)])
def test_the_routers_price_is_what_a_counter_counts(shape):
    router = make_router(shape, 3, 1e12).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert router(make_clip(1, *shape)).shape == (1, 3)
    assert router.macs - math.prod(shape[:1] + shape[2:]) * len(range(0, shape[1], router.step)) == (
        counter.get_total_flops() // 2
    )


def test_a_router_is_below_a_percent():
    assert make_router((3, 16, 224, 224), 3, 0.01 * 4.7e9).macs < 0.01 * 4.7e9  # x3d_m
    assert make_router((3, 16, 64, 64), 3, 0.01 * 546e6).macs < 0.01 * 546e6  # the demo's network


def test_a_router_learns_to_tell_motion_from_noise():
    torch.manual_seed(0)
    still = make_clip(24, 3, 1, 32, 32).expand(-1, -1, 8, -1, -1) + 0.1 * make_clip(24, 3, 8, 32, 32, seed=1)
    moving = torch.stack([still.roll(t, dims=-1)[:, :, t] for t in range(8)], dim=2)
    router = make_router((3, 8, 32, 32), 1, 1e9)
    views = router.look(torch.cat([still, moving])).detach()
    keeps = (torch.arange(48) < 24).float()[:, None]
    order = torch.arange(48) % 2 == 0
    fit_router(router, views[order], keeps[order], epochs=30)
    with torch.no_grad():
        told = router.scores(views[~order]) > 0
    assert (told == (keeps[~order] > 0)).float().mean() >= 0.9


def test_a_router_that_knows_wins_and_one_that_guesses_loses():
    rng = np.random.default_rng(0)
    right = np.stack([rng.random(400) < 0.5, np.ones(400)], 1).astype(float)
    flat = np.full((400, 2), 0.5)
    curves = measure(right[:, :1] * 0.98 + 0.01, right, flat, (0.3, 1.0), 0.01)
    assert winner(curves) == "router"
    assert at(curves["router"], 0.7).quality > 0.95
    sure = np.where(right > 0, rng.uniform(0.6, 1, right.shape), rng.uniform(0.3, 0.7, right.shape))
    assert winner(measure(rng.random((400, 1)), right, sure, (0.1, 1.0), 0.01)) == "cascade"


def test_no_way_to_choose_falls_behind_a_single_route():
    """Scores that mean nothing, and confidence that means nothing: what is left are the routes themselves."""
    rng = np.random.default_rng(0)
    right = (rng.random((400, 3)) < (0.5, 0.7, 0.9)).astype(float)
    curves = measure(rng.random((400, 2)), right, rng.random((400, 3)), (0.3, 0.6, 1.0), 0.01)
    for curve in curves.values():
        for route, share in enumerate((0.3, 0.6, 1.0)):
            assert at(curve, share).quality >= right[:, route].mean()
        assert curve[-1].share <= 1.01 + 0.3


def test_prices_move_from_the_full_route_to_the_cheapest():
    keeps, shares = np.array([[0.2, 0.9], [0.8, 0.85]]), (0.25, 0.5, 1.0)
    assert taken(keeps, shares, 0.0).tolist() == [2, 2]
    assert taken(keeps, shares, 0.5).tolist() == [1, 0]
    assert taken(keeps, shares, 100.0).tolist() == [0, 0]


def test_the_full_network_runs_where_a_route_is_not_confident():
    runs = []

    def run(route, places):
        runs.append((route, places.tolist()))
        return np.stack([places * (1.0 + 9 * route), np.zeros(len(places))], 1)

    knobs = {"first": 0, "price": 0.0, "confidence": 0.8}
    out, first, again = route_batch(4, **knobs, shares=(0.5, 1.0), score=lambda: 1 / 0, run=run)
    assert runs == [(0, [0, 1, 2, 3]), (1, [0, 1])]  # σ(1) = 0.73, σ(2) = 0.88
    assert out[:, 0].tolist() == [0, 10, 2, 3]
    assert first.tolist() == [0] * 4
    assert again.tolist() == [True, True, False, False]
    assert largest_softmax(np.array([[1.0, 0.0]]))[0] == pytest.approx(torch.tensor([1.0, 0]).softmax(0).max().item())


def test_a_front_has_no_point_that_another_beats(routed):
    points = [p for curve in routed.curves.values() for p in curve]
    best = front(points)
    assert all(a.share < b.share and a.quality < b.quality for a, b in itertools.pairwise(best))


def test_gates_that_decide_alike_make_one_route(clips, loader):
    """It is a static network then, and can be deployed as one."""
    fresh = vr.convert(tiny_net(), clips[:2])
    routed = vr.train_router(fresh, vr.find_routes(fresh, loader), loader, loader, epochs=1)
    assert len(routed.networks) == 1
    with torch.no_grad():
        torch.testing.assert_close(routed(clips), fresh(clips))
    assert routed.answer(clips).routes.tolist() == [0] * len(clips)
    assert vr.deploy_routed(routed, "torch").router is None
