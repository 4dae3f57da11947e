"""Distillation: the original network teaches the converted one, with labels or instead of them [ours].

N clips, K classes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from vared2_fx.batches import read_batch
from vared2_fx.errors import DataError, TrainError
from vared2_fx.packing import Pack
from vared2_fx.policy.fix import unload


class Lesson(NamedTuple):
    """What is learned from, without gradients."""

    scores: Tensor
    """(N, K)."""
    features: Tensor | None
    """(N, …), what the classifier was given, where that is learned, too."""


class Teacher:
    """A frozen network whose answers are learned from. It is in evaluation mode and gets no gradients."""

    def __init__(self, network: nn.Module, pack: Pack, classifier: nn.Module | None = None) -> None:
        """Use `network`, which is put in evaluation mode; `pack` makes the arguments of a call from clips.

        `classifier`: its module whose inputs are features to learn.
        """
        self._network, self._pack, self._classifier = network.eval(), pack, classifier

    def __call__(self, video: Tensor) -> Tensor:
        """Clips (N, C, T, H, W) → scores (N, K) in float32, without autocast's rounding.

        Raises:
            DataError: the network gives no class scores.
        """
        return self.lesson(video).scores

    @torch.no_grad()
    def lesson(self, video: Tensor) -> Lesson:
        """Scores as above, and features."""
        with torch.autocast(video.device.type, enabled=False), watching(self._classifier) as seen:
            scores = self._network(*self._pack(video))
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            raise DataError("distillation: the original network gives no row of class scores per clip.")
        return Lesson(scores.float(), seen[0].float() if seen else None)

    def to(self, device: torch.device) -> None:
        """Move the network to where clips are."""
        self._network.to(device)

    def fingerprint(self) -> str:
        """Of its weights: a run is gone on with under the same teacher only."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self._network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def make_teacher(
    dynamic: fx.GraphModule, original: nn.Module | None, pack: Pack, *, classifier: str | None = None
) -> Teacher:
    """The teacher of a converted network: `original`, or, where that is None, a copy of what it was converted from.

    Raises:
        TrainError: `original` shares weights with `dynamic`, and would learn, too; or it has no module `classifier`.
    """
    if original is not None:
        trained = {id(parameter) for parameter in dynamic.parameters()}
        if any(id(parameter) in trained for parameter in original.parameters()):
            raise TrainError(
                "finetune: `original` shares weights with the network to train; pass a copy.deepcopy of it."
            )
    network = unload(dynamic) if original is None else original
    if classifier is None:
        return Teacher(network, pack)
    try:
        return Teacher(network, pack, network.get_submodule(classifier))
    except AttributeError:
        raise TrainError(
            f"finetune: feature_distill_weight compares what `{classifier}` is given, and `original` has no such "
            "module; leave feature_distill_weight out."
        ) from None


def classifier_of(dynamic: fx.GraphModule) -> str:
    """The path of the last linear layer, whose inputs are the features of a clip.

    Raises:
        TrainError: there is none.
    """
    for node in reversed(dynamic.graph.nodes):
        if node.op == "call_module" and isinstance(dynamic.get_submodule(str(node.target)), nn.Linear):
            return str(node.target)
    raise TrainError(
        "finetune: feature_distill_weight compares what the last linear layer is given, and the network calls none; "
        "leave it out."
    )


@contextmanager
def watching(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """What `module` is given inside the block, call by call."""
    seen: list[Tensor] = []
    if module is None:
        yield seen
        return
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


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


def feature_loss(features: Tensor, taught: Tensor) -> Tensor:
    """How far features (N, …) are from the teacher's: the squared distance over the square of those, mean of the clips.

    Raises:
        DataError: they differ in shape.
    """
    if features.shape != taught.shape:
        raise DataError(
            f"distillation: features of shape {tuple(taught.shape)} in the original network, {tuple(features.shape)} "
            "in the converted one; leave feature_distill_weight out."
        )
    student, teacher = (x.float().flatten(1) for x in (features, taught))
    return ((student - teacher).square().sum(1) / teacher.square().sum(1).clamp_min(1e-12)).mean()


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
