"""Functions that take the mode as an argument follow it after tracing, whatever the mode was then."""

import copy
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import Net, TinyNet, make_clip
from torch import Tensor, nn

import vared2_fx as vr

CLIP = make_clip(2, 3, 8, 8, 8)


class Dropping(Net):
    """Dropout as a function, and a batch norm as one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.a(x), 0.5, self.training)
        x = F.batch_norm(self.b(x), self.mean, self.var, training=self.training)
        return self.head(F.dropout(x.mean((2, 3, 4)), p=0.5, training=bool(self.training)))


class Nested(nn.Module):
    """Two of them, whose modes may differ."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Dropping(), Dropping()

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def same_draws(network: nn.Module, clip: Tensor = CLIP) -> Tensor:
    torch.manual_seed(0)
    return network(clip)


@pytest.mark.parametrize("then", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_the_mode_decides_not_that_of_the_tracing(before, then):
    model = Dropping().train(before)
    dynamic = vr.convert(model)
    with vr.full(dynamic):
        converted = same_draws(dynamic.train(then))
    assert torch.equal(converted, same_draws(model.train(then)))
    assert torch.equal(dynamic.mean, model.mean)
    assert torch.equal(same_draws(dynamic), same_draws(dynamic)) or then
    assert list(vr.unload(dynamic).state_dict()) == list(model.state_dict())


def test_each_part_follows_its_own():
    model = Nested().train()
    model.left.eval()
    dynamic = vr.convert(model)
    with vr.full(dynamic):
        assert torch.equal(same_draws(dynamic), same_draws(model))
        mixed = same_draws(dynamic)
        dynamic.left.train()
        assert not torch.equal(same_draws(dynamic), mixed)


@pytest.mark.parametrize("take", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d)), vr.unload])
def test_copies_follow_it_too(take):
    other = take(vr.convert(Dropping().train()))
    assert torch.equal(same_draws(other.eval()), other(CLIP))
    assert not torch.equal(other.train()(CLIP), other(CLIP))


def test_it_is_saved_and_loaded_in_any_mode(tmp_path):
    model = Dropping().train()
    dynamic = vr.convert(model)
    loaded = vr.load(vr.save(dynamic, tmp_path), base=copy.deepcopy(model).eval())
    assert loaded.training
    assert torch.equal(loaded.eval()(CLIP), model.eval()(CLIP))


class Auxiliary(Net):
    def forward(self, x: Tensor):
        x = self.a(x)
        y = self.head(self.b(x).mean((2, 3, 4)))
        return (y, x.mean()) if self.training else y


@pytest.mark.parametrize("training", [False, True])
def test_other_operations_in_training_are_said_and_left_out(training, caplog):
    model = Auxiliary().train(training)
    with caplog.at_level(logging.INFO, "vared2_fx"):
        dynamic = vr.convert(model, CLIP)
    assert "Auxiliary computes other operations in training; converted is what evaluation computes" in caplog.text
    assert torch.equal(dynamic.eval()(CLIP), model.eval()(CLIP))


def test_a_network_without_such_functions_gets_nothing():
    assert not any("is_training" in path for path, _ in vr.convert(TinyNet().train()).named_modules())
