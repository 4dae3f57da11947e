"""What `redundancy` says is what the maps are made of."""

import json

import pytest
import torch
from block_networks import CLIP, block_net
from networks import CONVS, Net, make_clip, tiny_net
from torch import nn

import vared2_fx as vr
from vared2_fx import ConvertConfig
from vared2_fx.calibration import LayerRedundancy
from vared2_fx.errors import DataError

LOADER = [(make_clip(3, 3, 8, 16, 16, seed=seed), torch.zeros(3, dtype=torch.int64)) for seed in range(2)]


def still(clips: torch.Tensor) -> torch.Tensor:
    return clips[:, :, :1].expand_as(clips).contiguous()


def by_path(found: vr.Redundancy) -> dict[str, LayerRedundancy]:
    return {layer.path: layer for layer in found.layers}


def test_every_convolution_has_a_row_and_nothing_changes(untouched):
    model = tiny_net().train()
    with untouched(model):
        found = vr.redundancy(model, LOADER)
    assert tuple(by_path(found)) == CONVS
    assert found.clips == 6
    assert json.loads(found.to_json())["layers"][0]["path"] == "stem.0"
    assert all(len(line) <= 100 for line in str(found).splitlines())


def test_still_clips_have_predictable_frames_and_noise_has_not():
    pointwise = nn.Sequential(nn.Conv3d(3, 8, 1))
    clips = make_clip(4, 3, 8, 9, 9)
    noisy, quiet = (by_path(vr.redundancy(pointwise, x))["0"].by_frame for x in (clips, still(clips)))
    assert quiet.r2 > 1 - 1e-9
    assert quiet.share == 1.0
    assert noisy.r2 < 0.05
    assert noisy.share == 0.0


def test_channels_that_are_multiples_of_others_are_predicted():
    conv = nn.Conv3d(3, 6, 1)
    with torch.no_grad():
        conv.weight[3:] = -2 * conv.weight[:3]
    alone = by_path(vr.redundancy(nn.Sequential(conv), make_clip(4, 3, 4, 9, 9)))["0"]
    assert alone.by_channel.r2 > 1 - 1e-6
    assert alone.by_channel.share == 1.0


def test_jointly_predicts_what_one_channel_cannot():
    conv = nn.Conv3d(2, 3, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0.7, 0.7]]).view(3, 2, 1, 1, 1))
    layer = by_path(vr.redundancy(nn.Sequential(conv), make_clip(4, 2, 4, 9, 9), channel_share=0.6))["0"]
    assert layer.by_channels.r2 > 1 - 1e-6
    assert layer.by_channel.r2 < 0.8


def test_a_converted_network_is_looked_at_in_full(untouched):
    model = block_net("Residual")
    plain = vr.redundancy(model, CLIP)
    for granularity in ("conv", "block"):
        dynamic = vr.convert(model, CLIP, ConvertConfig(granularity=granularity))
        for seen in (dynamic, vr.with_decisions(dynamic), nn.DataParallel(dynamic)):
            with untouched(seen):
                found = vr.redundancy(seen, CLIP)
            assert found.layers == plain.layers


def test_too_few_values_are_not_taken_for_redundancy():
    found = by_path(vr.redundancy(block_net("Residual"), CLIP))
    squeezed = [layer for path, layer in found.items() if ".fc" in path]
    assert squeezed
    assert all(layer.by_channel is None and layer.by_frame is None for layer in squeezed)


def test_a_network_that_torch_fx_cannot_follow():
    class Branching(Net):
        def forward(self, x):
            return super().forward(x if x.mean() > 10 else x + 1)

    torch.manual_seed(0)
    assert tuple(by_path(vr.redundancy(Branching(), CLIP))) == ("a", "b")


def test_only_so_many_clips():
    assert vr.redundancy(tiny_net(), LOADER, max_clips=4).clips == 4
    assert vr.redundancy(tiny_net(), make_clip(5, 3, 8, 16, 16), max_clips=2).clips == 2


@pytest.mark.parametrize(
    ("clips", "options", "match"),
    [
        ([], {}, "gave no clips"),
        (CLIP, {"max_clips": 0}, "at least one clip"),
        (CLIP, {"frame_stride": 1}, "leave something to predict"),
        (CLIP, {"channel_share": 1.0}, "leave something to predict"),
        (CLIP * float("inf"), {}, "`stem.0` gives values that are not finite"),
        (CLIP[0], {}, "expected"),
    ],
)
def test_clear_errors(clips, options, match):
    with pytest.raises(DataError, match=match):
        vr.redundancy(tiny_net(), clips, **options)
