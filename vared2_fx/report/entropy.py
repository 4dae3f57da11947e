"""How sure the gates are about single clips, read while a network runs.

N clips; J frame strides, I channel shares.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from vared2_fx.layers.gate import Gate
from vared2_fx.passes.rewrite import regions
from vared2_fx.report.numbers import GateEntropy

Hook = Callable[[nn.Module, tuple[Tensor], Tensor], None]


class EntropyWatch:
    """Sums up, gate by gate, the entropy of the probabilities behind each decision."""

    def __init__(self, dynamic: fx.GraphModule) -> None:
        """Watch the gates of `dynamic`; those of soft modulation give no probabilities."""
        found = {path: region.gate for path, region in regions(dynamic).items()}
        self._gates = {path: gate for path, gate in found.items() if gate.kind != "soft_modulation"}
        self._sums: dict[str, list[Tensor]] = {path: [] for path in self._gates}
        self._logits: dict[str, Tensor] = {}
        self._batch: list[tuple[str, Tensor, int]] = []
        self._clips = dict.fromkeys(self._gates, 0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is decided inside the block; a gate whose decision is fixed computes nothing to count."""
        hooks = []
        for path, gate in self._gates.items():
            hooks.append(gate.out.register_forward_hook(self._keep(path)))
            hooks.append(gate.register_forward_hook(self._count(path, gate)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def keep(self) -> None:
        """Count the batch that ran; one that was interrupted is not kept."""
        for path, bits, clips in self._batch:
            self._sums[path].append(bits)
            self._clips[path] += clips
        self._batch.clear()

    def found(self) -> dict[str, GateEntropy]:
        """The mean over the clips so far, by path."""
        sums = {path: float(torch.stack(found).sum()) for path, found in self._sums.items() if found}
        return {
            path: GateEntropy(bits=round(bits / self._clips[path], 6), clips=self._clips[path])
            for path, bits in sums.items()
        }

    def _keep(self, path: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Tensor], z: Tensor) -> None:
            self._logits[path] = z

        return hook

    def _count(self, path: str, gate: Gate) -> Hook:
        def hook(module: nn.Module, args: tuple[Tensor], decision: Tensor) -> None:
            z = self._logits.pop(path, None)
            if z is None:
                return
            z, num_strides = z.double() / gate.temperature, len(gate.grid.frame_strides)
            offered = sum(stride <= gate.out_frames(args[0].shape[2]) for stride in gate.grid.frame_strides)
            bits = _bits(z[:, :offered]) + _bits(z[:, num_strides:])
            self._batch.append((path, bits.sum(), len(z)))

        return hook


def _bits(z: Tensor) -> Tensor:
    """Entropy of softmax(z), in bits: (N, K) → (N,)."""
    logs = torch.log_softmax(z, dim=1)
    return -(logs.exp() * logs).sum(1) / math.log(2)
