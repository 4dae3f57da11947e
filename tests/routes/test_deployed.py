"""Routes in engines and from many threads."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import vared2_fx as vr
from vared2_fx.errors import ConvertError, DeployError
from vared2_fx.runtime import chunks, taken


def test_how_clips_lie_in_memory_makes_no_difference(deployed, routed, clips):
    other = clips.to(memory_format=torch.channels_last_3d)
    for network in (deployed, routed):
        torch.testing.assert_close(network(other), network(clips), rtol=1e-3, atol=1e-4)


def check_answers(fast, routed, clips) -> None:
    for point in routed.curve:
        wanted, got = routed.answer(clips, budget=point.share), fast.answer(clips, point)
        assert torch.equal(got.routes, wanted.routes)
        torch.testing.assert_close(got.output, wanted.output, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(got.shares, wanted.shares)


def test_an_engine_answers_as_torch_does(deployed, routed, clips):
    check_answers(deployed, routed, clips)
    assert str(deployed).startswith("onnx")


@pytest.mark.slow
def test_torch_answers_as_torch_does(routed, clips):
    check_answers(vr.deploy_routed(routed, "torch", threads=1), routed, clips)


def test_buckets_are_cut_into_what_was_compiled():
    assert [part.stop - part.start for part in chunks(15, (1, 2, 4, 8))] == [8, 4, 2, 1]
    assert [part.stop - part.start for part in chunks(3, (1,))] == [1, 1, 1]
    assert chunks(5, ()) == [slice(0, 5)]
    assert chunks(0, (1,)) == chunks(0, ()) == []


@pytest.mark.slow
def test_openvino_compiles_no_size_that_was_not_chosen(routed, clips):
    fast = vr.deploy_routed(routed, "openvino", threads=1, sizes=(1, 4))
    check_answers(fast, routed, clips)
    before = [set(d.engine._compiled) for d in (*fast.routes, fast.router)]
    fast(clips[:7])
    assert [set(d.engine._compiled) for d in (*fast.routes, fast.router)] == before


def test_a_target_in_ms_takes_a_point_that_is_fast_enough(deployed):
    costs = [deployed.expected_ms(point) for point in deployed.curve]
    assert deployed.point(target_ms=1e9) == deployed.curve[-1]
    assert deployed.point(target_ms=1e-6) == deployed.curve[costs.index(min(costs))]
    middle = sorted(costs)[len(costs) // 2]
    assert deployed.expected_ms(deployed.point(target_ms=middle)) <= middle


def test_the_longest_time_is_that_of_any_route_that_scores_can_lead_to(deployed):
    """Every corner of what a router may say is tried; what validation clips took does not count."""
    last, routes = 3, (*deployed.routes[:1] * 3, deployed.routes[-1])
    times = {"route_ms": (1.0, 20.0, 7.0, 10.0), "router_ms": 0.5}
    fast = replace(deployed, routes=routes, shares=(0.2, 0.4, 0.7, 1.0), **times)
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=last)))
    prices = (0.0, 0.3, 1.1, 1.7, 3.0, 9.0)
    led = [(None, price, set(taken(corners, fast.shares, price).tolist())) for price in prices]
    for first, price, routes in [*led, *((k, 0.0, {k}) for k in range(last + 1))]:
        for confidence in (0.0, 0.5):
            knobs = {"first": first, "price": price, "confidence": confidence, "mix": (1.0, *[0.0] * last)}
            longest = max(fast.route_ms[k] + 10.0 * (confidence > 0 and k < last) for k in routes)
            assert fast.longest_ms(replace(fast.curve[0], **knobs)) == longest + 0.5 * (first is None)


def test_deploy_takes_routes_as_well(routed, clips):
    fast = vr.deploy(routed, "onnx", threads=1)
    torch.testing.assert_close(fast(clips), routed(clips), rtol=1e-3, atol=1e-4)
    with pytest.raises(DeployError, match="leave example_inputs out"):
        vr.deploy(routed, "onnx", example_inputs=clips)


@pytest.mark.slow
def test_torch_compiles_nothing_for_clips_that_lie_or_were_made_otherwise(routed, clips):
    """Needs a compiler."""
    fast = vr.deploy_routed(routed, "compile", threads=1, sizes=(1, 2))
    check_answers(fast, routed, clips)
    made = [*fast.routes, fast.router]
    before = [len(d.engine._shapes) for d in made]
    wanted = fast(clips)
    torch.testing.assert_close(fast(clips.to(memory_format=torch.channels_last_3d)), wanted)
    with torch.inference_mode():
        torch.testing.assert_close(fast(clips.clone()), wanted)
    assert [len(d.engine._shapes) for d in made] == before


def test_errors(deployed, routed, clips):
    with pytest.raises(DeployError, match="these routes take"):
        deployed(clips[0])
    with pytest.raises(DeployError, match="float32"):
        deployed(clips.double())
    with pytest.raises(DeployError, match="target_ms"):
        deployed(clips, target_ms=0)
    with pytest.raises(ConvertError, match="budget"):
        deployed(clips, budget=-1)
    with pytest.raises(DeployError, match="1 among them"):
        vr.deploy_routed(routed, "openvino", sizes=(2, 4))


def test_threads_get_the_answers_of_a_single_one(deployed, clips):
    parts = list(clips.split(5))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(deployed, parts * 3))
    for n, answer in enumerate(answers):
        torch.testing.assert_close(answer, deployed(parts[n % len(parts)]))
