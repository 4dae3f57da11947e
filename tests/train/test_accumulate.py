"""Gradients of several batches for one update."""

import pytest
import torch
from small import bright_or_dark, config, loaders, small_net
from torch.utils.data import DataLoader

import vared2_fx as vr

PLAIN = {"epochs": 1, "optimizer": "sgd", "clip_grad": 0.0, "temperature": (1e-3, 1e-3)}


@pytest.fixture
def updates(monkeypatch):
    """Runs `finetune`; returns the last layer's gradient at each update."""

    def run(train, **changes):
        found, step = [], torch.optim.SGD.step

        def noting(self, *args, **kwargs):
            found.append(self.param_groups[0]["params"][-1].grad.clone())
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(torch.optim.SGD, "step", noting)
            vr.finetune(vr.convert(small_net()), train, loaders()[1], config(**PLAIN, **changes))
        return found

    return run


def in_batches(size, clips=64):
    return DataLoader(bright_or_dark(clips, 1), batch_size=size)


def test_two_batches_of_half_the_size_are_one(updates):
    """The first update has the same gradient, and there are as many; decided gates, as undecided ones see a batch."""
    whole, halves = updates(in_batches(16)), updates(in_batches(8), accumulate=2)
    control = updates(in_batches(8))
    assert (len(whole), len(halves), len(control)) == (4, 4, 8)
    torch.testing.assert_close(halves[0], whole[0])
    assert not torch.allclose(control[0], whole[0])


def test_with_variants_first_batches_are_accumulated_choice_by_choice(updates):
    """The first update is that of the full choice alone, on the clips of both batches."""
    ways = {"schedule": "variants_first", "self_distill_weight": 1.0}
    whole, halves = updates(in_batches(16), **ways), updates(in_batches(8), accumulate=2, **ways)
    control = updates(in_batches(8), **ways)
    assert (len(whole), len(halves), len(control)) == (12, 12, 24), "three choices for each batch"
    torch.testing.assert_close(halves[0], whole[0])
    assert not torch.allclose(control[0], whole[0])


def test_a_group_that_is_not_full_is_averaged_over_what_it_has(updates):
    """Weights that stay, so that its gradient is that of its one batch."""
    still = {"lr": 0.0, "gate_lr": 0.0}
    alone, grouped = updates(in_batches(16, 48), **still), updates(in_batches(16, 48), accumulate=2, **still)
    assert (len(alone), len(grouped)) == (3, 2)
    torch.testing.assert_close(grouped[-1], alone[-1])


def test_what_waits_is_not_lost_with_an_unreadable_last_batch(updates):
    lost = {"video": torch.zeros(0, 1, 8, 8, 8), "label": torch.zeros(0, dtype=torch.long)}
    clips, labels = bright_or_dark(16, 1).tensors
    alone, grouped = updates([(clips, labels)]), updates([(clips, labels), lost], accumulate=2)
    assert len(alone) == len(grouped) == 1
    torch.testing.assert_close(grouped[0], alone[0])
