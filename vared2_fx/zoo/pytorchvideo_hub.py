"""Networks of `pytorchvideo.models.hub`, trained on Kinetics-400.

Where the numbers come from:

- `frames` x `sampling_rate`: pytorchvideo's "Model Zoo and Benchmarks" (docs/source/model_zoo.md).
- `crop` and `short_side`: the size at which those accuracies and costs were measured, which is larger than
  the training crop (224; x3d_xs and x3d_s 160; x3d_l 312). It is `DATA.TEST_CROP_SIZE` of PySlowFast's
  configs/Kinetics/pytorchvideo, is what the torch.hub pages of X3D and 3D ResNet use, and gives the costs of
  the model zoo's table (tested).
- `fps`, `mean`, `std`: the torch.hub pages, the same for all.

The heads average over what a fixed pooling window, made for the training crop and clip, leaves: larger crops
and longer clips work as well, smaller ones do not.

One thing differs from the hub: it ends x3d_* and r2plus1d_r50 in a softmax, which a cross-entropy would apply
a second time. Here, as in pytorchvideo's own training code, every network answers logits. At the training
crop softmax(logits) is the hub's answer; at a larger one the hub averages probabilities over the positions
that its pooling window leaves, this averages logits.
"""

import importlib
import warnings
from functools import partial
from types import ModuleType

from torch import nn

from vared2_fx.zoo.spec import Entry, Spec


def _hub(module: str) -> ModuleType:
    """Import pytorchvideo.models.hub.`module`, without torch's warnings about its use of torch.jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
        return importlib.import_module(f"pytorchvideo.models.hub.{module}")


def _build(module: str, name: str, *, logits_option: bool, num_classes: int, pretrained: bool) -> nn.Module:
    options = {"head_activation": None} if logits_option else {}
    builder = getattr(_hub(module), name)
    model: nn.Module = builder(pretrained=pretrained, model_num_class=num_classes, **options)
    return model


def _url(module: str, name: str) -> str:
    return str(_hub(module).checkpoint_paths[name])


def _entry(
    name: str,
    module: str,
    *,
    clip: tuple[int, int],
    crop: int,
    head: str = "blocks.5.proj",
    ends_in_softmax: bool = False,
) -> Entry:
    """Describe one network; `clip` is frames x sampling rate, as the model zoo writes it."""
    frames, sampling_rate = clip
    spec = Spec(
        name=name,
        library="pytorchvideo",
        frames=frames,
        crop=crop,
        short_side=crop,
        sampling_rate=sampling_rate,
        fps=30.0,
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
        num_classes=400,
    )
    build = partial(_build, module, name, logits_option=ends_in_softmax)
    return Entry(spec=spec, build=build, head=head, url=partial(_url, module, name))


ENTRIES: tuple[Entry, ...] = (
    _entry("c2d_r50", "resnet", clip=(8, 8), crop=256, head="blocks.6.proj"),
    _entry("i3d_r50", "resnet", clip=(8, 8), crop=256, head="blocks.6.proj"),
    _entry("slow_r50", "resnet", clip=(8, 8), crop=256),
    _entry("csn_r101", "csn", clip=(32, 2), crop=256),
    _entry("r2plus1d_r50", "r2plus1d", clip=(16, 4), crop=256, ends_in_softmax=True),
    _entry("x3d_xs", "x3d", clip=(4, 12), crop=182, ends_in_softmax=True),
    _entry("x3d_s", "x3d", clip=(13, 6), crop=182, ends_in_softmax=True),
    _entry("x3d_m", "x3d", clip=(16, 5), crop=256, ends_in_softmax=True),
    _entry("x3d_l", "x3d", clip=(16, 5), crop=356, ends_in_softmax=True),
)
"""The networks, in the order in which the zoo lists them."""
