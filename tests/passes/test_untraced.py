"""Networks that torch.fx cannot follow: what is around and inside the offending module converts, exactly."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import untraced_nets
from networks import Asserting, Net, make_clip, randomise_rebuilds
from torch import Tensor, nn
from untraced_nets import CASES, CLIP, AtTheTop, Block, InTheMiddle, Pathways, made

import vared2_fx as vr
from vared2_fx import Choice, ConvertConfig
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError
from vared2_fx.passes.leaves import WHOLE
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.passes.trace import trace
from vared2_fx.policy.statistics import clip_macs, dense_macs


@pytest.mark.parametrize("given", [True, False], ids=["with inputs", "without"])
@pytest.mark.parametrize("kind", CASES)
def test_what_is_around_and_inside_converts_exactly(kind, given):
    model, (paths, path) = made(kind), CASES[kind]
    dynamic = vr.convert(model, CLIP if given else None)
    assert list(regions(dynamic)) == paths
    assert [where.path for where in conversion(dynamic).plan.untraced] == [path]
    for clip in (CLIP, -CLIP, CLIP[:1], make_clip(2, 3, 9, 8, 12), CLIP + 1e5):
        assert torch.equal(dynamic(clip), model(clip))
    with vr.policy(dynamic, {"*": (2, 0.5)}):  # the control
        assert not torch.allclose(dynamic(CLIP), model(CLIP), rtol=1e-2, atol=1e-3)


def test_the_plan_says_what_was_not_followed_where_and_why():
    plan = vr.scan(made(InTheMiddle), CLIP)
    (where,) = plan.untraced
    code = Path(str(untraced_nets.__file__)).read_text().splitlines()
    assert (where.path, where.kind) == ("block", "Block")
    assert where.file.endswith("untraced_nets.py")
    assert not where.file.startswith("/")
    assert code[where.line - 1].strip() == "if x.abs().mean() > 1e3:"
    assert "control flow" in where.reason
    assert f"not followed: block (Block, {where.file}:{where.line}): TraceError: symbolically" in str(plan)
    assert json.loads(json.dumps(asdict(plan)))["untraced"] == [asdict(where)]
    assert "the whole network (AtTheTop, " in str(vr.scan(made(AtTheTop), CLIP))


def test_several_of_a_kind_are_one_line():
    class Many(Net):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(*(Block() for _ in range(4)))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks(self.a(x)).mean((2, 3, 4)))

    plan = vr.scan(made(Many), CLIP)
    assert [where.path for where in plan.untraced] == [f"blocks.{i}" for i in range(4)]
    assert str(plan).count("not followed") == 1
    assert "(and 3 more)" in str(plan)


def test_shapes_and_multiply_adds_inside_are_those_of_a_run():
    entries = {entry.path: entry for entry in vr.scan(made(InTheMiddle), CLIP).entries}
    assert entries["block.conv"].out_shape == entries["block.conv"].in_shape == (8, 6, 8, 8)
    assert entries["block.conv"].macs == 8 * 8 * 27 * 6 * 64
    assert entries["block.seldom"].macs is None  # not called for this clip: nothing is known of it
    assert entries["block.seldom"].converts


class Twice(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.conv(x))


class WithTwice(InTheMiddle):
    def __init__(self) -> None:
        super().__init__()
        self.block = Twice()


def test_called_twice_inside_stays_static_where_a_run_shows_it():
    entries = {entry.path: entry for entry in vr.scan(made(WithTwice), CLIP).entries}
    assert entries["block.conv"].reason == "called_twice"
    assert entries["block.conv"].macs == 2 * 8 * 8 * 27 * 6 * 64


def test_called_twice_inside_is_exact_and_counted_where_no_run_could_show_it():
    model = made(WithTwice)
    dynamic = vr.convert(model)
    assert "block.conv" in regions(dynamic)
    assert torch.equal(dynamic(CLIP), model(CLIP))
    _, decisions = with_decisions(dynamic)(CLIP)
    assert {"block.conv", "block.conv (call 2)"} <= decisions.keys()
    report = vr.report(dynamic, CLIP, timing=False, progress=False)
    (row,) = [layer for layer in report.layers if layer.path == "block.conv"]
    assert row.dense_macs.mean == 2 * 8 * 8 * 27 * 6 * 64
    assert row.computed_macs.mean == row.dense_macs.mean + row.gate_macs.mean
    assert report.totals.computed_macs.mean == clip_macs(decisions, dense_macs(dynamic, CLIP)).float().mean()


@pytest.mark.parametrize("given", [True, False], ids=["with inputs", "without"])
def test_the_callers_list_is_left_alone(given):
    """With a list as an example the network is followed; without, it is kept whole."""
    model, clips = made(Pathways), [CLIP, -CLIP]
    expected = model(list(clips))
    dynamic = vr.convert(model, clips if given else None)
    plan = conversion(dynamic).plan
    assert plan.nesting == ((("list", None, None),) if given else ())
    assert [where.path for where in plan.untraced] == ([] if given else [""])
    assert list(regions(dynamic)) == ["a", "b"]
    for _ in range(2):
        assert torch.equal(dynamic(clips), expected)
        assert clips[0] is CLIP
    with_decisions(dynamic)(clips)
    vr.specialize(dynamic, {"*": (2, 0.5)})(clips)
    dense_macs(model, clips)
    assert clips[0] is CLIP


def test_a_network_that_takes_a_list_is_saved_and_loaded(tmp_path):
    dynamic, clips = randomise_rebuilds(vr.convert(made(Pathways), [CLIP, -CLIP])), [CLIP, -CLIP]
    again = vr.load(vr.save(dynamic, tmp_path / "saved"), base=made(Pathways))
    assert conversion(again) == conversion(dynamic)
    for choice in (Choice(1, 1.0), Choice(2, 0.5)):
        with vr.policy(dynamic, {"*": choice}), vr.policy(again, {"*": choice}):
            assert torch.equal(again(clips), dynamic(clips))


class Nested(Net):
    def forward(self, inputs: dict[str, tuple[Tensor, Tensor]], scale: float = 2.0) -> Tensor:
        first, second = inputs["clips"]
        return super().forward(scale * first + second)


def test_tuples_and_dicts_are_followed_too(tmp_path):
    model, inputs = made(Nested), {"clips": (CLIP, -0.5 * CLIP)}
    dynamic = vr.convert(model, (inputs,))
    assert conversion(dynamic).plan.untraced == ()
    assert torch.equal(dynamic(inputs), model(inputs))
    assert torch.equal(dynamic(inputs, scale=3.0), model(inputs, scale=3.0))
    assert conversion(vr.load(vr.save(dynamic, tmp_path / "saved"), base=made(Nested))) == conversion(dynamic)


def test_assertions_are_followed_and_still_made():
    model = made(Asserting)
    dynamic = vr.convert(model, CLIP)
    assert conversion(dynamic).plan.untraced == ()
    assert torch.equal(dynamic(CLIP), model(CLIP))
    with pytest.raises(AssertionError, match=r"assertion of the original network at networks.py:\d+"):
        dynamic(CLIP * float("nan"))


class LooksAtWeights(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = F.conv3d(x, self.conv.weight, self.conv.bias, padding=self.conv.padding)
        return super().forward(y) if x.sum() > 0 else y


def test_code_that_looks_at_a_converted_convolution_finds_it():
    model = made(InTheMiddle)
    model.block = made(LooksAtWeights)
    dynamic = vr.convert(model, CLIP)
    for clip in (CLIP, -CLIP):
        assert torch.equal(dynamic(clip), model(clip))
    with pytest.raises(AttributeError, match="nothing"):
        dynamic.block.conv.nothing  # noqa: B018


def test_one_convolution_under_two_names_inside():
    class Aliased(Block):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.ModuleList([self.conv, self.child])

        def forward(self, x: Tensor) -> Tensor:
            return self.all[1](self.all[0](x)) if x.abs().mean() < 1e3 else x

    model = made(InTheMiddle)
    model.block = made(Aliased)
    dynamic = vr.convert(model, CLIP)
    assert torch.equal(dynamic(CLIP), model(CLIP))
    assert {"block.conv", "block.child.0"} <= with_decisions(dynamic)(CLIP)[1].keys()


class AsksForTheClass(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if isinstance(self.conv, nn.Conv3d) else -y


@pytest.mark.parametrize("inputs", [CLIP, None], ids=["with inputs", "without"])
def test_code_that_would_do_something_else_after_conversion_is_found(inputs):
    model = made(InTheMiddle)
    model.block = made(AsksForTheClass)
    with pytest.raises(ConvertError, match=r"check: .* differs from the original's .* first in what `block` gives"):
        vr.convert(model, inputs)
    config = ConvertConfig(exclude=("block.conv",))
    assert torch.equal(vr.convert(model, inputs, config)(CLIP), model(CLIP))


class TakesAnything(Net):
    def forward(self, *clips: Tensor) -> Tensor:
        return super().forward(clips[0] if clips[0].sum() > 0 else -clips[0])


def test_a_network_that_can_neither_be_followed_nor_kept_is_an_error_that_says_where():
    with pytest.raises(
        ConvertError, match=r"the whole network \(TakesAnything, .*test_untraced.py:\d+\).* takes \*clip"
    ):
        trace(made(TakesAnything))


def test_keyword_only_arguments_and_defaults_of_a_whole_network():
    class Keyword(Net):
        def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
            return scale * super().forward(x if x.sum() > 0 else -x)

    model = made(Keyword)
    dynamic = vr.convert(model, CLIP)
    assert torch.equal(dynamic(CLIP), model(CLIP))
    assert torch.equal(dynamic(CLIP, scale=3.0), model(CLIP, scale=3.0))


def test_choosing_layers_works_inside_by_their_own_paths():
    dynamic = vr.convert(made(AtTheTop), CLIP, ConvertConfig(exclude=("a",)))
    assert list(regions(dynamic)) == ["b"]
    assert all(path.startswith(WHOLE) for path in dynamic.state_dict())
