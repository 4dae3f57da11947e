"""Joint choices of the gates, and the few that stand for them."""

import itertools

import numpy as np
import pytest
import torch
from networks import make_clip, randomise_gates
from torch import nn

import vared2_fx as vr
from vared2_fx.errors import ConvertError, DataError
from vared2_fx.layers import FULL
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.statistics import computed_macs, dense_macs
from vared2_fx.routes.medoids import medoids


@pytest.fixture(scope="module")
def routes(dynamic, loader):
    return vr.find_routes(dynamic, loader, 4)


def test_routes_are_choices_that_gates_took_and_the_full_one(dynamic, clips, routes):
    with torch.no_grad():
        _, decisions = vr.with_decisions(dynamic).eval()(clips)
    taken = {tuple(map(tuple, joint)) for joint in zip(*(d.weights.tolist() for d in decisions.values()), strict=True)}
    assert routes.num_joint == len(taken) > 4
    grids = {path: region.grid for path, region in regions(dynamic).items()}
    for route in routes.routes[:-1]:
        rows = []
        for path, choice in route.choices.items():
            j, i = grids[path].index(choice)
            strides, shares = (len(part) for part in (grids[path].frame_strides, grids[path].channel_shares))
            rows.append(tuple(float(k == j) for k in range(strides)) + tuple(float(k == i) for k in range(shares)))
        assert tuple(rows) in taken
    assert set(routes.routes[-1].choices.values()) == {FULL}


def test_the_last_route_computes_everything_where_rebuilding_costs_more_than_it_saves():
    """As in a depthwise pointwise convolution."""
    clips = make_clip(12, 8, 8, 6, 6)
    for seed in range(6):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv3d(8, 8, 1, groups=8), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        config = vr.ConvertConfig(granularity="conv", min_channels=4, min_total_share=0.0)
        dynamic = randomise_gates(vr.convert(net.eval(), clips[:1], config), clips).eval()
        found = vr.find_routes(dynamic, clips)
        assert set(found.routes[-1].choices.values()) == {FULL}
        assert all(route.macs < found.routes[-1].macs for route in found.routes[:-1])


def test_the_cheapest_is_the_cheapest_that_was_taken(dynamic, clips, routes):
    with torch.no_grad():
        decisions = vr.with_decisions(dynamic).eval()(clips)[1].values()
    saved = sum(d.macs[0, 0] + d.gate_macs - computed_macs(d) for d in decisions)
    assert routes.routes[0].macs == routes.dense_macs - int(saved.max())
    networks = routes.networks(dynamic)
    counted = [dense_macs(network, clips[:1]) for network in networks]
    macs = [route.macs for route in routes.routes]
    assert macs == sorted(macs)
    assert all(0.9 * own <= convs <= own for own, convs in zip(macs, counted, strict=True))  # without the rebuilding
    assert counted[-1] == routes.dense_macs


def test_what_is_said_is_what_the_static_networks_do(dynamic, clips, labels, routes):
    with torch.no_grad():
        gated = dynamic(clips).argmax(1)
        for route, network in zip(routes.routes, routes.networks(dynamic), strict=True):
            answers = network(clips).argmax(1)
            assert route.agreement == float((answers == gated).double().mean())
            assert route.accuracy == float((answers == labels).double().mean())
    assert sum(route.clips for route in routes.routes) == len(clips)
    evaluated = vr.evaluate(dynamic, [(clips, labels)])
    assert routes.gated.accuracy == pytest.approx(evaluated.accuracy)
    assert routes.gated.macs == pytest.approx(evaluated.mean_macs)
    assert routes.gated.agreement == 1.0
    assert "best single route" in str(routes)


def test_no_route_is_dominated_but_the_fixed_ones(routes):
    for a, b in itertools.combinations(routes.routes[1:-1], 2):
        assert a.macs < b.macs
        assert a.agreement < b.agreement


def test_without_labels_accuracy_is_unknown(dynamic, clips):
    found = vr.find_routes(dynamic, clips[:6], 2)
    assert found.routes[0].accuracy is found.gated.accuracy is None
    assert "unknown" in str(found)


def test_gates_that_decide_alike_are_told(clips):
    from networks import tiny_net

    dynamic = vr.convert(tiny_net(), clips[:2], vr.ConvertConfig(min_channels=4))
    found = vr.find_routes(dynamic, clips[:4])
    assert len(found.routes) == 1
    assert "train them first" in str(found)


def test_the_network_is_left_alone(dynamic, loader, untouched):
    with untouched(dynamic):
        vr.find_routes(dynamic, loader, 2)


def test_errors(dynamic, clips, loader):
    with pytest.raises(ConvertError, match="at least 2"):
        vr.find_routes(dynamic, loader, 1)
    with pytest.raises(ConvertError, match="no dynamic region"):
        vr.find_routes(vr.specialize(dynamic, {"*": FULL}), loader)
    with pytest.raises(DataError, match="gave no clips"):
        vr.find_routes(dynamic, [])
    with pytest.raises(DataError, match="Crop all clips alike"):
        vr.find_routes(dynamic, [clips, clips[:, :, :4]])
    with pytest.raises(DataError, match="same"):
        vr.find_routes(dynamic, iter([clips]))


def test_medoids_are_the_best_on_small_problems():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points, weights = rng.normal(size=(9, 2)), rng.integers(1, 5, 9).astype(float)
        distances = np.abs(points[:, None] - points[None]).sum(2)
        chosen = medoids(distances, weights, count=3, fixed=(4,))
        assert 4 in chosen
        assert len(chosen) == 3

        def cost(places, distances=distances, weights=weights):
            return weights @ distances[:, list(places)].min(1)

        best = min(cost({4, *pair}) for pair in itertools.combinations([p for p in range(9) if p != 4], 2))
        assert cost(chosen) <= 1.1 * best
    assert medoids(distances, weights, count=20) == list(range(9))
