"""Distillation: the original network teaches the converted one, with labels or instead of them [ours].

N clips, K classes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vared2_fx.batches import read_batch
from vared2_fx.errors import DataError, TrainError
from vared2_fx.packing import Pack
from vared2_fx.policy.fix import unload


class Teacher:
    """A frozen network whose answers are learned from. It is in evaluation mode and gets no gradients."""

    def __init__(self, network: nn.Module, pack: Pack) -> None:
        """Use `network`, which is put in evaluation mode; `pack` makes the arguments of a call from clips."""
        self._network, self._pack = network.eval(), pack

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        """Clips (N, C, T, H, W) → scores (N, K) in float32, without autocast's rounding.

        Raises:
            DataError: the network gives no class scores.
        """
        with torch.autocast(video.device.type, enabled=False):
            scores = self._network(*self._pack(video))
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            raise DataError("distillation: the original network gives no row of class scores per clip.")
        return scores.float()

    def fingerprint(self) -> str:
        """Of its weights: a run is gone on with under the same teacher only."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self._network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def make_teacher(dynamic: nn.Module, original: nn.Module | None, pack: Pack) -> Teacher:
    """The teacher of a converted network: `original`, or, where that is None, a copy of what it was converted from.

    Raises:
        TrainError: `original` shares weights with `dynamic`, and would learn, too.
    """
    if original is None:
        return Teacher(unload(dynamic), pack)  # type: ignore[arg-type]  # a GraphModule, checked by finetune
    trained = {id(parameter) for parameter in dynamic.parameters()}
    if any(id(parameter) in trained for parameter in original.parameters()):
        raise TrainError("finetune: `original` shares weights with the network to train; pass a copy.deepcopy of it.")
    return Teacher(original, pack)


def distillation_loss(scores: Tensor, taught: Tensor, *, temperature: float = 2.0) -> Tensor:
    """How far answers are from the teacher's: temperature² · KL(teacher ‖ student), both softened.

    The square keeps the size of the gradients when the temperature changes (Hinton, Vinyals, Dean, 2015).

    Args:
        scores: of the network that learns, (N, K).
        taught: of the teacher, (N, K).
        temperature: both are divided by it before the softmax; above 0.

    Returns:
        The mean over the clips, a scalar in nats; zero where both answer alike.

    Raises:
        DataError: the two do not know the same number of classes.
    """
    if scores.shape != taught.shape:
        raise DataError(
            f"distillation: the original network gives scores of shape {tuple(taught.shape)}, the converted one "
            f"{tuple(scores.shape)}; both have to know the same classes."
        )
    student, teacher = ((x.float() / temperature).log_softmax(1) for x in (scores, taught))
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


class Answered:
    """A loader in which clips without a label have the teacher's answer for one; others keep theirs."""

    def __init__(self, loader: Iterable[Any], teacher: Teacher, like: Tensor) -> None:
        """Ask `teacher` about the clips of `loader`, on the device and in the dtype of `like`."""
        self._loader, self._teacher, self._like = loader, teacher, like

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for raw in self._loader:
            batch = read_batch(raw)
            if batch.labels is None and len(batch.video):
                labels = self._teacher(batch.to(self._like).video).argmax(1)
                yield {"video": batch.video, "label": labels.cpu(), **_names(batch.names)}
            else:
                yield raw


def _names(names: list[str] | None) -> dict[str, list[str]]:
    return {} if names is None else {"video_name": names}
