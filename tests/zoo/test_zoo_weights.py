"""Weights: the libraries' own from the hub's folder, a user's file, and what is said when there are none."""

import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vared2_fx import zoo
from vared2_fx.errors import ZooError
from vared2_fx.zoo.checkpoints import load_file
from vared2_fx.zoo.registry import _ENTRIES

FROM_A_LIBRARY = [name for name, entry in _ENTRIES.items() if entry.url is not None]


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """An empty folder for torch.hub's downloads, and no network."""

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def small():
    """A network for 3 classes, none of its weights or statistics at their initial value."""
    torch.manual_seed(0)
    model = zoo.load("x3d_xs", num_classes=3)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", FROM_A_LIBRARY)
def test_impossible_download_names_file_folder_and_address(name, hub_folder, capsys):
    device = "cpu" if name.startswith("mvit_base") else "meta"  # those cannot be built without values
    with torch.device(device), pytest.raises(ZooError, match="no route to host") as error:
        zoo.load(name, pretrained=True)
    text, url = str(error.value), _ENTRIES[name].url()
    file = url.rsplit("/", 1)[1]
    assert file.endswith((".pyth", ".pth"))
    assert f"Get the file {file} by other means from {url} and put it into {hub_folder};" in text
    assert capsys.readouterr().out == "", "standard output is for answers that a program may read"


@pytest.mark.parametrize("given", ["nothing", "the same", "another"])
@pytest.mark.parametrize(
    ("name", "file", "layout"),
    [
        ("x3d_xs", "X3D_XS.pyth", lambda state: {"model_state": state}),
        ("s3d", "s3d-d76dad2f.pth", lambda state: state),
        ("efficient_x3d_xs", "efficient_x3d_xs_original_form.pyth", lambda state: state),
        ("mvit_base_16", "MVIT_B_16_f292487636.pyth", lambda state: {"model_state": state}),
    ],
)
def test_file_put_by_hand_is_picked_up(name, file, layout, given, hub_folder):
    torch.manual_seed(1)
    spec = zoo.spec(name)
    num_classes = {"nothing": None, "the same": spec.num_classes, "another": 5}[given]
    published = zoo.load(name).state_dict()
    torch.save(layout(published), hub_folder / file)
    model = zoo.load(name, pretrained=True, num_classes=num_classes)
    state, head = model.state_dict(), _ENTRIES[name].head
    assert model.vared2_source == {"name": name, "num_classes": num_classes or spec.num_classes}
    assert not model.training
    if num_classes == 5:
        fresh, fresh_bias = state.pop(f"{head}.weight"), state.pop(f"{head}.bias")
        published = {key: value for key, value in published.items() if not key.startswith(f"{head}.")}
        assert fresh.std().item() == pytest.approx(0.01, rel=0.1)  # thousands of draws: 0.1 is far out
        assert torch.count_nonzero(fresh_bias) == 0
        with torch.no_grad():
            assert model(spec.example_inputs()).shape == (1, 5)
    assert_same_weights(state, published)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", {"model_state": {}}, {"other": {}}])
def test_wrong_file_in_the_folder_is_named(content, hub_folder):
    file = hub_folder / "X3D_XS.pyth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ZooError, match=r"does not hold the pretrained weights .* Delete it, or") as error:
        zoo.load("x3d_xs", pretrained=True)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("suffix", "layout"),
    [
        ("pt", lambda state: state),
        ("pyth", lambda state: {"model_state": state, "epoch": 3}),
        ("ckpt", lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}}),
        ("pth", lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}),
    ],
)
def test_own_file_round_trip(suffix, layout, small, tmp_path):
    path = tmp_path / f"own.{suffix}"
    torch.save(layout(small.state_dict()), path)
    model = zoo.load("x3d_xs", weights=path, num_classes=3)
    assert_same_weights(model.state_dict(), small.state_dict())
    assert model.vared2_source == {"name": "x3d_xs", "num_classes": 3}
    assert not model.training


def test_own_safetensors_round_trip(small, tmp_path):
    save_file(small.state_dict(), tmp_path / "own.safetensors")
    model = zoo.load("x3d_xs", weights=str(tmp_path / "own.safetensors"), num_classes=3)
    assert_same_weights(model.state_dict(), small.state_dict())


def test_file_with_another_head_says_which_number_to_pass(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "own.pt")
    with pytest.raises(ZooError, match=r"2 of another shape \(blocks\.5\.proj\.weight: \(3, 2048\)") as error:
        zoo.load("x3d_xs", weights=tmp_path / "own.pt")
    assert "The file has a last layer for 3 classes: pass num_classes=3." in str(error.value)


def test_misfit_is_listed_and_leaves_the_network_alone(small, tmp_path):
    state = small.state_dict()
    lost = [key for key in state if key.endswith("norm.weight")][:1] + list(state)[-2:]
    broken = {key: value + 1 for key, value in state.items() if key not in lost} | {"extra.weight": torch.ones(1)}
    torch.save(broken, tmp_path / "own.pt")
    model = zoo.load("x3d_xs", num_classes=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ZooError, match=r"does not fit x3d_xs: 3 missing") as error:
        load_file(model, _ENTRIES["x3d_xs"], tmp_path / "own.pt")
    assert all(key in str(error.value) for key in lost)
    assert "1 unknown to the network (extra.weight)" in str(error.value)
    assert_same_weights(model.state_dict(), before)


def test_checkpoint_of_another_network_lists_a_few_keys_only(tmp_path):
    with torch.device("meta"):
        other = zoo.load("mc3_18").state_dict()
    torch.save({key: torch.zeros(1) for key in other}, tmp_path / "other.pt")
    with pytest.raises(ZooError, match="Is it a checkpoint of another network") as error:
        zoo.load("x3d_xs", weights=tmp_path / "other.pt")
    assert "blocks.0.conv.conv_t.weight" in str(error.value)
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("absent.pt", None, "no such file"),
        ("list.pt", [1, 2], "found a list, expected a state dict"),
        ("empty.pt", {}, "found an empty dict"),
        ("wrapped.pt", {"epoch": 3, "net": {}}, "found a dict with the keys 'epoch', 'net'"),
        ("object.pt", {"state_dict": Path("x")}, "cannot be read as tensors only"),
        ("text.pt", b"not a checkpoint", "cannot be read as tensors only"),
        ("text.safetensors", b"not a checkpoint", "is no safetensors file"),
    ],
)
def test_unusable_files_say_why(name, content, text, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ZooError, match=text) as error:
        zoo.load("x3d_xs", weights=path)
    assert str(path) in str(error.value)


def test_two_sets_of_weights_are_refused():
    with pytest.raises(ZooError, match="leave one out"):
        zoo.load("x3d_xs", pretrained=True, weights="own.pt")


@pytest.mark.parametrize("num_classes", [0, -1])
def test_too_few_classes_are_refused(num_classes):
    with pytest.raises(ZooError, match=f"num_classes={num_classes}; it must be at least 1"):
        zoo.load("x3d_xs", num_classes=num_classes)
