"""What is slow in torch is computed in full; on real layers, with real times where they cannot be but so."""

import copy
import json
from dataclasses import asdict

import pytest
import torch
from block_networks import block_net
from networks import Net, make_clip, tiny_net

import vared2_fx as vr
from vared2_fx import Choice, ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import FULL
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.autotune import release
from vared2_fx.policy.statistics import clip_macs, dense_macs

CLIPS = make_clip(2, 3, 8, 16, 16)


def converted(granularity="conv"):
    if granularity == "conv":
        return vr.convert(tiny_net()).eval()
    config = ConvertConfig(granularity=granularity, min_macs_share=0.0)
    return vr.convert(block_net("Residual"), CLIPS, config).eval()


@pytest.mark.parametrize("granularity", ["conv", "block"])
def test_every_choice_is_timed_and_slow_ones_are_named(tmp_path, granularity):
    dynamic = converted(granularity)
    tuned = vr.autotune(dynamic, CLIPS, store=tmp_path)
    timed = {(time.region, time.choice) for time in tuned.times}
    assert timed == {(path, choice) for path, region in regions(dynamic).items() for choice in region.grid.all()}
    assert all(time.ms > 0 for time in tuned.times)
    assert all(time.speed_up == 1 for time in tuned.times if time.choice == FULL)
    slow = {(time.region, time.choice) for time in tuned.times if time.speed_up <= 1 and time.choice != FULL}
    assert slow == {(path, choice) for path, choices in tuned.replaced.items() for choice in choices}
    assert str(tuned).count("in full") == len(slow)
    for path, region in regions(dynamic).items():
        for choice in region.grid.all():
            assert region.gate.taken(choice) == (FULL if (path, choice) in slow else choice)


def test_a_replaced_choice_computes_everything_and_is_counted_so():
    """Whatever the gate asks for; alone and in a batch; the executed multiply-adds are those of the decisions."""
    dynamic = converted()
    torch.manual_seed(0)
    for region in regions(dynamic).values():
        torch.nn.init.normal_(region.gate.out.weight, std=10)  # decides by the clip
    clips = torch.cat([CLIPS, 3 * make_clip(6, 3, 8, 16, 16, seed=1)])
    observed = vr.with_decisions(dynamic)
    path, region = next(iter(regions(dynamic).items()))
    before = observed(clips)[1]
    slow = Choice(4, 0.5)
    region.gate.run_in_full([slow, Choice(2, 1.0)])
    after = observed(clips)[1]
    for row, new in zip(before[path].weights, after[path].weights, strict=True):
        asked = region.grid[int(row[:3].argmax()), int(row[3:].argmax())]
        expected = FULL if asked in (slow, Choice(2, 1.0)) else asked
        assert region.grid[int(new[:3].argmax()), int(new[3:].argmax())] == expected
    assert not torch.equal(before[path].weights, after[path].weights), "nothing was replaced: the test says little"
    torch.testing.assert_close(dynamic(clips)[3:4], dynamic(clips[3:4]), rtol=1e-4, atol=1e-5)
    with vr.policy(dynamic, {"*": slow}) as taken:
        assert taken[path] == FULL
        dense, (_, decisions) = dense_macs(dynamic, clips), observed(clips)
        macs = clip_macs(decisions, dense)
    release(dynamic)
    with vr.policy(dynamic, {"*": slow, path: FULL}):
        expected = clip_macs(observed(clips)[1], dense)
    assert torch.equal(macs, expected)


def test_where_nothing_pays_the_gate_is_not_asked():
    dynamic = converted()
    region = next(iter(regions(dynamic).values()))
    region.gate.run_in_full(region.grid.all()[1:])
    asked = []
    region.gate.hidden.register_forward_hook(lambda *args: asked.append(args))
    _, decisions = vr.with_decisions(dynamic)(CLIPS)
    path = next(iter(decisions))
    assert not asked
    assert int(decisions[path].gate_macs) == 0
    dynamic.train()(CLIPS)
    assert asked, "training asks all gates for all choices"


def test_times_are_stored_for_this_network_and_such_clips(tmp_path):
    dynamic = converted()
    first = vr.autotune(dynamic, CLIPS, store=tmp_path)
    (file,) = tmp_path.iterdir()
    assert vr.autotune(converted(), CLIPS + 1, store=tmp_path) == first, "other weights and values: the same times"
    vr.autotune(dynamic, CLIPS[:1], store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "another batch size"
    never = [{**asdict(time), "speed_up": 0.5} for time in first.times]
    file.write_text(json.dumps({**asdict(first), "times": never}))
    assert set(vr.autotune(dynamic, CLIPS, store=tmp_path).replaced) == set(regions(dynamic))
    file.write_text("{}")
    assert len(vr.autotune(dynamic, CLIPS, store=tmp_path).times) == len(first.times), "damaged: measured again"
    file.unlink()
    file.mkdir()
    assert vr.autotune(dynamic, CLIPS, store=tmp_path).times, "no place to store: measured, and said in the log"


def test_times_are_those_of_this_rebuild(tmp_path):
    for rebuild in ("repeat", "interpolate"):
        vr.autotune(vr.convert(tiny_net(), config=ConvertConfig(frame_rebuild=rebuild)), CLIPS, store=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_clips_that_do_not_fit_leave_what_was_tuned(tmp_path):
    dynamic = converted()
    _, region = next(iter(regions(dynamic).items()))
    region.gate.run_in_full([Choice(2, 1.0)])
    with pytest.raises(ConvertError, match="does not run"):
        vr.autotune(dynamic, CLIPS[:, :2], store=tmp_path)
    assert region.gate.taken(Choice(2, 1.0)) == FULL


def test_clips_stay_as_they_are(tmp_path):
    class Normalising(Net):
        def forward(self, x):
            return super().forward(x.sub_(1.0))

    clips = CLIPS.clone()
    vr.autotune(vr.convert(Normalising(), clips), clips, store=tmp_path, rounds=1)
    assert torch.equal(clips, CLIPS)


def test_copies_keep_it_and_files_do_not(tmp_path):
    dynamic = converted()
    path, region = next(iter(regions(dynamic).items()))
    region.gate.run_in_full([Choice(2, 1.0)])
    assert regions(copy.deepcopy(dynamic))[path].gate.taken(Choice(2, 1.0)) == FULL
    keys = set(dynamic.state_dict())
    assert keys == set(converted().state_dict())
    vr.save(dynamic, tmp_path / "net")
    assert regions(vr.load(tmp_path / "net", tiny_net()))[path].gate.taken(Choice(2, 1.0)) == Choice(2, 1.0)


def test_weights_mode_and_hooks_stay(tmp_path):
    dynamic = converted().train()
    before = copy.deepcopy(dynamic.state_dict())
    vr.autotune(dynamic, CLIPS, store=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in dynamic.state_dict().items())
    assert all(module.training for module in dynamic.modules())
    assert not any(region._forward_pre_hooks for region in regions(dynamic).values())


def test_clear_errors(tmp_path):
    with pytest.raises(ConvertError, match="autotune: this Sequential holds no dynamic region"):
        vr.autotune(torch.nn.Sequential(), CLIPS, store=tmp_path)
    with pytest.raises(ConvertError, match="soft_modulation weigh several"):
        vr.autotune(vr.convert(tiny_net(), config=ConvertConfig(gate="soft_modulation")), CLIPS, store=tmp_path)
    with pytest.raises(ConvertError, match="rounds=0"):
        vr.autotune(converted(), CLIPS, store=tmp_path, rounds=0)
    with pytest.raises(ConvertError, match="does not run"):
        vr.autotune(converted(), CLIPS[:, :2], store=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_report_says_where(tmp_path):
    dynamic = converted()
    path, region = next(iter(regions(dynamic).items()))
    region.gate.run_in_full([Choice(4, 0.5)])
    report = vr.report(dynamic, CLIPS, timing=False)
    assert f"they are slower here: {path} R=4 r=0.5." in " ".join(str(report).split())
    release(dynamic)
    assert "slower here" not in str(vr.report(dynamic, CLIPS, timing=False))


def test_on_the_command_line(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from vared2_fx.cli import app

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["report", "vared2_demo", "--autotune", "--no-timing"])
    assert done.exit_code == 0, done.output
    (file,) = (tmp_path / "vared2_fx").iterdir()
    stored = json.loads(file.read_text())
    slow = any(
        time["speed_up"] <= 1 for time in stored["times"] if (time["frame_stride"], time["channel_share"]) != (1, 1)
    )
    assert ("slower here" in " ".join(done.output.split())) == slow
