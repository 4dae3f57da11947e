"""The router: a tiny network that sees a clip once, and says for each route whether it keeps the clip's answer [ours].

N clips, C channels, T frames, H height, W width; K routes but the full one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS = 28
"""A frame is averaged down to about so many cells along each side."""
FRAMES = 16
"""It looks at no more frames than about these, spread evenly."""
WIDTHS = (16, 12, 8, 4)
"""Channels of the first layer, the most that `max_macs` allows."""
_LAGS = (1, 2)
_SMALL = 1e-2
"""Added to a change before its logarithm is taken, in the unit of normalised pixels."""


class Router(nn.Module):
    """Low-resolution frames and how they change, two convolutions, one score for each route but the full one.

    It looks at cells of a frame, their mean, and the logarithm of what changes in them over one frame and over two:
    noise changes as much over one frame as over two, motion does not (as gates do). Plain operators of fixed sizes,
    so that any engine takes it.
    """

    def __init__(self, clip_shape: tuple[int, ...], num_scores: int, *, width: int = WIDTHS[0]) -> None:
        """Make one for clips of (C, T, H, W), with random weights.

        Args:
            clip_shape: size of the clips.
            num_scores: scores that it gives, K.
            width: channels of its first layer; the second has twice as many.
        """
        super().__init__()
        channels, frames, small = clip_shape[0], clip_shape[1], min(clip_shape[2:])
        self.clip_shape, self.cell, self.step = tuple(clip_shape), max(1, small // CELLS), max(1, frames // FRAMES)
        self.lags = tuple(lag for lag in _LAGS if lag < len(range(0, frames, self.step)))
        self.norm = nn.BatchNorm3d(channels * (1 + len(self.lags)))
        self.first = nn.Conv3d(channels * (1 + len(self.lags)), width, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.second = nn.Conv3d(width, 2 * width, (3, 3, 3) if frames > 2 else (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.head = nn.Linear(4 * width, num_scores)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, C, T, H, W) → logits (N, K) that a route keeps the clip's answer."""
        return self.scores(self.look(clips))

    def scores(self, views: Tensor) -> Tensor:
        """Views (N, 3C, T', h, w) → logits (N, K)."""
        x = F.relu(self.second(F.relu(self.first(self.norm(views)))))
        logits: Tensor = self.head(torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], dim=1))
        return logits

    def look(self, clips: Tensor) -> Tensor:
        """(N, C, T, H, W) → (N, 3C, T', about 28, about 28): cells, and their changes over one and two frames."""
        cells = F.avg_pool3d(clips[:, :, :: self.step], (1, self.cell, self.cell))
        views = [cells]
        for lag in self.lags:
            change = (cells[:, :, lag:] - cells[:, :, :-lag]).abs()
            change = torch.cat([change[:, :, :1]] * lag + [change], dim=2)  # as many frames as there are
            views.append((change + _SMALL).log())
        return torch.cat(views, dim=1)

    @property
    def macs(self) -> int:
        """Multiply-adds per clip of its convolutions and its linear layer, and one per pixel that is averaged."""
        _, t, h, w = self.clip_shape
        t = len(range(0, t, self.step))
        looked = self.clip_shape[0] * t * h * w
        h, w = (_halved(size // self.cell) for size in (h, w))
        first = t * h * w * self.first.weight.numel()
        h, w, t = _halved(h), _halved(w), t - self.second.kernel_size[0] + 1
        return looked + first + t * h * w * self.second.weight.numel() + self.head.weight.numel()


def make_router(clip_shape: tuple[int, ...], num_scores: int, max_macs: float) -> Router:
    """The widest router that costs at most `max_macs`; the narrowest where none does."""
    for width in WIDTHS:
        router = Router(clip_shape, num_scores, width=width)
        if router.macs <= max_macs:
            break
    return router


def fit_router(
    router: Router, views: Tensor, keeps: Tensor, *, epochs: int = 60, lr: float = 3e-3, seed: int = 0
) -> None:
    """Teach it, from what it sees of clips, which routes keep their answers.

    Args:
        router: trained in place; left in evaluation mode.
        views: (N, 3C, T', h, w), what `router.look` made of the clips.
        keeps: float (N, K), 1 where a route keeps the clip's answer.
        epochs: passes over the clips, in batches of 32, half of which are mirrored.
        lr: largest learning rate of AdamW; it falls along a cosine.
        seed: of order and mirroring.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(views) // 32)
    optimizer = torch.optim.AdamW(router.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    router.train()
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(views), generator=generator), 32):
            x = views[index].float()
            if torch.rand((), generator=generator) < 0.5:
                x = x.flip(-1)
            loss = F.binary_cross_entropy_with_logits(router.scores(x), keeps[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    router.eval()


def _halved(size: int) -> int:
    return (size + 1) // 2
