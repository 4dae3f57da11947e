"""Saving and loading: the same bits, never half of something, and clear words for what does not fit."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import Net, TinyNet, make_clip, randomise_gates, randomise_rebuilds, tiny_net

import vared2_fx as vr
from vared2_fx import ConvertConfig, checkpoint
from vared2_fx.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from vared2_fx.convert import conversion
from vared2_fx.errors import CheckpointError, ConvertError, ZooError
from vared2_fx.passes.rewrite import with_decisions

CLIP = make_clip(3, 3, 8, 16, 16)


def trained(seed: int = 0, **config: object):
    """A converted network that no value of is at its initial one."""
    return randomise_gates(
        randomise_rebuilds(vr.convert(tiny_net(seed), config=ConvertConfig(**config)), seed), seed=seed
    )


def assert_same(left, right):
    ours, theirs = left.state_dict(), right.state_dict()
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name])
    assert torch.equal(left(CLIP.to(ours["head.weight"])), right(CLIP.to(ours["head.weight"])))


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


# ---- what does not fit or is damaged


def edited(folder: Path, **changes: object) -> None:
    document = json.loads((folder / CONFIG_FILE).read_text())
    document.update(changes)
    (folder / CONFIG_FILE).write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))


def cut(name: str, share: float):
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * share))


def flip(name: str, place: float):
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(len(data) * place)] ^= 0x10
        (folder / name).write_bytes(data)

    return damage


def config_with(**changes: object):
    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG_FILE).read_text())["config"]
        edited(folder, config={**config, **changes})

    return damage


DAMAGES = {
    "no folder": (
        lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(),
        r"vared2.json cannot be read: No such file",
    ),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "vared2.json cannot be read: No such file"),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "model.safetensors cannot be read: No such file"),
    "config is a folder": (lambda f: [(f / CONFIG_FILE).unlink(), (f / CONFIG_FILE).mkdir()], "cannot be read"),
    "half a config": (cut(CONFIG_FILE, 0.5), "no valid JSON .* damaged"),
    "empty config": (cut(CONFIG_FILE, 0), "no valid JSON"),
    "config is not text": (lambda f: (f / CONFIG_FILE).write_bytes(b"\xff\xfe\x00"), "no valid JSON"),
    "config is a list": (lambda f: (f / CONFIG_FILE).write_text("[1, 2]"), "format version None"),
    "half the weights": (cut(WEIGHTS_FILE, 0.5), "or it is damaged"),
    "no byte of weights": (cut(WEIGHTS_FILE, 0), "or it is damaged"),
    "a bit of a weight": (flip(WEIGHTS_FILE, 0.9), "or it is damaged"),
    "a bit of the header": (flip(WEIGHTS_FILE, 0.01), "or it is damaged"),
    "garbage": (lambda f: (f / WEIGHTS_FILE).write_bytes(os.urandom(1000)), "or it is damaged"),
    "other version": (lambda f: edited(f, format_version=99), "format version 99, this release reads 1"),
    "no plan": (lambda f: edited(f, plan=...), "lacks plan; the file is damaged"),
    "no checksum": (lambda f: edited(f, weights_sha256=...), "lacks weights_sha256"),
    "wrong plan": (lambda f: edited(f, plan={"entries": 3}), "does not fit"),
    "wrong mode": (lambda f: edited(f, training="often"), "does not fit"),
    "config from the future": (config_with(colour="red"), "does not fit.*colour"),
    "impossible config": (config_with(frame_strides=[2]), "does not fit.*begin with 1"),
    "other gate": (config_with(gate_hidden=3), "does not fit.*size mismatch"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(tmp_path, damage, untouched):
    folder, base = vr.save(trained(), tmp_path / "net"), tiny_net()
    do, message = DAMAGES[damage]
    do(folder)
    with untouched(base), pytest.raises(CheckpointError, match=rf"(?s)load: .*{message}"):
        vr.load(folder, base=base)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: TinyNet(num_classes=7), "does not fit TinyNet.*head.weight"),
        (Net, "does not fit Net.*`stem.0` is called 0 times"),
        (trained, "does not fit"),
    ],
)
def test_another_base_is_refused(tmp_path, base, message):
    vr.save(trained(), tmp_path)
    with pytest.raises(CheckpointError, match=rf"(?s){message}"):
        vr.load(tmp_path, base=base())


def test_a_network_of_ones_own_needs_its_base(tmp_path):
    with pytest.raises(CheckpointError, match=r"pass the original as load\(folder, base=model\)"):
        vr.load(vr.save(trained(), tmp_path))


@pytest.mark.parametrize("source", [{"name": "x3d_q", "num_classes": 3}, {"name": "r3d_18"}, ["r3d_18"], 3])
def test_a_zoo_that_does_not_know_it(tmp_path, source):
    edited(vr.save(trained(), tmp_path), source=source)
    with pytest.raises((CheckpointError, ZooError)):
        vr.load(tmp_path)


def test_a_zoo_network_with_a_head_of_ones_own_asks_for_it(tmp_path):
    model = vr.zoo.load("r3d_18", num_classes=3)
    model.fc = torch.nn.Linear(512, 9)
    vr.save(vr.convert(model, config=ConvertConfig(include=("layer4.1.*",))), tmp_path)
    with pytest.raises(CheckpointError, match=r"pass the network that was converted as load\(folder, base=model\)"):
        vr.load(tmp_path)
    assert vr.load(tmp_path, base=model).fc.out_features == 9


# ---- a save that does not end


def test_a_new_save_replaces_the_old(tmp_path):
    vr.save(trained(0), tmp_path)
    vr.save(trained(1, gate_hidden=5), tmp_path)
    assert_same(trained(1, gate_hidden=5), vr.load(tmp_path, base=TinyNet()))
    assert len(list(tmp_path.iterdir())) == 2


class Stop(Exception):
    """Stands for anything that ends a save half-way."""


@pytest.mark.parametrize("at", ["save_file", "json.dumps", "os.replace 1", "os.replace 2"])
@pytest.mark.parametrize("error", [Stop, OSError])
def test_a_save_that_fails_leaves_the_old_one_whole(tmp_path, monkeypatch, at, error):
    old = trained(0)
    vr.save(old, tmp_path)
    countdown = [int(at[-1]) if at[-1].isdigit() else 1]
    name = at.split(" ")[0]
    module, attribute = (checkpoint, name) if name == "save_file" else map(str.strip, name.split("."))
    real = getattr(checkpoint if module is checkpoint else getattr(checkpoint, module), attribute)

    def failing(*args, **kwargs):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise error("no space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint if module is checkpoint else getattr(checkpoint, module), attribute, failing)
    with pytest.raises(CheckpointError if error is OSError else error, match="no space left"):
        vr.save(trained(1, gate_hidden=5), tmp_path)
    monkeypatch.undo()
    assert_same(old, vr.load(tmp_path, base=TinyNet()))
    assert len(list(tmp_path.iterdir())) == 2, "left-overs"


@pytest.fixture
def one_thread():
    """As in the process that is killed: products of matrices round by the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KILLS = """
import os, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_checkpoint import trained
import vared2_fx as vr
old, new, replace = trained(0), trained(1, gate_hidden=5), os.replace
for at in (1, 2, 3):
    folder = os.path.join({folder!r}, str(at))
    vr.save(old, folder)
    if pid := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        continue
    calls = 0
    def replace_or_die(*args):
        global calls
        calls += 1
        if calls == at:
            os._exit(9)
        replace(*args)
    os.replace = replace_or_die
    vr.save(new, folder)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_one_of_both_whole(tmp_path, one_thread):
    """Killed before each of the three steps that rename; then a save goes through."""
    script = KILLS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1])
    for at in (1, 2, 3):
        right = trained(0) if at < 3 else trained(1, gate_hidden=5)  # the second renaming decides
        assert_same(right, vr.load(tmp_path / str(at), base=TinyNet()))
        vr.save(right, tmp_path / str(at))
        assert_same(right, vr.load(tmp_path / str(at), base=TinyNet()))
        assert len(list((tmp_path / str(at)).iterdir())) == 2
