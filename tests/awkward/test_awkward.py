"""Awkward networks: each is converted exactly, or refused with its reason; none ends in a bare traceback."""

import pytest
import structures
import torch
from layers import LAYERS, STATIC
from networks import make_clip
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.passes.rewrite import with_decisions

CONFIG = ConvertConfig(min_macs_share=0.0, min_total_share=0.0)
CLIP = make_clip(2, 3, 6, 9, 8)
OTHER_CLIPS = (make_clip(1, 3, 6, 9, 8, seed=1), make_clip(3, 3, 9, 8, 9, seed=2))

CONVERTS: dict[str, dict[str, str]] = {
    "CalledTwice": {"b": "called_twice"},
    "Unrolled": {"b": "called_twice"},
    "OneModuleTwoNames": {"b": "called_twice"},
    "Inception": {},
    "Dense": {},
    "UNet": {"up": "transposed"},
    "SqueezeExcite": {"squeeze.1": "few_channels", "squeeze.3": "few_frames"},
    "ChannelShuffle": {},
    "NonLocal": {},
    "InPlace": {},
    "Frames": {"b": "few_frames"},
    "Outputs": {},
    "Multiple": {},
    "NeverCalled": {},
    "Named": {},
    "Repeated": {},
    "Counting": {},
    "Listed": {},
}
"""Networks of `structures`, with the convolutions that stay static and why."""

FOLLOWED_OR_WHOLE: dict[str, list[str]] = {
    "Asserting": [],
    "Autocast": [""],
    "Checking": [""],
    "Checkpointed": [],
    "OptionalMask": [""],
    "Reassigning": [""],
    "Sized": [""],
    "TemporalShift": [""],
    "ValueDependent": [""],
}
"""What a graph may not hold, with the modules that keep their own code."""

NETWORKS = {
    **{name: (getattr(structures, name), static) for name, static in CONVERTS.items()},
    **{name: (make, STATIC.get(name, {})) for name, make in LAYERS.items()},
}


def build(make) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = make().eval()
    return model, CLIP.to(next(model.parameters()).dtype)


def same(ours, theirs) -> bool:
    """Equal to the bit; NaN equals NaN."""
    pairs = list(zip(tree_leaves(ours), tree_leaves(theirs), strict=True))
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) if isinstance(a, Tensor) else a == b
        for a, b in pairs
    )


def test_there_are_enough():
    assert len(NETWORKS) + len(FOLLOWED_OR_WHOLE) >= 50


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("inputs", ["with", "without"])
@pytest.mark.parametrize("name", NETWORKS)
def test_converted_exactly(name, inputs, untouched):
    make, static = NETWORKS[name]
    model, clip = build(make)
    with untouched(model):
        dynamic = vr.convert(model, clip if inputs == "with" else None, CONFIG)
        plan = vr.scan(model, clip, CONFIG)
    assert {entry.path: entry.reason for entry in plan.skipped} == static
    assert plan.converted
    for x in (clip, *OTHER_CLIPS):
        right = model(x.to(clip).clone())
        assert same(dynamic(x.to(clip).clone()), right)
        with vr.full(dynamic):
            assert same(dynamic(x.to(clip).clone()), right)
        assert same(vr.unload(dynamic)(x.to(clip).clone()), right)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_policy_runs_and_trains(name):
    make, _ = NETWORKS[name]
    model, clip = build(make)
    dynamic = vr.convert(model, clip, CONFIG)
    cheapest = vr.scan(model, clip, CONFIG).policy("cheapest")
    static = vr.specialize(dynamic, cheapest)
    with vr.policy(dynamic, cheapest):
        forced = tree_leaves(dynamic(clip.clone()))
    for ours, theirs in zip(forced, tree_leaves(static(clip.clone())), strict=True):
        if isinstance(ours, Tensor):
            torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)  # bfloat16 and half are among them
    if name == "InPlace":  # what its backward pass needs it overwrites itself, converted or not
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            model.train()(clip.clone()).sum().backward()
        return
    output, decisions = with_decisions(dynamic.train())(clip.clone())
    loss = sum(leaf.abs().float().mean() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    (loss + vr.efficiency_loss(decisions)).backward()
    gates = [p for path, p in dynamic.named_parameters() if ".gate.out" in path]
    assert gates
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gates)


@pytest.mark.parametrize("name", FOLLOWED_OR_WHOLE)
def test_exact_also_where_a_graph_would_not_be(name, untouched):
    model, _ = build(getattr(structures, name))
    with untouched(model):
        dynamic = vr.convert(model, CLIP, CONFIG)
        plan = vr.scan(model, CLIP, CONFIG)
    assert [where.path for where in plan.untraced] == FOLLOWED_OR_WHOLE[name]
    assert [entry.path for entry in plan.converted] == ["a", "b"]
    for clip in (CLIP, *OTHER_CLIPS):
        assert same(dynamic(clip), model(clip))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (structures.GraphNamed, "`graph`"),
        (lambda: nn.Sequential(nn.MaxPool3d(3)), "it has no 3D convolution"),
        (lambda: nn.Sequential(nn.Conv3d(3, 8, 99)), "does not run on example inputs of shape"),
        (lambda: nn.Sequential(nn.Conv3d(5, 8, 1)), "does not run on example inputs of shape"),
        (lambda: nn.Sequential(nn.Conv3d(3, 8, 1, padding_mode="reflect")), "nothing worth converting .*padding"),
        (nn.Sequential, "nothing worth converting in Sequential, because it has no 3D convolution"),
    ],
)
def test_refused_with_its_reason(make, message, untouched):
    model = make()
    with untouched(model), pytest.raises(ConvertError, match=message):
        vr.convert(model, CLIP)


def test_buffers_are_read_when_it_runs(tmp_path):
    """Not when it is traced: neither what forward makes of them, nor how it changes them, is lost."""
    model, other = LAYERS["frozen batch norm"]().eval(), LAYERS["frozen batch norm"]().eval()
    for buffer in model.buffers():
        buffer.fill_(3)
    folder = vr.save(vr.convert(model, CLIP, CONFIG), tmp_path)
    assert torch.equal(vr.load(folder, base=other)(CLIP), model(CLIP))
    for inputs in (None, CLIP):
        counting = vr.convert(structures.Counting().eval(), inputs, CONFIG)
        for _ in range(3):
            counting(CLIP)
        assert counting.calls == 3


@pytest.mark.parametrize("inputs", [None, CLIP])
def test_a_buffer_that_is_assigned_anew_counts_on(inputs, untouched, tmp_path):
    """A graph does not hold that, so the network keeps its own code; what looks at it leaves no trace."""
    model = structures.Reassigning().eval()
    with untouched(model):
        dynamic = vr.convert(model, inputs, CONFIG)
    (where,) = vr.scan(model, inputs, CONFIG).untraced
    assert where.path == ""
    assert "assigns the buffer `calls` anew" in where.reason
    loaded = vr.load(vr.save(dynamic, tmp_path), base=structures.Reassigning())
    for network in (dynamic, loaded):
        for _ in range(3):
            assert torch.equal(network(CLIP), model(CLIP))
        assert network.state_dict()["whole_network.calls"] == 3


def test_an_optional_input(untouched, tmp_path):
    model, mask = structures.OptionalMask().eval(), torch.rand(2, 1, 6, 9, 8)
    for inputs in (None, CLIP):
        with untouched(model):
            dynamic = vr.convert(model, inputs)
        (where,) = vr.scan(model, inputs).untraced
        assert "`mask` is None unless it is given" in where.reason
        assert torch.equal(dynamic(CLIP), model(CLIP))
        assert torch.equal(dynamic(CLIP, mask), model(CLIP, mask))
        loaded = vr.load(vr.save(dynamic, tmp_path), base=model)
        assert torch.equal(loaded(CLIP, mask), model(CLIP, mask))
    dynamic = vr.convert(model, (CLIP, mask))
    assert not vr.scan(model, (CLIP, mask)).untraced
    loaded = vr.load(vr.save(dynamic, tmp_path), base=model)
    for network in (dynamic, loaded):
        assert torch.equal(network(CLIP, mask), model(CLIP, mask))


def test_a_clip_of_one_frame():
    one = nn.Sequential(structures.conv(3, 8), structures.conv(8, 8)).eval()
    clip = CLIP[:, :, :1]
    assert {entry.reason for entry in vr.scan(one, clip).entries} == {"few_frames"}
    with pytest.raises(ConvertError, match="few_frames"):
        vr.convert(one, clip)
    assert torch.equal(vr.convert(one, CLIP, CONFIG)(clip), one(clip))
    assert torch.equal(vr.convert(one, clip, ConvertConfig(min_frames=1))(CLIP), one(CLIP))


def test_parameters_partly_on_the_meta_device():
    model = nn.Sequential(structures.conv(3, 8), structures.conv(8, 8).to("meta"))
    for inputs in (None, CLIP):
        with pytest.raises(ConvertError, match="a part of Sequential is on the meta device"):
            vr.convert(model, inputs)
