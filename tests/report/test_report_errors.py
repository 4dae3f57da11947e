"""What a report refuses, and what it passes over and counts."""

import numpy as np
import pytest
import torch
from networks import make_clip, tiny_net

from vared2_fx import report, specialize
from vared2_fx.data import ClipConfig, make_loader
from vared2_fx.data.scenes import generate_scenes
from vared2_fx.errors import ConvertError, DataError, ReportError


def test_a_network_that_is_not_converted():
    with pytest.raises(ConvertError, match="not a converted network; call convert"):
        report(tiny_net(), make_clip(1, 3, 8, 16, 16))


def test_a_network_whose_choices_are_fixed(dynamic, clips):
    with pytest.raises(ConvertError, match="no dynamic region"):
        report(specialize(dynamic, {"*": (2, 1.0)}), clips)


@pytest.mark.parametrize("nothing", [[], iter(()), make_clip(0, 3, 8, 16, 16), [make_clip(0, 3, 8, 16, 16)]])
def test_no_clip(dynamic, nothing):
    with pytest.raises(ReportError, match="the data gave no clip"):
        report(dynamic, nothing)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (make_clip(3, 8, 16, 16), r"Clips of shape \(3, 8, 16, 16\); expected \(N, C, T, H, W\)"),
        ("clips/val", "Expected a loader or a tensor of clips .* got a str. .*make_loader"),
        (7, "got a int"),
        ([{"label": torch.zeros(1)}], "a batch holds a dict with 'label'; expected clips"),
        ([(1, 2, 3)], "a batch holds a tuple"),
        (
            [(make_clip(2, 3, 8, 16, 16), torch.zeros(3, dtype=torch.int64))],
            r"2 clips came with labels of shape \(3,\)",
        ),
        ([(make_clip(2, 3, 8, 16, 16), torch.zeros(2))], "labels of shape .* and type float32; expected an integer"),
        ([(make_clip(2, 3, 8, 16, 16), ["cat", "dog"])], "labels are a list, no tensor"),
        ([(make_clip(1, 3, 8, 16, 16), torch.tensor([5]))], "label 5, but the network knows 5 classes"),
        ([{"video": make_clip(2, 3, 8, 16, 16), "video_name": ["a"]}], "2 clips came with 1 names"),
    ],
)
def test_batches_that_are_none(dynamic, clips, message):
    with pytest.raises(DataError, match=message):
        report(dynamic, clips)


def test_clips_that_the_network_cannot_take(dynamic):
    with pytest.raises(ConvertError, match=r"does not run on example inputs of shape \(1, 5, 8, 16, 16\)"):
        report(dynamic, make_clip(1, 5, 8, 16, 16))


def test_nan_in_a_clip_is_named(dynamic, clips):
    clips[3, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ReportError, match="NaN or infinite values; clip 3 holds such values itself"):
        report(dynamic, clips)
    with pytest.raises(ReportError, match=r"clip 3, d\.mp4, holds"):
        report(dynamic, [{"video": clips, "video_name": [f"{c}.mp4" for c in "abcdef"]}])


def test_nan_in_the_weights(dynamic, clips):
    with torch.no_grad():
        dynamic.head.weight[0, 0] = torch.nan
    with pytest.raises(ReportError, match="NaN or infinite values; the weights of a training that diverged"):
        report(dynamic, clips)


def test_modes_come_back_after_an_error(dynamic, clips):
    dynamic.train()
    with pytest.raises(ReportError):
        report(dynamic, [clips * torch.nan])
    assert all(module.training for module in dynamic.modules())


@pytest.mark.parametrize("wrong", [{"timing_clips": 0}, {"timing_repeats": 0}])
def test_timing_that_measures_nothing(dynamic, clips, wrong):
    with pytest.raises(ReportError, match="at least 1 each, or timing=False"):
        report(dynamic, clips, **wrong)


CLIPS = ClipConfig(frames=8, crop=16, short_side=16, fps=16)


@pytest.fixture
def videos(tmp_path):
    """Nine videos, one of each class; the first is no video, the second breaks off."""
    listing = generate_scenes(tmp_path / "scenes", videos_per_class=1, seed=0, num_frames=8, size=32)
    first, second = (listing.videos[i][0] for i in range(2))
    with open(first, "wb") as file:
        file.write(np.random.default_rng(0).bytes(2000))
    with open(second, "r+b") as file:
        file.truncate(100)
    return listing


@pytest.mark.parametrize("probe", [True, False])
def test_videos_that_cannot_be_read_are_counted(dynamic, videos, probe):
    loader = make_loader(videos, CLIPS, batch_size=1, probe=probe)
    for _ in range(2):  # a loader counts over all epochs; each report only its own
        made = report(dynamic, loader, labels=False, timing=False)
        assert made.totals.num_clips == 7
        assert made.totals.num_failed_clips == (0 if probe else 2)
        assert {failure.name for failure in made.failures} == {videos.videos[i][0] for i in range(2)}
        assert "Videos that failed: 2" in str(made)


def test_no_video_can_be_read(dynamic, videos):
    for path, _ in videos.videos:
        with open(path, "wb") as file:
            file.write(b"nothing")
    with pytest.raises(ReportError, match=r"no clip\. 9 videos failed, the first with: .*not a readable video"):
        report(dynamic, make_loader(videos, CLIPS, batch_size=2, probe=False))
    with pytest.raises(DataError, match="None of the videos"):
        make_loader(videos, CLIPS, batch_size=2)
