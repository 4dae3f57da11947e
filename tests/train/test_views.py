"""Several clips of one video, answered together."""

import math

import pytest
import torch
from small import small_net
from torch import nn

import vared2_fx as vr


class Scores(nn.Module):
    """Answers with the numbers that the clip holds."""

    def __init__(self):
        super().__init__()
        self.same = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.same.weight)

    def forward(self, clips):
        return self.same(clips[:, 0, 0, 0])


def batch(rows, names):
    return {
        "video": torch.tensor([scores for scores, _ in rows])[:, None, None, None],
        "label": torch.tensor([label for _, label in rows]),
        "video_name": names,
    }


LOW, HIGH = [0.2, 0.0, 0.1], [0.0, 8.0, 0.0]


def test_probabilities_are_averaged_not_votes():
    first = batch([(LOW, 1), (LOW, 1)], ["a", "a"])
    second = batch([(HIGH, 1), ([1.0, 0.0, 0.0], 0)], ["a", "b"])
    found = vr.evaluate(Scores(), [first, second])
    assert found.accuracy == 0.5
    assert [(v.name, v.label, v.prediction, v.views, v.rank) for v in found.videos] == [
        ("a", 1, 1, 3, 0),
        ("b", 0, 0, 1, 0),
    ]
    assert found.video_accuracy == 1.0
    assert "2 videos, up to 3 views each: top-1 100" in str(found)


def test_a_video_costs_what_its_clips_cost():
    dynamic = vr.convert(small_net(), config=vr.ConvertConfig(min_macs_share=0.0))
    clips = torch.randn(4, 1, 8, 8, 8)
    loader = [{"video": clips, "label": torch.zeros(4, dtype=torch.long), "video_name": ["a", "a", "a", "b"]}]
    with vr.policy(dynamic, {"*": (2, 0.5)}):
        found = vr.evaluate(dynamic, loader)
    assert [video.macs for video in found.videos] == [3 * found.clips[0].macs, found.clips[3].macs]
    assert found.macs_per_video == 2 * found.mean_macs


def test_one_clip_each_is_no_news():
    found = vr.evaluate(Scores(), [batch([(LOW, 1), (HIGH, 1)], ["a", "b"])])
    assert [v.rank == 0 for v in found.videos] == [clip.prediction == clip.label for clip in found.clips]
    assert "videos" not in str(found)


def test_without_names_there_are_no_videos():
    found = vr.evaluate(Scores(), [(torch.tensor([HIGH])[:, None, None, None], torch.tensor([1]))])
    assert found.videos == ()
    assert math.isnan(found.video_accuracy)
    assert math.isnan(found.video_percentile(50))


@pytest.mark.parametrize("label", [0, 2])
def test_rank_counts_better_classes(label):
    found = vr.evaluate(Scores(), [batch([(LOW, label)], ["a"])])
    assert found.videos[0].rank == {0: 0, 2: 1}[label]
