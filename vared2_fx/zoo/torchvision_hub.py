"""Networks of `torchvision.models.video`, trained on Kinetics-400.

Where the numbers come from: `crop`, `mean` and `std` are those of the weights' own transforms (tested);
`short_side` is their resize height (they squeeze every frame to 128 x 171 or 256 x 256; here the aspect ratio
is kept). `frames` is the clip for which the weights' meta data state their cost (tested). The accuracies
stated there were measured at 15 frames per second, with 16 frames; s3d's with 128, at eight times the cost.
All of these networks take other clip lengths too; s3d needs at least 14 frames of 224 x 224.
"""

from functools import partial

from torch import nn

from vared2_fx.zoo.spec import Entry, Spec


def _build(name: str, *, num_classes: int, pretrained: bool) -> nn.Module:
    from torchvision.models import get_model  # here: only those who build one pay for the import

    model: nn.Module = get_model(name, weights="DEFAULT" if pretrained else None, num_classes=num_classes)
    return model


def _url(name: str) -> str:
    from torchvision.models import get_model_weights

    return str(get_model_weights(name).DEFAULT.url)


def _entry(name: str, *, crop: int, short_side: int, head: str) -> Entry:
    spec = Spec(
        name=name,
        library="torchvision",
        frames=16,
        crop=crop,
        short_side=short_side,
        sampling_rate=1,
        fps=15.0,
        mean=(0.43216, 0.394666, 0.37645),
        std=(0.22803, 0.22145, 0.216989),
        num_classes=400,
    )
    return Entry(spec=spec, build=partial(_build, name), head=head, url=partial(_url, name))


ENTRIES: tuple[Entry, ...] = (
    _entry("r3d_18", crop=112, short_side=128, head="fc"),
    _entry("mc3_18", crop=112, short_side=128, head="fc"),
    _entry("r2plus1d_18", crop=112, short_side=128, head="fc"),
    _entry("s3d", crop=224, short_side=256, head="classifier.1"),
)
"""The networks, in the order in which the zoo lists them."""
