"""The weighted sum of all choices, sampled from one full output: what training runs.

N clips, C channels (K kept), T frames, H height, W width, P = H·W; J frame strides, I channel shares.

A choice takes frames and channels of the full output and rebuilds the others from them, each output value from
values at the same place. So the sum over all choices is, per clip and channel, a T×T matrix applied to the
channel's own frames, plus one applied to the frames of the channel that it is rebuilt from. Only these small
matrices depend on weights and Φ; the maps are read once and written once [ours].
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vared2_fx.layers.rebuild import ChannelRebuild, FrameRebuild


def mix(
    y: Tensor,
    frame_weights: Tensor,
    channel_weights: Tensor,
    frame_rebuilds: Sequence[FrameRebuild | None],
    channel_rebuilds: Sequence[ChannelRebuild | None],
    *,
    num_frames: int,
    step: int = 1,
) -> Tensor:
    """Sum over choices: Σ_j V_j · Φt_j( Σ_i V_i · Φc_i(y) ).

    Args:
        y: the frames of the output that are computed at frame stride `step`, (N, C, S, H, W). Channels that no
            choice in the sum reads may hold anything finite.
        frame_weights: (N, J') weights V_j.
        channel_weights: (N, I') weights V_i.
        frame_rebuilds: Φt_j, None for R = 1.
        channel_rebuilds: Φc_i, None for r = 1.
        num_frames: T.
        step: distance of the frames of `y`, a divisor of every R in the sum; S = len(computed_frames(T, step)).

    Returns:
        (N, C, T, H, W), contiguous.
    """
    over_time = _over_time(y, frame_weights, frame_rebuilds, num_frames, step)
    own = sum(_own_share(rebuild, y) * _broadcast(v) for rebuild, v in _pairs(channel_rebuilds, channel_weights))
    bias = _frame_bias(y, frame_weights, frame_rebuilds, num_frames)
    picks: list[Tensor] = []
    matrices = []
    for rebuild, weight in _pairs(channel_rebuilds, channel_weights):
        if rebuild is None:
            continue
        values, factor, offset = _rebuilt(rebuild, y)
        picks.append(values)
        tail = over_time[:, rebuild.kept :]
        matrices.append((_broadcast(weight) * factor.view(-1, 1, 1) * tail).to(y.dtype))
        offsets = (weight[:, None, None] * offset[:, None] * tail.sum(3)).to(bias.dtype)
        bias = bias + torch.nn.functional.pad(offsets, (0, 0, rebuild.kept, 0))
    mixed: Tensor = _Mix.apply(y, (own * over_time).to(y.dtype), bias.to(y.dtype), len(picks), *picks, *matrices)
    return mixed


def _pairs(rebuilds: Sequence[Any], weights: Tensor) -> list[tuple[Any, Tensor]]:
    return list(zip(rebuilds, weights.unbind(1), strict=True))


def _broadcast(weight: Tensor) -> Tensor:
    return weight.view(-1, 1, 1, 1)


def _over_time(y: Tensor, weights: Tensor, rebuilds: Sequence[FrameRebuild | None], frames: int, step: int) -> Tensor:
    """Σ_j V_j · (frames of Φt_j from frames of y): (N, C, T, S)."""
    total = weights.new_zeros(())
    for rebuild, weight in _pairs(rebuilds, weights):
        if rebuild is None:
            matrix = torch.eye(frames, device=y.device, dtype=weights.dtype)
        else:
            matrix = rebuild.matrix(frames, step)
        total = total + _broadcast(weight) * matrix
    return total.expand(len(y), y.shape[1], -1, -1)


def _frame_bias(y: Tensor, weights: Tensor, rebuilds: Sequence[FrameRebuild | None], frames: int) -> Tensor:
    total = weights.new_zeros(len(y), y.shape[1], frames)
    for rebuild, weight in _pairs(rebuilds, weights):
        if rebuild is not None:
            total = total + weight[:, None, None] * rebuild.frame_bias(frames)
    return total


def _own_share(rebuild: ChannelRebuild | None, y: Tensor) -> Tensor:
    """(C, 1, 1): 1 for channels that the choice computes."""
    kept = y.shape[1] if rebuild is None else rebuild.kept
    return (torch.arange(y.shape[1], device=y.device) < kept).to(y.dtype).view(-1, 1, 1)


def _rebuilt(rebuild: ChannelRebuild, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a rebuilt channel is read from (maps, or indices of channels of y), its factor and its offset."""
    if rebuild.kind == "scale":
        return rebuild.source, rebuild.scale, rebuild.bias
    return rebuild(y), torch.ones_like(rebuild.bias), torch.zeros_like(rebuild.bias)


class _Mix(torch.autograd.Function):
    """out[n, c] = own[n, c] @ y[n, c] + bias[n, c], plus, for the last channels, matrix_i[n, c] @ pick_i[n, c].

    A pick is a map, or int64 channel indices into y: those are gathered again in the backward pass, so that of
    the large maps y alone is kept. `torch.bmm` reads and writes each map once; the same sum written out in
    broadcast operations took ten times as long, most of it for allocating intermediate maps.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, own: Tensor, bias: Tensor, num_picks: int, *rest: Tensor) -> Tensor:
        picks, matrices = rest[:num_picks], rest[num_picks:]
        whole = y.new_empty(*own.shape[:3], *y.shape[3:])  # no view, or what follows could not work in place
        out = whole.flatten(3)
        with torch.autocast(y.device.type, enabled=False):
            torch.bmm(own.flatten(0, 1), y.flatten(3).flatten(0, 1), out=out.flatten(0, 1))
            for pick, matrix in zip(picks, matrices, strict=True):
                out[:, -matrix.shape[1] :] += _apply(matrix, _gather(pick, y).flatten(3))
            out += bias.unsqueeze(3)
        ctx.save_for_backward(y, own, *rest)
        ctx.num_picks = num_picks
        return whole

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, own, *rest = ctx.saved_tensors
        picks, matrices = rest[: ctx.num_picks], rest[ctx.num_picks :]
        grad = grad.flatten(3)
        grad_y = _apply(own.transpose(2, 3), grad)
        grad_own = _outer(grad, y.flatten(3))
        grad_picks: list[Tensor | None] = []
        grad_matrices = []
        for pick, matrix in zip(picks, matrices, strict=True):
            tail = grad[:, -matrix.shape[1] :]
            grad_matrices.append(_outer(tail, _gather(pick, y).flatten(3)))
            back = _apply(matrix.transpose(2, 3), tail)
            if pick.dtype == torch.int64:
                grad_y.index_add_(1, pick, back)
                grad_picks.append(None)
            else:
                grad_picks.append(back.view_as(pick))
        return grad_y.view_as(y), grad_own, grad.sum(3), None, *grad_picks, *grad_matrices


def _gather(pick: Tensor, y: Tensor) -> Tensor:
    return y.index_select(1, pick) if pick.dtype == torch.int64 else pick


def _apply(matrices: Tensor, maps: Tensor) -> Tensor:
    """(N, C, T, S) @ (N, C, S, P)."""
    product = torch.bmm(matrices.flatten(0, 1), maps.flatten(0, 1))
    return product.view(*maps.shape[:2], *product.shape[1:])


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """(N, C, T, P) @ (N, C, S, P)ᵀ."""
    product = torch.bmm(left.flatten(0, 1), right.flatten(0, 1).transpose(1, 2))
    return product.view(*left.shape[:2], *product.shape[1:])
