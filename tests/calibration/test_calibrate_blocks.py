"""Blocks and stages, calibrated."""

import pytest
import torch
from block_networks import NETWORKS, block_net
from networks import make_clip

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.errors import DataError

CLIPS = make_clip(8, 3, 8, 32, 32)
LOADER = list(CLIPS.split(4))


def settled_net(name: str) -> torch.nn.Module:
    """A network of `block_networks` whose norms have the statistics of `CLIPS`, as a trained one's have its data's."""
    model = block_net(name).train()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm3d):
            norm.reset_running_stats()
            norm.momentum = 1.0
    with torch.no_grad():
        model(CLIPS)
    return model.eval()


def converted(name: str = "Residual", granularity: str = "block", **config: object) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return vr.convert(settled_net(name), CLIPS[:1], ConvertConfig(granularity=granularity, **config))


@pytest.mark.parametrize("granularity", ["block", "stage"])
@pytest.mark.parametrize("name", NETWORKS)
def test_channels_are_nearer_and_the_full_one_is_the_same(name, granularity):
    dynamic = converted(name, granularity)
    found = vr.calibrate(dynamic, LOADER)
    gains = [fit.after - fit.before for layer in found.layers for fit in layer.choices if fit.frame_stride == 1]
    assert sum(gains) > 0
    with vr.full(dynamic), torch.no_grad():
        full = settled_net(name)(CLIPS)
        # sums in another order
        torch.testing.assert_close(dynamic(CLIPS), full, rtol=1e-4, atol=1e-5)


def test_channels_of_a_pair_are_rebuilt_exactly():
    """Every channel inside a block twice: half of them, the right half, is enough."""
    model = block_net("Strided")
    with torch.no_grad():
        model.a.weight[1::2], model.a.bias[1::2] = 2 * model.a.weight[::2], 2 * model.a.bias[::2]
    config = ConvertConfig(granularity="block", frame_strides=(1,), channel_shares=(1.0, 0.5))
    results = {}
    for reorder in (True, False):
        torch.manual_seed(0)
        (layer,) = vr.calibrate(vr.convert(model, CLIPS[:1], config), LOADER, reorder=reorder, ridge=0.0).layers
        results[reorder] = layer
    assert results[True].new_channels == 4
    assert results[True].choices[0].after > 0.97, "the rim, where the bias is counted as if the map went on"
    assert results[False].choices[0].after < 0.9


def test_without_reordering_weights_and_modes_stay():
    dynamic = converted(frame_rebuild="repeat").train()
    before = {name: value.clone() for name, value in dynamic.state_dict().items()}
    vr.calibrate(dynamic, LOADER, reorder=False, frames=True)
    changed = {name for name, value in dynamic.state_dict().items() if not torch.equal(value, before[name])}
    assert {part for name in changed for part in name.split(".") if part in PARTS} == PARTS
    assert all(PARTS & set(name.split(".")) for name in changed)
    assert all(module.training for module in dynamic.modules())


PARTS = {"frame_rebuilds", "channel_rebuilds", "statistics"}


@pytest.mark.parametrize(
    ("clips", "match"),
    [
        ([CLIPS[:4], CLIPS[:4] * float("nan")], "not finite"),
        (CLIPS[:1, :, :2, :4, :4], "too few to fit it; pass about"),
    ],
)
def test_errors_change_nothing(clips, match, untouched):
    dynamic = converted()
    with untouched(dynamic), pytest.raises(DataError, match=match):
        vr.calibrate(dynamic, clips)


def test_calibrated_blocks_can_be_saved_and_made_static(tmp_path):
    dynamic = converted()
    vr.calibrate(dynamic, LOADER)
    vr.save(dynamic, tmp_path)
    again = vr.load(tmp_path, base=settled_net("Residual"))
    with vr.policy(dynamic, {"*": (2, 0.5)}), torch.no_grad():
        expected = dynamic(CLIPS)
    for made in (dynamic, again):
        with torch.no_grad():
            torch.testing.assert_close(vr.specialize(made, {"*": (2, 0.5)})(CLIPS), expected, rtol=1e-5, atol=1e-6)
