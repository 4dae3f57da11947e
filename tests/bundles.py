"""What the bundles of tests are made for, and another manifest for them."""

import json
from pathlib import Path

from vared2_fx import runtime
from vared2_fx.data import ClipConfig

CLIP = ClipConfig(frames=8, crop=16, short_side=20, sampling_rate=2)
CLASSES = ("a", "b", "c", "<d>", "e")


def rewritten(folder: Path, **changes: object) -> None:
    """The manifest with other values, and the checksum that goes with them."""
    path = folder / runtime.MANIFEST
    document = json.loads(path.read_text()) | changes
    document.pop("sha256")
    path.write_text(json.dumps({**document, "sha256": runtime.digest(document)}))
