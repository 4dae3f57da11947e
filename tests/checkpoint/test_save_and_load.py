"""Saving and loading: the same bits come back, whatever the network was wrapped in."""

import stat

import numpy as np
import pytest
import torch
import torch.distributed as dist
from networks import Net, TinyNet, randomise_rebuilds, tiny_net
from saved import CLIP, assert_same, trained
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from vared2_fx.convert import conversion
from vared2_fx.errors import CheckpointError, ConvertError
from vared2_fx.passes.rewrite import with_decisions

CONFIGS = {
    "default": {},
    "soft": {"gate": "soft_modulation", "normalize": False, "gate_hidden": 3, "gate_bins": 2},
    "cheap operations": {"frame_rebuild": "interpolate", "channel_rebuild": "depthwise"},
    "choices": {"frame_strides": (1, 3), "channel_shares": (1.0, 1 / 3), "exclude": ("expand", "la*")},
}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_bits_come_back(tmp_path, config):
    dynamic = trained(**CONFIGS[config])
    assert vr.save(dynamic, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    loaded = vr.load(str(tmp_path / "a" / "b"), base=TinyNet())
    assert_same(dynamic, loaded)
    assert conversion(loaded) == conversion(dynamic)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [WEIGHTS_FILE, CONFIG_FILE]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_every_dtype(tmp_path, dtype):
    dynamic = trained().to(dtype)
    loaded = vr.load(vr.save(dynamic, tmp_path), base=tiny_net())
    assert_same(dynamic, loaded)


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_comes_back(tmp_path, training):
    loaded = vr.load(vr.save(trained().train(training), tmp_path), base=TinyNet().train(not training))
    assert {module.training for module in loaded.modules()} == {training}


def test_a_network_of_the_zoo_needs_no_base(tmp_path):
    torch.manual_seed(0)
    dynamic = randomise_rebuilds(vr.convert(vr.zoo.load("r3d_18", num_classes=3)))
    loaded = vr.load(vr.save(dynamic, tmp_path))
    assert all(
        torch.equal(a, b) for a, b in zip(dynamic.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert conversion(loaded).source == {"name": "r3d_18", "num_classes": 3}


def test_the_base_is_untouched(tmp_path, untouched):
    vr.save(trained(), tmp_path)
    base = tiny_net(1).train()
    with untouched(base):
        loaded = vr.load(tmp_path, base=base)
        loaded.train()(CLIP).sum().backward()


def test_tied_and_channels_last_weights(tmp_path):
    model = tiny_net()
    model.depthwise[0].weight = torch.nn.Parameter(model.depthwise[0].weight.data)
    model.twin = torch.nn.Conv3d(8, 8, 3, padding=1, groups=8, bias=False)
    model.twin.weight = model.depthwise[0].weight
    model.stem.append(model.twin)
    dynamic = vr.convert(model.eval().to(memory_format=torch.channels_last_3d))
    assert_same(dynamic, vr.load(vr.save(dynamic, tmp_path), base=model))


def test_a_network_that_shows_its_decisions_is_saved_as_the_one_beneath(tmp_path):
    dynamic = trained()
    assert_same(dynamic, vr.load(vr.save(with_decisions(dynamic), tmp_path), base=TinyNet()))


def test_files_are_as_readable_as_others(tmp_path):
    vr.save(trained(), tmp_path)
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_only_dynamic_networks_are_saved(tmp_path):
    with pytest.raises(ConvertError, match="not a converted network"):
        vr.save(torch.fx.symbolic_trace(Net()), tmp_path)
    with pytest.raises(CheckpointError, match="was specialised; save the dynamic one"):
        vr.save(vr.specialize(trained(), {}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_values_cannot_be_saved(tmp_path):
    with torch.device("meta"):
        model = TinyNet()
    with pytest.raises(CheckpointError, match="meta device"):
        vr.save(vr.convert(model), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"save: .*file.* cannot be written"):
        vr.save(trained(), tmp_path / "file" / "below")


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "data parallel, compiled": lambda network: torch.compile(nn.DataParallel(network)),
    "decisions, data parallel": lambda network: nn.DataParallel(with_decisions(network)),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_network_is_saved_without_its_wrappers(tmp_path, wrap):
    dynamic = trained()
    vr.save(WRAPPERS[wrap](dynamic), tmp_path)
    assert conversion(WRAPPERS[wrap](dynamic)) == conversion(dynamic)
    assert_same(dynamic, vr.load(tmp_path, base=TinyNet()))
    assert_same(dynamic, vr.load(tmp_path, base=nn.DataParallel(TinyNet())))


def test_a_distributed_network_is_saved_without_its_wrapper(tmp_path, process_group):
    dynamic = trained().train()
    vr.save(DistributedDataParallel(with_decisions(dynamic)), tmp_path / "net")
    assert_same(dynamic.eval(), vr.load(tmp_path / "net", base=TinyNet()).eval())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_of_a_wrapped_network_are_loaded(prefix):
    dynamic, other = trained(), trained(1)
    state = {f"{prefix}{name}": value.clone() for name, value in dynamic.state_dict().items()}
    assert vr.load_weights(other, state) is other
    assert_same(dynamic, other)
    third = nn.DataParallel(trained(1))
    vr.load_weights(third, state)
    assert_same(dynamic, third.module)


BAD_STATES = {
    "missing": (lambda state: state.pop("head.bias"), "lack head.bias"),
    "unknown": (lambda state: state.update(extra=torch.zeros(1)), "extra, which the network has not"),
    "shape": (lambda state: state.update({"head.bias": torch.zeros(3)}), r"head.bias is \(3,\) in them and \(5,\)"),
    "no tensor": (lambda state: state.update({"head.bias": [0.0] * 5}), "head.bias is a list"),
    "other network": (lambda state: [state.clear(), state.update(Net().state_dict())], "lack stem.0"),
    "empty": (lambda state: state.clear(), "lack stem.0"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_weights_that_do_not_fit_change_nothing(case, untouched):
    change, message = BAD_STATES[case]
    dynamic, state = trained(), dict(trained(1).state_dict())
    change(state)
    with untouched(dynamic), pytest.raises(CheckpointError, match=message):
        vr.load_weights(dynamic, state)


def test_what_a_filter_chose_is_saved_the_filter_is_not(tmp_path):
    config = ConvertConfig(filter=lambda module, path: module.groups == 1)
    dynamic = vr.convert(tiny_net(), config=config)
    assert [entry.path for entry in conversion(dynamic).plan.skipped] == ["depthwise.0", "grouped"]
    loaded = vr.load(vr.save(dynamic, tmp_path), base=tiny_net())
    assert_same(dynamic, loaded)
    assert conversion(loaded) == conversion(dynamic)
    assert conversion(loaded).config.filter is None


def test_channels_in_numpys_whole_numbers_are_saved(tmp_path):
    """As pytorchvideo's builders give them."""
    model = Net()
    model.b = nn.Conv3d(np.int64(8), np.int64(8), 3, padding=1)
    dynamic = vr.convert(model.eval(), CLIP)
    assert torch.equal(vr.load(vr.save(dynamic, tmp_path), base=model)(CLIP), dynamic(CLIP))
