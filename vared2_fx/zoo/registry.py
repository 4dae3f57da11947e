"""Networks by name: which there are, what they expect, and how to get one."""

import difflib
import os
from pathlib import Path

from torch import nn

from vared2_fx.errors import ZooError
from vared2_fx.zoo import demo_net, i3d_inception, pytorchvideo_hub, torchvision_hub
from vared2_fx.zoo.checkpoints import build_pretrained, load_file, replace_head
from vared2_fx.zoo.spec import Entry, Spec

_TABLES: tuple[tuple[Entry, ...], ...] = (  # one per library, in the order in which `names` lists them
    pytorchvideo_hub.ENTRIES,
    torchvision_hub.ENTRIES,
    i3d_inception.ENTRIES,
    demo_net.ENTRIES,
)
_ENTRIES: dict[str, Entry] = {entry.spec.name: entry for table in _TABLES for entry in table}
assert len(_ENTRIES) == sum(map(len, _TABLES)), "two networks of the zoo share a name"


def names() -> tuple[str, ...]:
    """Name every network that `load` can build."""
    return tuple(_ENTRIES)


def spec(name: str) -> Spec:
    """Say what clips a network expects; builds nothing.

    Raises:
        ZooError: there is no network of that name.
    """
    return _entry(name).spec


def load(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Build a network of the zoo.

    Args:
        name: one of `names()`.
        pretrained: with its library's own weights. They are looked for in `torch.hub.get_dir()`/checkpoints,
            and downloaded into it if they are not there. Otherwise weights are random, drawn from torch's
            global generator.
        num_classes: length of the answer; by default that of the pretrained weights. With `pretrained=True`
            and another number only the last layer is fresh, all others keep their weights. With `weights` the
            file must have a last layer of this length.
        weights: a checkpoint of this very network: `.safetensors`, or a `torch.save` of a state dict, plain
            or under "model_state" or "state_dict", its keys with or without "module." before them. For
            i3d_inception also in the layouts of its published PyTorch ports (`zoo/i3d_checkpoints.py`).

    Returns:
        The library's network, in eval mode, on the CPU: (N, 3, T, H, W) to (N, num_classes) logits, or from what
        `spec(name).pack` makes of such clips. With `spec(name).boxes` it takes boxes too, and answers per box. Its
        attribute `vared2_source`, {"name": ..., "num_classes": ...}, says how to build it again.

    Raises:
        ZooError: unknown name (the text has the nearest ones); the download is impossible (it names the file
            and the folder to put it in), or there is none for this network; a file does not fit; both
            `pretrained` and `weights`; `num_classes` below 1.
    """
    entry = _entry(name)
    if pretrained and weights is not None:
        raise ZooError(
            f"load({name!r}): pretrained=True and weights={os.fspath(weights)!r} are two sets of weights; "
            "leave one out."
        )
    wanted = entry.spec.num_classes if num_classes is None else num_classes
    if wanted < 1:
        raise ZooError(f"load({name!r}): num_classes={num_classes}; it must be at least 1.")
    if pretrained:
        model = build_pretrained(entry)
        if wanted != entry.spec.num_classes:
            replace_head(model, entry.head, wanted)
    else:
        model = entry.build(num_classes=wanted, pretrained=False)
        if weights is not None:
            load_file(model, entry, Path(weights))
    model.vared2_source = {"name": name, "num_classes": wanted}  # type: ignore[assignment]
    return model.eval()


def _entry(name: str) -> Entry:
    if name in _ENTRIES:
        return _ENTRIES[name]
    near = difflib.get_close_matches(name, _ENTRIES, n=3)
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ZooError(
        f"The zoo has no network {name!r}.{guess} "
        f"`vared2 zoo`, or vared2_fx.zoo.names(), lists all {len(_ENTRIES)}: {', '.join(_ENTRIES)}."
    )
