"""Networks of `pytorchvideo.models.hub`: all of them.

Where the numbers come from:

- `frames` x `sampling_rate`: pytorchvideo's "Model Zoo and Benchmarks" (docs/source/model_zoo.md). For SlowFast it
  writes those of the slow pathway (8x8); here, as in PySlowFast's configs, `frames` and `sampling_rate` are the fast
  one's (32 x 2), and `pathways` says how many frames each takes (alpha = 4).
- `crop` and `short_side`: the size at which those accuracies and costs were measured, which is larger than
  the training crop (224; x3d_xs and x3d_s 160; x3d_l 312). It is `DATA.TEST_CROP_SIZE` of PySlowFast's
  configs/Kinetics/pytorchvideo, is what the torch.hub pages of X3D, 3D ResNet and SlowFast use, and gives the costs
  of the model zoo's table (tested). mvit_* take their training crop only, cut from a short side of 256 (the same
  configs, `TRAIN_JITTER_SCALES`, which PySlowFast takes for tests with one crop).
- efficient_x3d_*: accuracies are those "with 10-clip evaluation", one crop per clip: then the configs of X3D say crop
  160, short side 182. The tutorials use 160 too. The rest as for x3d_*, to which they are "arithmetically equivalent".
- *_detection: AVA 2.2, 80 actions, several at a time. Frames: the model zoo. Size, `mean` and `std`, and the form of
  the boxes: the tutorial for detection. It crops nothing: a wider frame works too, with boxes in its pixels.
- mvit_base_16: ImageNet-1k, so images and 1000 classes. `mean` and `std`: PySlowFast's configs/ImageNet/
  MVIT_B_16_CONV.yaml; short side 256, as is usual there.
- `fps`, `mean`, `std` of all others: the torch.hub pages, the same for all.

The heads average over what a fixed pooling window, made for the training crop and clip, leaves: larger crops
and longer clips work as well, smaller ones do not. slowfast_* and *_detection take their number of frames only,
*_detection any size; efficient_x3d_* take any of both; mvit_* no other than their own.

Three things differ from the hub:

- It ends x3d_* and r2plus1d_r50 in a softmax, which a cross-entropy would apply a second time, and *_detection in a
  sigmoid. Here, as in pytorchvideo's own training code, every network answers logits. At the training crop
  softmax(logits) is the hub's answer; at a larger one the hub averages probabilities over the positions that its
  pooling window leaves, this averages logits. sigmoid(logits) is the hub's answer for each box.
- It builds mvit_base_16 with 400 classes, into which the weights for ImageNet cannot go.
- Nothing is changed about this: slowfast_* write into the list that they are called with (`MultiPathWayWithFuse`,
  pytorchvideo/models/net.py): afterwards it holds the stems' outputs. Call them with a list that is not used again;
  `Spec.pack` and `Spec.example_inputs` make a new one each time. Converted, they leave the caller's list alone.
"""

import importlib
import warnings
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from vared2_fx.zoo.spec import RGB, Builder, Entry, Spec

_LOGITS: Mapping[str, Any] = {"head_activation": None}
_GREY: tuple[RGB, RGB] = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))
_IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _hub(module: str) -> ModuleType:
    """Import pytorchvideo.models.hub.`module`, without torch's warnings about its use of torch.jit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*")
        return importlib.import_module(f"pytorchvideo.models.hub.{module}")


def _build(module: str, name: str, *, options: Mapping[str, Any], num_classes: int, pretrained: bool) -> nn.Module:
    builder = getattr(_hub(module), name)
    model: nn.Module = builder(pretrained=pretrained, model_num_class=num_classes, **options)
    return model


def _build_efficient(name: str, *, num_classes: int, pretrained: bool) -> nn.Module:
    builder = getattr(_hub("efficient_x3d_mobile_cpu"), name)
    model: nn.Module = builder(pretrained=pretrained, num_classes=num_classes)
    return model


def _build_mvit(name: str, config: str, *, num_classes: int, pretrained: bool) -> nn.Module:
    """Build from the hub's own parts: its functions take no number of classes together with weights."""
    hub = _hub("vision_transformers")
    model: nn.Module = hub.hub_model_builder(
        partial(hub.create_multiscale_vision_transformers, head_num_classes=num_classes),
        pretrained=pretrained,
        checkpoint_path=hub.checkpoint_paths[name],
        default_config=getattr(hub, config),
    )
    return model


def _url(module: str, table: str, name: str) -> str:
    return str(getattr(_hub(module), table)[name])


def _entry(
    name: str,
    module: str,
    *,
    clip: tuple[int, int],
    crop: int,
    head: str = "blocks.5.proj",
    options: Mapping[str, Any] | None = None,
    build: Builder | None = None,
    checkpoints: str = "checkpoint_paths",
    short_side: int | None = None,
    norm: tuple[RGB, RGB] = _GREY,
    num_classes: int = 400,
    pathways: tuple[int, ...] = (),
    boxes: bool = False,
    still: bool = False,
) -> Entry:
    """Describe one network.

    Args:
        name: in the hub and here.
        module: of the hub.
        clip: frames x sampling rate, as the model zoo writes it; of the fast pathway if there are two.
        crop: see `Spec`, as for what is not listed here.
        head: path of the last layer.
        options: for the hub's function.
        build: makes it, if the hub's function does not take the usual arguments.
        checkpoints: where the module has its table of addresses.
        short_side: `crop` if not given.
        norm: mean and standard deviation.
        num_classes: see `Spec`.
        pathways: likewise.
        boxes: likewise.
        still: likewise.
    """
    frames, sampling_rate = clip
    mean, std = norm
    spec = Spec(
        name=name,
        library="pytorchvideo",
        frames=frames,
        crop=crop,
        short_side=short_side or crop,
        sampling_rate=sampling_rate,
        fps=30.0,
        mean=mean,
        std=std,
        num_classes=num_classes,
        pathways=pathways,
        boxes=boxes,
        still=still,
    )
    build = build or partial(_build, module, name, options=options or {})
    return Entry(spec=spec, build=build, head=head, url=partial(_url, module, checkpoints, name))


def _efficient(name: str, *, clip: tuple[int, int]) -> Entry:
    module, build = "efficient_x3d_mobile_cpu", partial(_build_efficient, name)
    entry = partial(_entry, name, module, build=build, checkpoints="_checkpoint_paths", head="projection.model")
    return entry(clip=clip, crop=160, short_side=182)


def _mvit(name: str, config: str, *, clip: tuple[int, int], **changes: Any) -> Entry:
    module, build = "vision_transformers", partial(_build_mvit, name, config)
    return _entry(name, module, build=build, clip=clip, crop=224, short_side=256, head="head.proj", **changes)


def _detection(name: str, module: str, *, clip: tuple[int, int], pathways: tuple[int, ...] = ()) -> Entry:
    entry = partial(_entry, name, module, boxes=True, num_classes=80, head="detection_head.proj", options=_LOGITS)
    return entry(clip=clip, crop=256, pathways=pathways)


_slowfast = partial(_entry, module="slowfast", crop=256, head="blocks.6.proj")

ENTRIES: tuple[Entry, ...] = (
    _entry("c2d_r50", "resnet", clip=(8, 8), crop=256, head="blocks.6.proj"),
    _entry("i3d_r50", "resnet", clip=(8, 8), crop=256, head="blocks.6.proj"),
    _entry("slow_r50", "resnet", clip=(8, 8), crop=256),
    _entry("csn_r101", "csn", clip=(32, 2), crop=256),
    _entry("r2plus1d_r50", "r2plus1d", clip=(16, 4), crop=256, options=_LOGITS),
    _entry("x3d_xs", "x3d", clip=(4, 12), crop=182, options=_LOGITS),
    _entry("x3d_s", "x3d", clip=(13, 6), crop=182, options=_LOGITS),
    _entry("x3d_m", "x3d", clip=(16, 5), crop=256, options=_LOGITS),
    _entry("x3d_l", "x3d", clip=(16, 5), crop=356, options=_LOGITS),
    _slowfast("slowfast_r50", clip=(32, 2), pathways=(8, 32)),
    _slowfast("slowfast_r101", clip=(32, 2), pathways=(8, 32)),
    _slowfast("slowfast_16x8_r101_50_50", clip=(64, 2), pathways=(16, 64)),
    _efficient("efficient_x3d_xs", clip=(4, 12)),
    _efficient("efficient_x3d_s", clip=(13, 6)),
    _detection("slow_r50_detection", "resnet", clip=(4, 16)),
    _detection("slowfast_r50_detection", "slowfast", clip=(32, 2), pathways=(8, 32)),
    _mvit("mvit_base_16x4", "mvit_video_base_config", clip=(16, 4)),
    _mvit("mvit_base_32x3", "mvit_video_base_32x3_config", clip=(32, 3)),
    _mvit("mvit_base_16", "mvit_image_base_16_config", clip=(1, 1), num_classes=1000, norm=_IMAGENET, still=True),
)
"""The networks, in the order in which the zoo lists them."""
