"""`export_bundle`: router and routes as files that run without torch."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vared2_fx import runtime
from vared2_fx.deploy.deployed import Deployed
from vared2_fx.deploy.files import versions
from vared2_fx.disk import sha256, sync
from vared2_fx.errors import DeployError
from vared2_fx.packing import Pack
from vared2_fx.routes.deployed import DeployedRoutes

if TYPE_CHECKING:
    from vared2_fx.data import ClipConfig

RUNTIME = "runtime.py"
_CLOSE = 1e-4
"""How far, of the largest class score, what the written bundle answers may be from what was deployed."""


def export_bundle(
    deployed: DeployedRoutes, folder: str | Path, *, clip: "ClipConfig", classes: Sequence[str] = ()
) -> Path:
    """Write router and routes into a folder that runs anywhere: numpy and the engine, no torch, none of this package.

    The folder holds the engine's files, `bundle.json` (how clips are made of videos, classes, routes with their costs,
    the curve, checksums of all files) and `runtime.py`, which reads them: `python folder/runtime.py folder video.mp4`.
    What was written is read again and compared before an earlier bundle there is replaced.

    Args:
        deployed: from `deploy_routed` with engine "onnx" or "openvino", in fp32.
        folder: made if missing; an earlier bundle in it is replaced, and nothing else is.
        clip: how the network's clips are cut from videos.
        classes: names in label order; none where nobody knows them.

    Returns:
        The folder.

    Raises:
        DeployError: another engine or precision; a network that takes other things than clips; `clip` or `classes`
            that do not go with the network; `folder` holds other things, or cannot be written.
    """
    folder = Path(folder)
    check_folder(folder)
    _check(deployed, clip, classes)
    try:
        target = folder.resolve()  # a link to a bundle stays one
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as made:
            parts = Path(made) / "new"
            parts.mkdir()
            _write(deployed, parts, clip, classes)
            _compare(deployed, parts)
            _put(parts, target, Path(made) / "old")
    except OSError as exc:
        raise DeployError(f"export_bundle: {folder} cannot be written: {exc.strerror or exc}.") from exc
    return folder


def _check(deployed: DeployedRoutes, clip: "ClipConfig", classes: Sequence[str]) -> None:
    engine, precision = deployed.routes[0].engine_name, deployed.routes[0].precision
    if engine not in runtime.ENGINES or precision != "fp32":
        raise DeployError(
            f"export_bundle: these routes were deployed for engine {engine!r} in {precision}; a bundle is for "
            f"{' or '.join(map(repr, runtime.ENGINES))} in fp32. Call deploy_routed with that."
        )
    check_input(deployed.pack, deployed.clip_shape)
    wanted = (3, clip.frames, clip.crop, clip.crop)
    if deployed.clip_shape != wanted:
        raise DeployError(f"export_bundle: clip makes clips of {wanted}, and the routes take {deployed.clip_shape}.")
    scores = deployed(torch.zeros(1, *wanted)).shape[-1]
    if classes and len(classes) != scores:
        raise DeployError(f"export_bundle: {len(classes)} names of classes, and the network has {scores} scores.")


def check_input(pack: Pack, clip_shape: tuple[int, ...]) -> None:
    """Find that a network takes anything else than clips before anything takes long.

    Args:
        pack: from clips to what the network is called with.
        clip_shape: (C, T, H, W).

    Raises:
        DeployError: it takes several tensors, or single images.
    """
    clips = torch.zeros(1, *clip_shape)
    packed = pack(clips)
    if len(packed) != 1 or packed[0] is not clips:
        raise DeployError(
            "export_bundle: the network takes several tensors or single images, and a bundle gives it clips. Use "
            "deploy_routed, or deploy, in Python."
        )


def check_folder(folder: Path) -> None:
    """Find that a bundle cannot go to `folder` before anything takes long.

    Raises:
        DeployError: it is a file, holds anything that is not an earlier bundle's, or nothing can be written there.
    """
    if folder.is_dir():
        others = sorted({path.name for path in folder.iterdir()} - _earlier(folder))
        if others:
            raise DeployError(
                f"export_bundle: {folder} holds what is no bundle's ({', '.join(others[:3])}), and all that is in it "
                "would be replaced; give another folder."
            )
    elif os.path.lexists(folder):
        raise DeployError(f"export_bundle: {folder} is no folder; give another one.")
    above = next(path for path in folder.absolute().parents if os.path.lexists(path))
    try:
        with tempfile.TemporaryDirectory(dir=above, prefix=f".{folder.name}."):
            pass
    except OSError as exc:
        raise DeployError(
            f"export_bundle: {folder} cannot be written: {exc.strerror or exc}. Give another folder."
        ) from exc


def _earlier(folder: Path) -> set[str]:
    """Names in the folder that are an earlier bundle's, of whatever version; none where no sound manifest says so."""
    try:
        document = json.loads((folder / runtime.MANIFEST).read_text(encoding="utf-8"))
        if document.pop("sha256") != runtime.digest(document):
            return set()
        return {*document["files"], runtime.MANIFEST, RUNTIME, "__pycache__"}  # the last: the runtime was imported
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return set()


def _put(new: Path, folder: Path, old: Path) -> None:
    """Let `folder` be `new`; what it was becomes `old`, or stays if that fails."""
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise


def _write(deployed: DeployedRoutes, folder: Path, clip: "ClipConfig", classes: Sequence[str]) -> None:
    routes: list[dict[str, Any]] = [
        {"share": share, "ms": ms, "files": _engine_files(route, folder, f"route{k}")}
        for k, (route, share, ms) in enumerate(zip(deployed.routes, deployed.shares, deployed.route_ms, strict=True))
    ]
    shutil.copyfile(Path(runtime.__file__), folder / RUNTIME)
    router = None
    if deployed.router is not None:
        files = _engine_files(deployed.router, folder, "router")
        router = {"share": deployed.router_share, "ms": deployed.router_ms, "files": files}
    document = {
        "format_version": runtime.FORMAT_VERSION,
        "engine": deployed.routes[0].engine_name,
        "network": deployed.routes[0].network,
        "versions": versions(deployed.routes[0]),
        "classes": list(classes),
        "clip_shape": list(deployed.clip_shape),
        "clip": {
            "offsets_s": clip.times_s(0.0),
            "duration_s": clip.duration_s,
            **{key: asdict(clip)[key] for key in ("short_side", "crop", "mean", "std")},
        },
        "routes": routes,
        "router": router,
        "curve": [asdict(point) for point in deployed.curve],
        "quality": "top-1" if deployed.labelled else "agreement with the full network",
        "default_budget": deployed.default_budget,
        "sizes": list(deployed.sizes),
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }
    document = json.loads(json.dumps(document, allow_nan=False))  # lists for tuples, as reading gives
    text = json.dumps({**document, "sha256": runtime.digest(document)}, indent=1)
    (folder / runtime.MANIFEST).write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        sync(path)


def _engine_files(deployed: Deployed, folder: Path, name: str) -> list[str]:
    """Write what the engine reads; returns the files' names, the network's before its weights'."""
    own = folder / name
    own.mkdir()
    deployed.engine.write(own)
    names = []
    for path in sorted(own.iterdir(), key=lambda path: path.suffix != ".xml"):
        names.append(f"{name}{path.suffix}")
        os.replace(path, folder / names[-1])
    own.rmdir()
    return names


def _compare(deployed: DeployedRoutes, folder: Path) -> None:
    """Let the written bundle answer, at each operating point, as what it was made of does."""
    bundle = runtime.Bundle(folder, threads=deployed.routes[0].threads, max_batch=2)
    clips = torch.randn(2, *deployed.clip_shape, generator=torch.Generator().manual_seed(0))
    for point in deployed.curve:
        wanted = deployed.answer(clips, point).output.numpy()
        got = bundle.answer(clips.numpy(), budget=point.share)[0]
        if not np.abs(got - wanted).max() <= _CLOSE * max(1e-6, np.abs(wanted).max()):  # nor is NaN near anything
            raise DeployError(
                f"export_bundle: at {point.share:.0%} of the multiply-adds the written bundle answers otherwise than "
                "what it was made of. Nothing was exported; please report that."
            )
