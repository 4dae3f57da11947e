"""Mixup, averaged weights, TensorBoard, gradient checkpointing."""

import sys

import pytest
import torch
from small import bright_or_dark, config, loaders, small_net, unlabelled
from torch.utils.data import DataLoader

import vared2_fx as vr
from vared2_fx.errors import ConvertError, TrainError
from vared2_fx.layers import DynamicRegion, recomputing
from vared2_fx.train.blend import mixed


def dynamic_net():
    torch.manual_seed(0)
    return vr.convert(small_net(), config=vr.ConvertConfig(min_macs_share=0.0))


def state_after(**changes):
    dynamic = dynamic_net()
    result = vr.finetune(dynamic, *loaders(), config(**changes))
    return dynamic.state_dict(), result


def test_mixed_clips_are_between_two():
    clips = torch.arange(3.0).view(3, 1, 1, 1, 1)
    torch.manual_seed(0)
    for _ in range(20):
        video, kept = mixed(clips, 0.4)
        assert 0.5 <= kept <= 1
        torch.testing.assert_close(video.flatten(), kept * torch.arange(3.0) + (1 - kept) * torch.tensor([2.0, 1, 0]))
    assert clips.flatten().tolist() == [0, 1, 2]


def test_mixup_changes_training_and_still_learns():
    plain, mixup = (state_after(epochs=6, efficiency_weight=0.0, mixup=alpha) for alpha in (0.0, 0.4))
    assert not torch.equal(plain[0]["8.weight"], mixup[0]["8.weight"])
    assert mixup[1].evaluation.accuracy > 0.9


def test_mixup_without_labels():
    result = vr.finetune(dynamic_net(), *unlabelled(), config(epochs=1, mixup=0.4, distill_weight=1.0))
    assert result.evaluation.agreement


def test_averaged_weights_are_kept_and_are_others():
    plain, averaged = (state_after(epochs=6, efficiency_weight=0.0, ema_decay=decay) for decay in (0.0, 0.5))
    assert not torch.equal(plain[0]["8.weight"], averaged[0]["8.weight"])
    assert averaged[1].evaluation.accuracy > 0.9
    assert plain[1].history[-1].train_loss == averaged[1].history[-1].train_loss  # training itself is the same


class Interrupted(Exception):
    pass


def test_an_average_begins_with_the_statistics_of_blocks(tmp_path):
    """What is saved before the first step, by a run that does not come to it."""

    class Once(list):
        def __iter__(self):
            if self.passes:
                raise Interrupted
            self.passes += 1
            return super().__iter__()

    def start():
        torch.manual_seed(0)
        options = vr.ConvertConfig(granularity="block", min_macs_share=0.0)
        return vr.convert(small_net(), torch.randn(2, 1, 8, 8, 8), options)

    val = loaders()[1]
    train = Once(val)
    train.passes = 0
    with pytest.raises(Interrupted):
        vr.finetune(start(), train, val, config(ema_decay=0.9, out=str(tmp_path)))
    measured, saved = start(), vr.load(tmp_path / "best", base=small_net()).state_dict()
    vr.recalibrate_norms(measured, val)
    names = [name for name in saved if ".statistics." in name]
    assert names
    assert all(torch.equal(saved[name], measured.state_dict()[name]) for name in names)


def test_an_average_goes_on_when_resumed(tmp_path):
    evaluations = 0

    class Val:
        def __iter__(self):
            nonlocal evaluations
            evaluations += 1
            if evaluations == 3:  # that of the second epoch, the converted network's being the first
                raise Interrupted
            return iter(loaders()[1])

    def trained(val, **changes):
        dynamic = dynamic_net()
        train = DataLoader(bright_or_dark(64, 1), batch_size=16, shuffle=True)
        vr.finetune(dynamic, train, val, config(ema_decay=0.9, epochs=3, **changes))
        return dynamic.state_dict()

    whole = trained(loaders()[1])
    with pytest.raises(Interrupted):
        trained(Val(), out=str(tmp_path))
    resumed = trained(loaders()[1], out=str(tmp_path), resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 1.0},
        {"mixup": -1.0},
        {"self_distill_weight": 1.0},
        {"settle_gates": True},
        {"tensorboard": True},
        {"gradient_checkpointing": True, "freeze_norms": False},
    ],
)
def test_impossible_values_are_refused(changes):
    with pytest.raises(ConvertError, match=next(iter(changes))):
        config(**changes)


@pytest.mark.parametrize("changes", [{"ema_decay": 0.9}, {"mixup": 0.2}])
def test_what_variants_first_does_not_use_is_refused(changes):
    with pytest.raises(ConvertError, match="no effect"):
        config(schedule="variants_first", **changes)


def test_tensorboard_has_every_epoch(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, result = state_after(epochs=2, out=str(tmp_path), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, round(event.value, 5)) for event in events.Scalars("val/share")]
    assert found == [(epoch.epoch, round(epoch.share, 5)) for epoch in result.history]
    assert any(tag.startswith("entropy by region/") for tag in events.Tags()["scalars"])


def test_without_tensorboard_installed_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainError, match="pip install"):
        state_after(out=str(tmp_path), tensorboard=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("granularity", ["conv", "stage"])
def test_recomputing_changes_memory_and_nothing_else(granularity):
    torch.manual_seed(0)
    options = vr.ConvertConfig(granularity=granularity, min_macs_share=0.0, gate="gumbel")
    observed = vr.with_decisions(vr.convert(small_net(), config=options)).train()
    clips = torch.randn(4, 1, 8, 8, 8)

    def step():
        kept = 0

        def pack(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        torch.manual_seed(1)  # of the gates' draws
        observed.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output, _ = observed(clips)
        output.square().sum().backward()
        return kept, [parameter.grad.clone() for parameter in observed.parameters()]

    for norm in observed.modules():
        if isinstance(norm, torch.nn.BatchNorm3d):
            norm.eval()
    state = {name: value.clone() for name, value in observed.state_dict().items()}
    plain, gradients = step()
    observed.load_state_dict(state)
    with recomputing(module for module in observed.modules() if isinstance(module, DynamicRegion)):
        less, again = step()
    assert less < 0.8 * plain
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert step()[0] == plain  # only inside the block


def test_finetune_recomputes_to_the_same_weights():
    plain, recomputed = (state_after(epochs=1, gradient_checkpointing=value)[0] for value in (False, True))
    assert all(torch.equal(value, recomputed[name]) for name, value in plain.items())
