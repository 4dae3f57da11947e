"""A way back: from wrappers, after errors, in threads; and what has none is refused."""

import asyncio
import warnings

import pytest
import torch
from networks import CONVS, Net, TinyNet, make_clip, randomise_gates, randomise_rebuilds, tiny_net
from torch import nn

import vared2_fx as vr
from vared2_fx.errors import ConvertError
from vared2_fx.passes.rewrite import with_decisions

CLIP = make_clip(3, 3, 8, 16, 16)


@pytest.fixture(scope="module")
def dynamic():
    return randomise_gates(randomise_rebuilds(vr.convert(tiny_net())), CLIP)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, with_decisions, lambda d: nn.DataParallel(with_decisions(d))]
)
def test_wrappers_are_seen_through(dynamic, wrap):
    wrapped = wrap(dynamic)
    assert torch.equal(vr.unload(wrapped)(CLIP), tiny_net()(CLIP))
    assert list(vr.unload(wrapped).state_dict()) == list(tiny_net().state_dict())
    assert torch.equal(vr.specialize(wrapped, {"*": (2, 0.5)})(CLIP), vr.specialize(dynamic, {"*": (2, 0.5)})(CLIP))
    with vr.policy(wrapped, {"stem": (4, 0.5)}) as taken:
        assert taken == {"stem.0": (4, 0.5)}
    with vr.full(wrapped):
        assert torch.equal(dynamic(CLIP), tiny_net()(CLIP))


@pytest.mark.parametrize("call", [vr.full, vr.unload, lambda d: vr.policy(d, {}), lambda d: vr.specialize(d, {})])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (tiny_net, "TinyNet"),
        (lambda: torch.fx.symbolic_trace(Net()), "Net"),
        (lambda: vr.specialize(vr.convert(tiny_net()), {}), "TinyNet"),
        (lambda: vr.unload(vr.convert(tiny_net())), "GraphModule"),
        (lambda: nn.DataParallel(Net()), "Net"),
        (lambda: None, "NoneType"),
    ],
)
def test_what_holds_no_region_is_refused(call, make, kind):
    with pytest.raises(ConvertError, match=rf"this {kind} holds no dynamic region. Pass what convert or load returned"):
        with_block = call(make())
        with with_block:
            pass


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("stem", ["stem.0"]),
        ("*.0", ["stem.0", "depthwise.0", "down.0"]),
        (r"re:(stem|down)\.\d", ["stem.0", "down.0"]),
        ("re:[a-z]+", ["expand", "grouped", "last"]),
    ],
)
def test_regions_are_named_as_layers_are(dynamic, pattern, named):
    with vr.policy(dynamic, {pattern: (2, 0.5)}) as taken:
        assert list(taken) == named
    static = vr.specialize(dynamic, {pattern: (2, 0.5)})
    assert [path for path in CONVS if static.get_submodule(path).choice == (2, 0.5)] == named


@pytest.mark.parametrize("pattern", ["re:(", "", "re:stem", "dwon", "type:Conv3d"])
def test_a_pattern_that_names_nothing_changes_nothing(dynamic, pattern):
    before = dynamic(CLIP)
    with vr.policy(dynamic, {"expand": (2, 0.5)}):
        outer = dynamic(CLIP)
        with pytest.raises(ConvertError, match="policy: "), vr.policy(dynamic, {"*": (4, 0.5), pattern: (2, 0.5)}):
            pass
        assert torch.equal(dynamic(CLIP), outer)
    assert torch.equal(dynamic(CLIP), before)


def test_an_error_inside_of_the_network_ends_the_blocks(dynamic):
    before = dynamic(CLIP)
    with pytest.raises(RuntimeError), vr.full(dynamic), vr.policy(dynamic, {"stem": (2, 0.5)}):
        dynamic(CLIP[:, :2])
    assert torch.equal(dynamic(CLIP), before)


def test_tasks_of_one_thread_have_policies_of_their_own(dynamic):
    choices = [(1, 1.0), (2, 0.5), (4, 0.5)]

    async def run(choice: tuple[int, float]) -> torch.Tensor:
        with vr.policy(dynamic, {"*": choice}):
            await asyncio.sleep(0)  # the others enter theirs
            return dynamic(CLIP)

    async def all_of_them() -> list[torch.Tensor]:
        return await asyncio.gather(*map(run, choices))

    for choice, output in zip(choices, asyncio.run(all_of_them()), strict=True):
        with vr.policy(dynamic, {"*": choice}):
            assert torch.equal(output, dynamic(CLIP))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_networks_with_normed_weights_come_back(norm):
    """The old forms keep a weight with a history, which nothing can copy as it is."""
    model = tiny_net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm(model.expand)
    model.eval()(CLIP)
    dynamic = vr.convert(model, CLIP)
    dynamic(CLIP)
    back = vr.unload(dynamic)
    assert torch.equal(back(CLIP), model(CLIP))
    assert list(back.state_dict()) == list(model.state_dict())
    dynamic.train()(CLIP).sum().backward()
    assert all(p.grad is not None for name, p in dynamic.named_parameters() if name.startswith("expand."))
    assert all(p.grad is None for p in (*model.parameters(), *back.parameters()))


def test_back_from_a_saved_network(tmp_path):
    model = tiny_net()
    loaded = vr.load(vr.save(vr.convert(model), tmp_path), base=TinyNet())
    assert torch.equal(vr.unload(loaded)(CLIP), model(CLIP))
