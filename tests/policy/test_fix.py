"""Fixed choices: for a block of code, for one thread, or for good."""

import copy
import itertools
import logging
import threading

import pytest
import torch
from networks import CONVS, TinyNet, make_clip, randomise_gates, randomise_rebuilds, tiny_net
from torch import fx

import vared2_fx as vr
from vared2_fx import Choice, ConvertConfig
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError
from vared2_fx.layers import ChoiceGrid
from vared2_fx.passes.rewrite import with_decisions
from vared2_fx.policy.fix import resolve_choices

CLIP = make_clip(3, 3, 8, 16, 16)
NEAR = {"rtol": 1e-5, "atol": 1e-5}
"""Float32 and the same operations; a library may pick another kernel for another batch."""


@pytest.fixture(scope="module")
def dynamic():
    """Converted, its gates deciding from clip to clip."""
    return randomise_gates(randomise_rebuilds(vr.convert(tiny_net())), CLIP)


def picked(dynamic, clip=CLIP):
    return {path: decision.weights.tolist() for path, decision in with_decisions(dynamic)(clip)[1].items()}


@pytest.mark.parametrize("choice", [(1, 1.0), (2, 1.0), (4, 1.0), (1, 0.5), (2, 0.5), (4, 0.5)])
def test_a_forced_policy_is_the_specialised_network(dynamic, choice):
    with vr.policy(dynamic, {"*": choice}):
        forced = dynamic(CLIP)
    torch.testing.assert_close(forced, vr.specialize(dynamic, {"*": choice})(CLIP), **NEAR)


def test_random_policies_are_their_specialised_networks(dynamic):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        draws = torch.randint(6, (len(CONVS),), generator=generator).tolist()
        choices = {path: ((1, 2, 4)[d // 2], (1.0, 0.5)[d % 2]) for path, d in zip(CONVS, draws, strict=True)}
        with vr.policy(dynamic, choices):
            forced = dynamic(CLIP)
        torch.testing.assert_close(forced, vr.specialize(dynamic, choices)(CLIP), **NEAR)


def test_every_choice_gives_another_answer(dynamic):
    outputs = [vr.specialize(dynamic, {"*": choice})(CLIP) for choice in itertools.product((1, 2, 4), (1.0, 0.5))]
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in itertools.combinations(outputs, 2))


def test_full_is_the_original(dynamic):
    with vr.full(dynamic):
        assert torch.equal(dynamic(CLIP), tiny_net()(CLIP))
    assert not torch.allclose(dynamic(CLIP), tiny_net()(CLIP))


def test_a_batch_of_mixed_decisions_is_each_clip_alone(dynamic):
    together = dynamic(CLIP)
    torch.testing.assert_close(together, torch.cat([dynamic(clip[None]) for clip in CLIP]), **NEAR)
    assert torch.equal(dynamic(CLIP), together)
    assert any(len({tuple(row) for row in rows}) > 1 for rows in picked(dynamic).values()), "all clips alike"


def test_blocks_nest_and_end_also_by_an_error(dynamic):
    free = picked(dynamic)
    with vr.policy(dynamic, {"*": (2, 1.0)}) as outer:
        assert outer == dict.fromkeys(CONVS, Choice(2, 1.0))
        before = picked(dynamic)
        with vr.policy(dynamic, {"stem.0": (4, 0.5)}) as inner:
            assert inner == {"stem.0": Choice(4, 0.5)}
            assert picked(dynamic) == before | {"stem.0": [[0, 0, 1, 0, 1]] * 3}
            with pytest.raises(KeyError), vr.full(dynamic):
                assert picked(dynamic) == dict.fromkeys(CONVS, [[1, 0, 0, 1, 0]] * 3)
                raise KeyError
            assert picked(dynamic) == before | {"stem.0": [[0, 0, 1, 0, 1]] * 3}
        assert picked(dynamic) == before
    assert picked(dynamic) == free


def test_later_patterns_win(dynamic):
    with vr.policy(dynamic, {"*": (4, 0.5), "*.0": (2, 1.0), "down.*": (1, 0.5)}) as taken:
        assert taken["expand"] == (4, 0.5)
        assert taken["stem.0"] == (2, 1.0)
        assert taken["down.0"] == (1, 0.5)


def test_unnamed_regions_decide_for_themselves_or_are_full(dynamic):
    free = picked(dynamic)
    with vr.policy(dynamic, {"expand": (4, 0.5)}):
        now = picked(dynamic)
    assert now["stem.0"] == free["stem.0"]
    assert now["expand"] == [[0, 0, 1, 0, 1]] * 3
    static = vr.specialize(dynamic, {"expand": (4, 0.5)})
    assert static.get_submodule("stem.0").choice == (1, 1.0)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [((2, 0.5), (2, 0.5)), ((3, 0.7), (2, 1.0)), ((9, 0.1), (4, 0.5)), ((0, 2.0), (1, 1.0)), ((1, 0.5), (1, 0.5))],
)
def test_what_is_not_offered_takes_the_next_that_computes_no_less(asked, taken, caplog):
    with caplog.at_level(logging.INFO, "vared2_fx"):
        assert resolve_choices({"x": ChoiceGrid((1, 2, 4), (1.0, 0.5))}, {"x": asked}) == {"x": taken}
    assert ("is not offered" in caplog.text) == (asked != taken)


@pytest.mark.parametrize("call", [vr.policy, vr.specialize])
def test_a_pattern_that_matches_nothing_names_what_is_near(dynamic, call):
    message = r"'stem.1' matches none of the 6 dynamic regions; near it are stem.0"
    with pytest.raises(ConvertError, match=message), call(dynamic, {"stem.1": (2, 0.5)}):
        pass


def test_threads_do_not_see_each_others_policy(dynamic):
    """All threads are inside their blocks at the same time, on the same network."""
    choices: list[tuple[int, float] | None] = [(1, 1.0), (2, 0.5), (4, 0.5), None]
    expected = [dynamic(CLIP) if c is None else vr.specialize(dynamic, {"*": c})(CLIP) for c in choices]
    results: list[list[torch.Tensor]] = [[] for _ in choices]
    start = threading.Barrier(len(choices))

    def work(k: int) -> None:
        with vr.policy(dynamic, {} if choices[k] is None else {"*": choices[k]}):
            start.wait(10)
            for _ in range(5):
                results[k].append(dynamic(CLIP))
                start.wait(10)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(choices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, right in zip(results, expected, strict=True):
        assert len(result) == 5
        for output in result:
            torch.testing.assert_close(output, right, **NEAR)


def test_a_copy_is_not_fixed_with_its_original(dynamic):
    other = copy.deepcopy(dynamic)
    with vr.policy(dynamic, {"*": (4, 0.5)}):
        assert picked(other) == picked(copy.deepcopy(other))
        assert picked(other) != picked(dynamic)


def test_two_networks_may_be_fixed_at_once(dynamic):
    other = vr.convert(tiny_net(1), config=ConvertConfig(gate="soft_modulation"))
    with vr.policy(dynamic, {"*": (4, 0.5)}), vr.policy(other, {"*": (2, 1.0)}):
        assert picked(dynamic) == dict.fromkeys(CONVS, [[0, 0, 1, 0, 1]] * 3)
        assert picked(other) == dict.fromkeys(CONVS, [[0, 1, 0, 1, 0]] * 3)


def test_a_fixed_policy_can_be_trained():
    dynamic = randomise_rebuilds(vr.convert(tiny_net())).train()
    with vr.policy(dynamic, {"*": (2, 0.5)}):
        dynamic(CLIP).square().sum().backward()
    trained = {name for name, p in dynamic.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(".gate." in name for name in trained)
    # not all: what the next region skips has no say, such as the rebuilt channels of stem.0 in a depthwise convolution
    assert {"expand.frame_rebuilds.0.scale", "expand.channel_rebuilds.0.scale", "expand.body.weight"} <= trained


@pytest.mark.parametrize("training", [False, True])
def test_unload_is_the_way_back(training):
    model = tiny_net().train(training)
    model.norm.eval()
    dynamic = vr.convert(model, CLIP)
    back = vr.unload(dynamic)
    assert {path: module.training for path, module in back.named_modules()} == {
        path: module.training for path, module in model.named_modules()
    }
    assert list(back.state_dict()) == list(model.state_dict())
    assert torch.equal(back.eval()(CLIP), model.eval()(CLIP))
    assert dynamic.training == training
    assert vr.convert(back, CLIP) is not None
    with pytest.raises(ConvertError, match="not a converted network"):
        conversion(back)


def test_unload_brings_trained_weights_back_to_the_original_class(dynamic):
    changed, model = copy.deepcopy(dynamic), TinyNet().eval()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    model.load_state_dict(vr.unload(changed).state_dict())
    with vr.full(changed):
        assert torch.equal(model(CLIP), changed(CLIP))
    assert not torch.allclose(model(CLIP), tiny_net()(CLIP))


def test_unload_shares_nothing(dynamic):
    before, back = dynamic(CLIP), vr.unload(dynamic)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.zero_()
    assert torch.equal(dynamic(CLIP), before)


@pytest.mark.parametrize("rebuild", ["hold", "repeat", "interpolate"])
@pytest.mark.parametrize("num_frames", [5, 8])
def test_what_is_specialised_can_be_traced_and_exported_again(num_frames, rebuild):
    config = ConvertConfig(frame_rebuild=rebuild, channel_rebuild="depthwise")
    dynamic = randomise_rebuilds(vr.convert(tiny_net(), config=config))
    clip = make_clip(2, 3, num_frames, 16, 16)
    for choice in ((2, 1.0), (4, 0.5)):
        static = vr.specialize(dynamic, {"*": choice})
        torch.testing.assert_close(fx.symbolic_trace(static)(clip), static(clip), rtol=1e-5, atol=1e-5)
        exported = torch.export.export(static, (clip,)).module()
        torch.testing.assert_close(exported(clip), static(clip), rtol=1e-5, atol=1e-5)


def test_weights_are_shared_unless_asked_otherwise():
    dynamic, clip = vr.convert(tiny_net()), make_clip(2, 3, 8, 16, 16)
    shared, own = (vr.specialize(dynamic, {"*": (2, 0.5)}, share_weights=share) for share in (True, False))
    before = own(clip)
    torch.testing.assert_close(shared(clip), before, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in dynamic.parameters():
            parameter.mul_(1.1)
    assert torch.equal(own(clip), before)
    assert not torch.allclose(shared(clip), before)
