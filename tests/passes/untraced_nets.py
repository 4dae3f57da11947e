"""Networks that torch.fx cannot follow."""

import torch
from networks import Net, make_clip
from torch import Tensor, nn

CLIP = make_clip(3, 3, 6, 8, 8)


class Block(nn.Module):
    """A branch on values between convolutions of its own, one of them in a child that can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(8, 8, 3, padding=1)
        self.child = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.seldom = nn.Conv3d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().mean() > 1e3:
            x = self.seldom(x)
        return self.child(self.conv(x).relu()) + x


class InTheMiddle(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.block(self.a(x))).mean((2, 3, 4)))


class AtTheTop(Net):
    """The network's own forward function branches."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        if x.sum() > 0:
            x = -x
        return scale * super().forward(x)


class Lengths(Net):
    """Control flow on the number of frames, which differs from clip to clip."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[2] // 3):
            x = x + 1
        return super().forward(x)


class Pathways(Net):
    """Takes a list and writes into it, as pytorchvideo's SlowFast does."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Conv3d(3, 8, 3, padding=1)

    def forward(self, clips: list[Tensor]) -> Tensor:
        for i in range(len(clips)):
            clips[i] = [self.a, self.b][i](clips[i])
        return self.head(sum(clip.mean((2, 3, 4)) for clip in clips))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm3d):
            nn.init.normal_(norm.running_mean)
    return model


INSIDE = ["block.conv", "block.child.0", "block.seldom"]
CASES = {
    InTheMiddle: (["a", *INSIDE, "b"], "block"),
    AtTheTop: (["a", "b"], ""),
    Lengths: (["a", "b"], ""),
}
