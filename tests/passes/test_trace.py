"""Tracing and forking: same function, same modes, nothing of the source touched."""

import pytest
import torch
from networks import CONVS, Net, make_clip, tiny_net
from torch import Tensor, nn

from vared2_fx.errors import ConvertError
from vared2_fx.passes.trace import calls, copy_model, fork, trace


def test_traced_network_computes_the_same():
    model, clip = tiny_net(), make_clip(2, 3, 8, 16, 16)
    assert torch.equal(trace(model)(clip), model(clip))


def test_every_convolution_is_a_node():
    assert [node.target for node in calls(trace(tiny_net()), nn.Conv3d)] == list(CONVS)


class Choosy(nn.Module):
    """Control flow on values, but no convolution inside."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


class WithChoosy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.choosy = Choosy()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.choosy(x))


def test_modules_without_convolutions_are_not_looked_into():
    model, clip = WithChoosy(), make_clip(2, 3, 4, 8, 8).abs()
    traced = trace(model)
    for x in (clip, -clip):
        assert torch.equal(traced(x), model(x))


def test_dropout_follows_the_mode():
    traced, clip = trace(tiny_net()), make_clip(2, 3, 8, 16, 16)
    assert torch.equal(traced(clip), traced(clip))
    traced.train()
    assert not torch.equal(traced(clip), traced(clip))


@pytest.mark.parametrize("frozen", [(), ("stem",), ("norm", "down.1")])
@pytest.mark.parametrize("training", [False, True])
def test_every_module_keeps_its_mode(training, frozen):
    """Containers too, which torch.fx makes anew."""
    model = tiny_net().train(training)
    for path in frozen:
        model.get_submodule(path).eval()
    modes = {path: module.training for path, module in model.named_modules()}
    traced = trace(model)
    for gm in (traced, fork(traced), fork(fork(traced))):
        assert {path: module.training for path, module in gm.named_modules()} == modes


def test_a_fork_has_a_tree_of_its_own():
    traced, clip = trace(tiny_net()), make_clip(1, 3, 8, 16, 16)
    code, before = traced.code, traced(clip)
    other = fork(traced)
    other.set_submodule("stem.2", nn.Tanh())
    (node,) = other.graph.find_nodes(op="call_module", target="norm")
    node.replace_all_uses_with(node.args[0])
    other.graph.erase_node(node)
    other.recompile()
    assert traced.code == code
    assert torch.equal(traced(clip), before)
    assert not torch.equal(other(clip), before)


def test_a_fork_keeps_what_it_is_told_of_itself():
    traced = trace(tiny_net())
    traced.meta["note"] = 1
    assert type(fork(traced)).__name__ == "TinyNet"
    assert fork(traced).meta["note"] == 1


def test_what_cannot_be_copied_is_an_error_that_says_so():
    model = Net()
    model.seen = model(make_clip(1, 3, 4, 8, 8))  # a tensor with a history
    with pytest.raises(ConvertError, match=r"Net cannot be copied .*remove what cannot be copied"):
        copy_model(model)
