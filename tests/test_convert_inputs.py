"""Networks of the zoo that take more than a clip: pathways and boxes, through every step that has clips."""

import pytest
import torch
from networks import randomise_rebuilds
from torch import Tensor
from typer.testing import CliRunner

import vared2_fx as vr
from vared2_fx.cli import app
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError, DataError
from vared2_fx.packing import packer
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.statistics import dense_macs

SLOWFAST = ("slowfast_r50", "slowfast_r101", "slowfast_16x8_r101_50_50")
TRANSFORMERS = ("mvit_base_16", "mvit_base_16x4", "swin3d_t", "mvit_v1_b", "mvit_v2_s")


def on_meta(name: str) -> torch.nn.Module:
    with torch.device("cpu" if name.startswith("mvit_base") else "meta"):
        return vr.zoo.load(name).to("meta")


@pytest.fixture(scope="module")
def slowfast():
    torch.manual_seed(0)
    return vr.zoo.load("slowfast_r50", num_classes=3)


def small(frames: int = 32, batch: int = 1, seed: int = 0) -> Tensor:
    """The network's frames, and as few pixels as its pooling allows."""
    return torch.randn(batch, 3, frames, 224, 224, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", SLOWFAST)
def test_the_backbone_converts_and_nothing_is_left_unfollowed(name):
    plan = vr.scan(on_meta(name))
    assert plan.untraced == ()
    assert plan.nesting == (("list", None, None),)
    assert plan.input_shape == (1, 3, vr.zoo.spec(name).frames, 256, 256)
    assert sum(entry.macs for entry in plan.converted) > 0.9 * plan.macs


def test_slowfast_is_exact_and_leaves_the_callers_list_alone(slowfast, untouched):
    spec = vr.zoo.spec("slowfast_r50")
    clips = spec.pack(small())
    before = list(clips)
    with untouched(slowfast), torch.no_grad():
        dynamic = vr.convert(slowfast)
        expected = slowfast(spec.pack(small()))
        for network in (dynamic, vr.unload(dynamic), vr.specialize(dynamic, {})):
            assert torch.equal(network(clips), expected)
            assert all(a is b for a, b in zip(clips, before, strict=True))
        with vr.policy(randomise_rebuilds(dynamic), {"*": (2, 0.5)}):  # the control
            assert not torch.allclose(dynamic(clips), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_slowfast_from_clips_through_evaluation_and_report(slowfast, tmp_path):
    dynamic, video = vr.convert(slowfast), small()
    evaluation = vr.evaluate(dynamic, [(video, torch.tensor([1]))])
    with torch.no_grad():
        output, decisions = with_decisions(dynamic.eval())(vr.zoo.spec("slowfast_r50").pack(video))
    assert [clip.prediction for clip in evaluation.clips] == output.argmax(1).tolist()
    assert decisions.keys() == regions(dynamic).keys()
    assert evaluation.dense_macs == dense_macs(slowfast, vr.zoo.spec("slowfast_r50").pack(video))
    assert vr.evaluate(slowfast, [(video, torch.tensor([1]))]).dense_macs == evaluation.dense_macs
    report = vr.report(dynamic, video, timing=False, progress=False)
    assert report.inputs[0].shape == (3, 32, 224, 224)
    assert report.totals.dense_macs.mean == evaluation.dense_macs
    again = vr.load(vr.save(dynamic, tmp_path / "slowfast"))
    assert conversion(again) == conversion(dynamic)


@pytest.mark.slow
def test_slowfast_is_fine_tuned_from_clips():
    torch.manual_seed(0)
    dynamic = vr.convert(vr.zoo.load("slowfast_r50", num_classes=2))
    batches = [(small(batch=2), torch.tensor([0, 1]))]
    config = vr.FinetuneConfig(epochs=1, progress=False)
    before = {name: value.clone() for name, value in dynamic.state_dict().items()}
    result = vr.finetune(dynamic, batches, batches, config)
    assert len(result.history) == 2
    assert result.history[-1].train_share > 0
    if result.best_epoch == 1:
        assert any(not torch.equal(value, before[name]) for name, value in dynamic.state_dict().items())


@pytest.mark.slow
def test_a_report_on_a_video_for_slowfast(scene_folders):
    video = sorted(scene_folders.rglob("*.mp4"))[0]
    result = CliRunner().invoke(app, ["report", "slowfast_r50", "--video", str(video), "--no-timing"])
    assert result.exit_code == 0, result.output
    assert "slowfast_r50: 91 dynamic layers, 1 clip of 3×32×256×256" in result.output


@pytest.mark.parametrize("name", ["slow_r50_detection", "slowfast_r50_detection"])
def test_detection_backbones_convert_and_the_head_stays(name):
    plan = vr.scan(on_meta(name))
    assert plan.untraced == ()
    assert all(entry.path.startswith("model.") for entry in plan.entries)
    assert sum(entry.macs for entry in plan.converted) > 0.9 * plan.macs


def test_detection_is_exact_for_every_box():
    torch.manual_seed(0)
    model, (clips, boxes) = vr.zoo.load("slow_r50_detection"), vr.zoo.spec("slow_r50_detection").example_inputs(batch=2)
    clips, boxes = clips[..., :64, :64], boxes * torch.tensor([1.0, 0.25, 0.25, 0.25, 0.25])
    dynamic = vr.convert(model, (clips, boxes))
    with torch.no_grad():
        expected = model(clips, boxes)
        assert expected.shape == (4, 80)
        assert torch.equal(dynamic(clips, boxes), expected)
        assert not torch.equal(dynamic(clips, boxes.flip(1)), expected)


def test_detection_reports_with_a_whole_frame_and_trains_in_a_loop_of_its_own():
    dynamic = vr.convert(vr.zoo.load("slow_r50_detection", num_classes=2))
    clips = torch.randn(2, 3, 4, 64, 64)
    report = vr.report(dynamic, clips, timing=False, progress=False)
    assert report.totals.num_clips == 2
    assert any("one box, the whole frame" in note for note in report.notes)
    _, boxes = packer(dynamic, boxes=True)(clips)
    assert boxes.tolist() == [[0, 0, 0, 64, 64], [1, 0, 0, 64, 64]]
    for run in (lambda: vr.evaluate(dynamic, []), lambda: vr.finetune(dynamic, [], [])):
        with pytest.raises(DataError, match=r"slow_r50_detection answers for each box.* loop of your own"):
            run()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_have_nothing_worth_converting(name):
    model = on_meta(name)
    with pytest.raises(ConvertError, match=r"nothing worth converting in \w+, because .*(min_total_share|min_frames)"):
        vr.convert(model)
    plan = vr.scan(model)
    assert plan.converted == ()
    assert "Nothing worth converting, because" in str(plan)


@pytest.mark.slow
def test_transformers_convert_exactly_where_it_is_asked_for():
    """Inside blocks that torch.fx cannot follow, too."""
    torch.manual_seed(0)
    model, clip = vr.zoo.load("mvit_base_16x4"), vr.zoo.spec("mvit_base_16x4").example_inputs()
    dynamic = vr.convert(model, config=vr.ConvertConfig(min_total_share=0.0, min_macs_share=0.0))
    assert len(regions(dynamic)) > 20
    assert len(conversion(dynamic).plan.untraced) == 16
    with torch.no_grad():
        assert torch.equal(dynamic(clip), model(clip))
        _, decisions = with_decisions(dynamic)(clip)
    assert decisions.keys() == regions(dynamic).keys()


def test_networks_of_ones_own_that_take_lists_are_refused_clips():
    from networks import Net

    class Two(Net):
        def forward(self, clips: list[Tensor]) -> Tensor:
            return super().forward(clips[0] + clips[1])

    dynamic = vr.convert(Two(), [torch.randn(1, 3, 4, 8, 8), torch.randn(1, 3, 4, 8, 8)])
    with pytest.raises(DataError, match="Two takes lists or dicts"):
        vr.evaluate(dynamic, [])
