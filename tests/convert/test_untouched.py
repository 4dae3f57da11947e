"""Nothing of the caller's is touched; modes, copies, pickles and threads."""

import copy
import io
import pickle
import threading

import pytest
import torch
from networks import (
    Net,
    make_clip,
    randomise_gates,
    randomise_rebuilds,
    tiny_net,
)
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError
from vared2_fx.passes.rewrite import regions, with_decisions

CLIP = make_clip(4, 3, 8, 16, 16)


@pytest.mark.parametrize("training", [False, True])
def test_modes_and_trainability_are_the_models(training):
    model = tiny_net().train(training)
    model.norm.eval()
    model.stem[0].requires_grad_(False)
    dynamic = vr.convert(model, CLIP)
    assert dynamic.training == training
    assert not dynamic.norm.training
    modes = {module.training for path, module in dynamic.named_modules() if path != "norm"}
    assert modes == {training}
    frozen = {name for name, parameter in dynamic.named_parameters() if not parameter.requires_grad}
    assert frozen == {"stem.0.body.weight"}


def failing(model: nn.Module) -> list[tuple[object, ConvertConfig]]:
    """Inputs and configs with which converting `model` fails, at different points."""
    return [
        (make_clip(1, 9, 8, 16, 16), ConvertConfig()),
        (make_clip(0, 3, 8, 16, 16), ConvertConfig()),
        (CLIP, ConvertConfig(include=("nowhere",))),
        (CLIP, ConvertConfig(min_channels=999)),
        ("clip", ConvertConfig()),
    ]


@pytest.mark.parametrize("training", [False, True])
def test_the_callers_network_is_untouched(untouched, training):
    model = tiny_net().train(training)
    model.depthwise.eval()
    model.grouped.requires_grad_(False)
    calls = []
    model.norm.register_forward_hook(lambda *args: calls.append("hook"))
    model(CLIP).sum().backward()
    with untouched(model):
        vr.scan(model, CLIP)
        vr.scan(model)
        dynamic = vr.convert(model, CLIP)
        vr.convert(model)
        dynamic.train()(CLIP).sum().backward()
        with torch.no_grad():
            for parameter in dynamic.parameters():
                parameter.add_(1.0)
        for inputs, config in failing(model):
            with pytest.raises(ConvertError):
                vr.convert(model, inputs, config)
    assert len(model.norm._forward_hooks) == 1


def test_a_deep_copy_is_independent():
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(tiny_net())))
    before, other = dynamic(CLIP), copy.deepcopy(dynamic)
    assert torch.equal(other(CLIP), before)
    assert conversion(other) == conversion(dynamic)
    assert not {id(p) for p in dynamic.parameters()} & {id(p) for p in other.parameters()}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(dynamic(CLIP), before)
    region = regions(other)["stem.0"]
    assert region.cost.macs.__self__ is region


@pytest.mark.parametrize(
    "make", [lambda d: d, with_decisions, copy.deepcopy, lambda d: vr.specialize(d, {"*": (2, 0.5)})]
)
def test_a_pickle_is_the_same_network(make):
    """Not how networks are saved, but how they reach other processes."""
    made = make(randomise_gates(randomise_rebuilds(vr.convert(tiny_net()))))
    other = pickle.loads(pickle.dumps(made))
    ours, theirs = made(CLIP), other(CLIP)
    if isinstance(ours, tuple):
        assert all(torch.equal(a, b) for p, d in ours[1].items() for a, b in zip(d, theirs[1][p], strict=True))
        ours, theirs = ours[0], theirs[0]
    assert torch.equal(ours, theirs)
    modes = [[module.training for module in network.modules()] for network in (made, other)]
    assert modes[0] == modes[1]
    if make is not copy.deepcopy:
        assert conversion(other) == conversion(made)


def test_a_state_dict_goes_through_torch_save():
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(tiny_net())))
    file = io.BytesIO()
    torch.save(dynamic.state_dict(), file)
    file.seek(0)
    other = vr.convert(tiny_net(1))
    assert not torch.equal(other(CLIP), dynamic(CLIP))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(CLIP), dynamic(CLIP))


def test_threads_share_a_network():
    dynamic = randomise_gates(randomise_rebuilds(vr.convert(tiny_net())))
    clips = [make_clip(3, 3, frames, 16, 16, seed=frames) for frames in (4, 7, 8, 16)]
    expected = [dynamic(clip) for clip in clips]
    results: list[list[Tensor]] = [[] for _ in clips]
    start = threading.Barrier(len(clips))

    def work(k: int) -> None:
        for _ in range(5):
            start.wait(10)
            results[k].append(dynamic(clips[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, right in zip(results, expected, strict=True):
        assert len(result) == 5
        assert all(torch.equal(output, right) for output in result)


def test_conversion_tells_how():
    model = tiny_net()
    assert conversion(vr.convert(model, CLIP)).source is None
    config = ConvertConfig(exclude=("last",))
    made = conversion(with_decisions(vr.convert(model, CLIP, config)))
    assert made.config == config
    assert made.plan == vr.scan(model, CLIP, config)
    for other in (model, torch.fx.symbolic_trace(Net())):
        with pytest.raises(ConvertError, match="not a converted network; call convert"):
            conversion(other)


def test_the_callers_clips_are_untouched():
    clip = CLIP.clone()
    vr.convert(tiny_net(), clip)
    assert torch.equal(clip, CLIP)
