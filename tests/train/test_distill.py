"""Distillation: the loss by hand, and a network that learns from the original alone."""

import copy
import sys

import pytest
import torch
from small import config, loaders, small_net, unlabelled
from torch import nn

import vared2_fx as vr
from vared2_fx.errors import CheckpointError, ConvertError, DataError, TrainError
from vared2_fx.train.distill import Answered, Teacher, feature_loss, watching


def test_the_loss_by_hand():
    scores, taught = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    p = torch.tensor([1.0, 0.0]).softmax(0)  # at temperature 2
    expected = 4 * (p * (p / 0.5).log()).sum()
    torch.testing.assert_close(vr.distillation_loss(scores, taught, temperature=2.0), expected)
    assert vr.distillation_loss(taught, taught) == 0
    with pytest.raises(DataError, match=r"scores of shape \(1, 2\), the converted one \(1, 3\)"):
        vr.distillation_loss(torch.zeros(1, 3), taught)


def trained_net() -> nn.Module:
    """Knows bright from dark."""
    net = small_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):
        for clips, labels in loaders()[0]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(clips), labels).backward()
            optimizer.step()
    return net.eval()


@pytest.mark.parametrize("schedule", ["joint", "variants_first"])
def test_without_labels_the_original_is_enough(schedule):
    """Told nothing but the original's answers, the network keeps them at fewer multiply-adds."""
    net = trained_net()
    assert vr.evaluate(net, loaders()[1]).accuracy > 0.9
    dynamic = vr.convert(net, config=vr.ConvertConfig(min_macs_share=0.0))
    result = vr.finetune(dynamic, *unlabelled(160), config(epochs=6, lr=1e-2, schedule=schedule, distill_weight=1.0))
    assert result.evaluation.agreement
    assert str(result.evaluation).startswith("agreement with the original ")
    assert result.evaluation.share < 0.8
    assert vr.evaluate(dynamic, loaders()[1]).accuracy > 0.9  # by the labels that nobody showed it
    assert not vr.evaluate(dynamic, loaders()[1]).agreement


def test_with_labels_the_teacher_pulls():
    """A teacher that always says the same is followed the more, the more it counts."""

    class AlwaysDark(nn.Module):
        def forward(self, x):
            return x.new_tensor([[4.0, -4.0]]).expand(len(x), -1)

    losses = []
    for weight in (1e-6, 20.0):
        dynamic = vr.convert(small_net())
        changes = {"epochs": 6, "lr": 1e-2, "distill_weight": weight, "efficiency_weight": 0.0}
        vr.finetune(dynamic, *loaders(), config(**changes), original=AlwaysDark())
        says_dark = torch.cat([dynamic(clips).argmax(1) == 0 for clips, _ in loaders()[1]])
        losses.append(says_dark.float().mean().item())
    assert losses[0] < 0.8
    assert losses[1] > 0.95


@pytest.mark.parametrize("original", [True, False])
def test_the_full_choice_teaches_the_others_on_the_same_clips(monkeypatch, original):
    """It learns from the original, where that teaches, and the others from it; rates of zero keep all answers.

    What gates decide, in the last epoch, learns from the original.
    """
    net, module, taught = trained_net(), sys.modules["vared2_fx.train.objective"], []

    def noted(scores: torch.Tensor, lesson: torch.Tensor, *, temperature: float) -> torch.Tensor:
        assert scores.requires_grad
        assert not lesson.requires_grad
        taught.append(lesson)
        return vr.distillation_loss(scores, lesson, temperature=temperature)

    monkeypatch.setattr(module, "distillation_loss", noted)
    dynamic = vr.convert(net, config=vr.ConvertConfig(min_macs_share=0.0))
    rates = {"lr": 0.0, "gate_lr": 0.0, "weight_decay": 0.0}
    ways = {"schedule": "variants_first", "self_distill_weight": 1.0, "distill_weight": float(original)}
    teacher = small_net() if original else None
    vr.finetune(dynamic, *loaders(), config(epochs=2, own_share=0.5, **rates, **ways), original=teacher)
    expected, again = [], loaders()[0]  # shuffles as the first did
    for clips, _ in again:
        expected += [teacher(clips)] if teacher else []
        expected += 2 * [net(clips)]
    expected += [teacher(clips) for clips, _ in again] if teacher else []
    assert len(taught) == len(expected)
    for lesson, answer in zip(taught, expected, strict=True):
        torch.testing.assert_close(lesson, answer, rtol=0, atol=1e-5)


def features_of(net: nn.Module, clips: torch.Tensor) -> torch.Tensor:
    with watching(net.get_submodule("8")) as seen, torch.no_grad():
        net(clips)
    return seen[0]


@pytest.mark.parametrize("schedule", ["joint", "variants_first"])
def test_features_are_learned_beside_the_scores(schedule):
    """Scores of a teacher whose classifier is all zero say nothing; its features are still come near to."""
    teacher, clips = trained_net(), loaders()[1].dataset.tensors[0]
    nn.init.zeros_(teacher.get_submodule("8").weight)
    far = []
    for weight in (0.0, 10.0):
        dynamic = vr.convert(small_net(), config=vr.ConvertConfig(min_macs_share=0.0))
        changes = {"epochs": 6, "lr": 1e-2, "distill_weight": 1.0, "feature_distill_weight": weight}
        vr.finetune(dynamic, *unlabelled(), config(**changes, schedule=schedule), original=teacher)
        assert not any(module._forward_pre_hooks for module in dynamic.modules())
        far.append(float(feature_loss(features_of(dynamic, clips), features_of(teacher, clips))))
    assert far[1] < 0.3 * far[0]


def test_features_that_cannot_be_compared_are_refused():
    dynamic, options = vr.convert(small_net()), config(distill_weight=1.0, feature_distill_weight=1.0)
    headless = nn.Sequential(*small_net()[:8], nn.Sequential(nn.Linear(16, 2)))[:8]
    with pytest.raises(TrainError, match="compares what `8` is given, and `original` has no such module"):
        vr.finetune(dynamic, *loaders(), options, original=headless)
    wide = nn.Sequential(nn.Flatten(), *(nn.Identity() for _ in range(7)), nn.LazyLinear(2))
    wide(loaders()[1].dataset.tensors[0])
    with pytest.raises(DataError, match=r"features of shape .* leave feature_distill_weight out"):
        vr.finetune(dynamic, *loaders(), options, original=wide)
    with pytest.raises(TrainError, match="the network calls none"):
        pooled = nn.Sequential(*small_net()[:6], nn.Conv3d(16, 2, 1), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        vr.finetune(vr.convert(pooled), *loaders(), options)
    with pytest.raises(ConvertError, match="goes with a teacher"):
        config(feature_distill_weight=1.0)


def test_the_teacher_stays_as_it_was(untouched):
    net = trained_net()
    dynamic = vr.convert(net)
    with untouched(net):
        vr.finetune(dynamic, *loaders(), config(epochs=1, lr=1e-2, distill_weight=1.0), original=net)


def test_clips_without_labels_are_answered_and_others_left_alone():
    teacher = Teacher(trained_net(), lambda clips: (clips,))
    (bare, _), (_, named) = unlabelled(), loaders()
    like = torch.zeros(1)
    assert len(Answered(bare, teacher, like)) == len(bare)
    for batch in Answered(bare, teacher, like):
        assert torch.equal(batch["label"], teacher(batch["video"]).argmax(1))
    for given, kept in zip(named, Answered(named, teacher, like), strict=True):
        assert torch.equal(given[1], kept[1])
    (batch,) = Answered([{"video": torch.zeros(2, 1, 8, 8, 8), "video_name": ["a", "b"]}], teacher, like)
    assert batch["video_name"] == ["a", "b"]


def test_resuming_under_another_teacher_is_refused(tmp_path, untouched):
    net = trained_net()
    changes = {"epochs": 1, "distill_weight": 1.0, "out": str(tmp_path)}
    dynamic = vr.convert(net)
    vr.finetune(dynamic, *loaders(), config(**changes))
    with untouched(dynamic), pytest.raises(CheckpointError, match="learned from other weights"):
        vr.finetune(dynamic, *loaders(), config(**changes, resume=True))
    assert vr.finetune(vr.convert(net), *loaders(), config(**changes, resume=True)).history


def test_mistakes_are_named(untouched):
    net, (train, val) = small_net(), unlabelled()
    dynamic = vr.convert(net)
    with untouched(dynamic), pytest.raises(DataError, match="no labels"):
        vr.finetune(dynamic, loaders()[0], val, config())
    with pytest.raises(DataError, match="With distill_weight=1 the original"):
        vr.finetune(vr.convert(net), train, loaders()[1], config())
    with untouched(dynamic), pytest.raises(TrainError, match=r"copy\.deepcopy"):
        vr.finetune(dynamic, train, val, config(distill_weight=1.0), original=nn.Sequential(dynamic))
    wide = copy.deepcopy(net)
    wide[-1] = nn.Linear(16, 3)
    with pytest.raises(DataError, match="have to know the same classes"):
        vr.finetune(vr.convert(net), train, val, config(distill_weight=1.0), original=wide)
    with pytest.raises(DataError, match="no row of class scores"):
        vr.finetune(vr.convert(net), train, val, config(distill_weight=1.0), original=nn.Identity())
    mixed = [next(iter(val)), next(iter(loaders()[1]))]
    with pytest.raises(DataError, match="some batches have labels"):
        vr.evaluate(dynamic, mixed, original=net)
    for changes in ({"distill_weight": -1.0}, {"distill_temperature": 0.0}):
        with pytest.raises(ConvertError, match="FinetuneConfig: distill_"):
            vr.FinetuneConfig(**changes)


@pytest.mark.gpu
def test_the_teacher_comes_to_where_clips_are(tmp_path):
    """The network is on a GPU, and the original still where it was made."""
    net = trained_net()
    dynamic = vr.convert(net).to(f"cuda:{torch.cuda.device_count() - 1}")
    result = vr.finetune(dynamic, *loaders(), config(epochs=1, distill_weight=1.0), original=net)
    assert len(result.history) == 2
    assert next(dynamic.parameters()).device.index == torch.cuda.device_count() - 1
