"""Pooling to one value per channel becomes a mean."""

import pytest
import torch
import torch.nn.functional as F
from networks import make_clip
from torch import Tensor, nn

import vared2_fx as vr
from vared2_fx.passes.deploy.follow import follow
from vared2_fx.passes.deploy.mean_pools import Mean, mean_pools

CLIP = make_clip(2, 4, 5, 6, 6)


class Function(nn.Module):
    """Pools by a function."""

    def __init__(self, size: object) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, C, …)."""
        return F.adaptive_avg_pool3d(x, self.size)


@pytest.mark.parametrize("part", [nn.AdaptiveAvgPool3d(1), nn.AdaptiveAvgPool3d((1, 1, 1)), Function(1)], ids=str)
def test_it_is_replaced(part):
    gm = follow(nn.Sequential(nn.Conv3d(4, 4, 1), part), (CLIP,))
    out = mean_pools(gm)
    assert not any(isinstance(module, nn.AdaptiveAvgPool3d) for module in out.modules())
    assert F.adaptive_avg_pool3d not in [node.target for node in out.graph.nodes]
    torch.testing.assert_close(out(CLIP), gm(CLIP), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "part", [nn.AdaptiveAvgPool3d((1, 2, 1)), nn.AdaptiveMaxPool3d(1), Function((2, 1, 1))], ids=str
)
def test_other_poolings_stay(part):
    gm = follow(nn.Sequential(nn.Conv3d(4, 4, 1), part), (CLIP,))
    out = mean_pools(gm)
    assert out.code == gm.code
    assert not any(isinstance(module, Mean) for module in out.modules())


class Head(nn.Module):
    """As pytorchvideo's: pool, a linear layer along channels put last, pool what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv3d(3, 8, 3, stride=(2, 1, 1), padding=1), nn.AvgPool3d((4, 7, 7), stride=1)
        self.proj, self.last = nn.Linear(8, 5), nn.AdaptiveAvgPool3d(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, 7, 7) → (N, 5)."""
        y = self.proj(self.pool(self.conv(x)).permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        return self.last(y).view(x.shape[0], -1)


def test_openvino_at_another_number_of_frames():
    pytest.importorskip("openvino")
    model = Head().eval()
    deployed = vr.deploy(model, "openvino", example_inputs=make_clip(1, 3, 8, 7, 7))
    longer = make_clip(1, 3, 12, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(deployed(longer), model(longer), rtol=1e-4, atol=1e-5)
