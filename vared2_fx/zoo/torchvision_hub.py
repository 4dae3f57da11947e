"""Networks of `torchvision.models.video`, trained on Kinetics-400.

Where the numbers come from: `crop`, `mean` and `std` are those of the weights' own transforms (tested);
`short_side` is their resize height (r3d_18, mc3_18 and r2plus1d_18 squeeze every frame to 128 x 171, s3d to
256 x 256; here the aspect ratio is kept). `fps` and `frames` are the `frame_rate` and `clip_len` with which the
accuracies in the weights' meta data were measured (tested). One exception: s3d's accuracy is that of 128 frames;
`frames` is the 16 for which its cost is stated. For swin3d_* the stated cost is that of 16 frames as well, half of
its `clip_len` of 32 (tested).

r3d_18, mc3_18, r2plus1d_18, s3d and swin3d_* take other clip lengths and sizes too (s3d at least 14 frames of
224 x 224); mvit_* take no other, as they learn a position for every patch.
"""

from functools import partial

from torch import nn

from vared2_fx.zoo.spec import RGB, Entry, Spec

_RESNET_NORM: tuple[RGB, RGB] = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
_IMAGENET_NORM: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_MVIT_NORM: tuple[RGB, RGB] = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


def _build(name: str, *, num_classes: int, pretrained: bool) -> nn.Module:
    from torchvision.models import get_model  # here: only those who build one pay for the import

    model: nn.Module = get_model(name, weights="DEFAULT" if pretrained else None, num_classes=num_classes)
    return model


def _url(name: str) -> str:
    from torchvision.models import get_model_weights

    return str(get_model_weights(name).DEFAULT.url)


def _entry(
    name: str,
    *,
    head: str,
    frames: int = 16,
    crop: int = 224,
    short_side: int = 256,
    fps: float = 15.0,
    norm: tuple[RGB, RGB] = _RESNET_NORM,
) -> Entry:
    mean, std = norm
    spec = Spec(
        name=name,
        library="torchvision",
        frames=frames,
        crop=crop,
        short_side=short_side,
        sampling_rate=1,
        fps=fps,
        mean=mean,
        std=std,
        num_classes=400,
    )
    return Entry(spec=spec, build=partial(_build, name), head=head, url=partial(_url, name))


ENTRIES: tuple[Entry, ...] = (
    _entry("r3d_18", crop=112, short_side=128, head="fc"),
    _entry("mc3_18", crop=112, short_side=128, head="fc"),
    _entry("r2plus1d_18", crop=112, short_side=128, head="fc"),
    _entry("s3d", head="classifier.1"),
    _entry("swin3d_t", frames=32, norm=_IMAGENET_NORM, head="head"),
    _entry("swin3d_s", frames=32, norm=_IMAGENET_NORM, head="head"),
    _entry("swin3d_b", frames=32, norm=_IMAGENET_NORM, head="head"),
    _entry("mvit_v1_b", fps=7.5, norm=_MVIT_NORM, head="head.1"),
    _entry("mvit_v2_s", fps=7.5, norm=_MVIT_NORM, head="head.1"),
)
"""The networks, in the order in which the zoo lists them."""
