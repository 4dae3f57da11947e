"""Deployed networks on disk: the engine's files, and a manifest that says what they are.

Each file's name holds its checksum, and the manifest, which is replaced in one step, names the files: what was saved
before is whole until then.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vared2_fx.deploy.deployed import Deployed
from vared2_fx.deploy.engines import BY_NAME, Settings
from vared2_fx.deploy.engines.base import check_threads
from vared2_fx.deploy.parity import Parity
from vared2_fx.deploy.signature import Signature
from vared2_fx.disk import sha256, sync
from vared2_fx.errors import ConvertError, DeployError
from vared2_fx.passes.deploy.pipeline import ENGINES, PRECISIONS
from vared2_fx.passes.nesting import read_nesting
from vared2_fx.typed_json import as_type, digest, read_document

FORMAT_VERSION = 1
MANIFEST = "deployed.json"
_KEYS = {
    *("format_version", "network", "engine", "precision", "threads", "signature", "parity", "notes"),
    *("versions", "files", "sha256"),
}
_NAMED_BY_SUM = re.compile(r"(?P<stem>\w+)\.(?P<sum>[0-9a-f]{64})\.(?P<suffix>\w+)")


def write(deployed: Deployed, folder: Path) -> Path:
    """Save; see `Deployed.save`."""
    parts = folder / f"{MANIFEST}.parts"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        try:
            deployed.engine.write(parts)
            files = {path.name: sha256(path) for path in sorted(parts.iterdir())}
            document = _describe(deployed, files)
            for name, checksum in files.items():
                sync(parts / name)
                os.replace(parts / name, folder / _stored(name, checksum))
            part = parts / MANIFEST
            part.write_text(json.dumps({**document, "sha256": digest(document)}, indent=1, allow_nan=False))
            sync(part)
            os.replace(part, folder / MANIFEST)
        finally:
            shutil.rmtree(parts, ignore_errors=True)
        _remove_others(folder, {_stored(name, checksum) for name, checksum in files.items()})
    except (OSError, RuntimeError) as exc:  # engines' own writers raise the second, of a full disk too
        raise DeployError(f"save: {folder} cannot be written: {getattr(exc, 'strerror', None) or exc}.") from exc
    return folder


def load_deployed(folder: str | Path, *, threads: int | None = None) -> Deployed:
    """Read what `Deployed.save` wrote, and let the engine take it over.

    Args:
        folder: where it was saved.
        threads: threads of one call; None: as when it was saved.

    Returns:
        The deployed network.

    Raises:
        DeployError: files are missing, damaged, changed, or of another format version; the engine is not installed,
            or cannot read them.
    """
    folder = Path(folder)
    check_threads("load_deployed", threads)
    document = read_document(
        folder / MANIFEST,
        where="load_deployed",
        version=FORMAT_VERSION,
        keys=_KEYS,
        remedy="load it with the release that wrote it, or deploy the network again",
        error=DeployError,
    )
    try:
        saved = _read(document)
    except ConvertError as exc:
        raise DeployError(f"load_deployed: {folder / MANIFEST} holds what cannot be: {exc}") from exc
    settings = saved["settings"] if threads is None else replace(saved["settings"], threads=threads)
    kind = BY_NAME[document["engine"]]
    kind.check(settings)
    files = {name: folder / _stored(name, checksum) for name, checksum in document["files"].items()}
    for name, path in files.items():
        try:
            if sha256(path) != document["files"][name]:
                raise DeployError(f"load_deployed: {path} was changed after it was written, or is damaged.")
        except OSError as exc:
            raise DeployError(f"load_deployed: {path} cannot be read: {exc.strerror or exc}.") from exc
    try:
        engine = kind.read(files, settings)
    except Exception as exc:
        made_with = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
        raise DeployError(
            f"load_deployed: {kind.name} cannot read {folder} ({type(exc).__name__}: {str(exc).strip()[:300]}). It was "
            f"made with {made_with}; deploy the network again with the releases that are installed."
        ) from exc
    return Deployed(
        engine=engine,
        network=document["network"],
        signature=saved["signature"],
        parity=saved["parity"],
        notes=tuple(document["notes"]),
    )


def _describe(deployed: Deployed, files: dict[str, str]) -> dict[str, Any]:
    document = {
        "format_version": FORMAT_VERSION,
        "network": deployed.network,
        "engine": deployed.engine_name,
        "precision": deployed.precision,
        "threads": deployed.threads,
        "signature": asdict(deployed.signature),
        "parity": asdict(deployed.parity),
        "notes": list(deployed.notes),
        "versions": versions(deployed),
        "files": files,
    }
    plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))  # lists for tuples, as reading gives
    return plain


def versions(deployed: Deployed) -> dict[str, str]:
    """Releases of this package, of torch and of what the engine needs."""
    import vared2_fx  # not above: the package's own __init__ imports this module

    found = {"vared2_fx": vared2_fx.__version__}
    for package in dict.fromkeys(("torch", *deployed.engine.packages)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _read(document: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says, in the types of this package.

    Raises:
        ConvertError: a value is not of its kind.
    """
    if document["engine"] not in ENGINES:
        raise ConvertError(f"engine is {document['engine']!r:.60}.")
    if document["precision"] not in PRECISIONS:
        raise ConvertError(f"precision is {document['precision']!r:.60}.")
    signature = as_type(Signature, document["signature"], "signature")
    output = signature.output
    signature = replace(
        signature,
        nesting=read_nesting("signature.nesting", signature.nesting),
        output=None if output is None else read_nesting("signature.output", [output])[0],
    )
    as_type(str, document["network"], "network")
    as_type(tuple[str, ...], document["notes"], "notes")
    for name, checksum in as_type(dict[str, Any], document["files"], "files").items():
        if not _NAMED_BY_SUM.fullmatch(_stored(name, as_type(str, checksum, f"files.{name}"))):
            raise ConvertError(f"files has {name!r:.60}: {checksum!r:.80}.")
    threads = as_type(int | None, document["threads"], "threads")
    return {
        "signature": signature,
        "parity": as_type(Parity, document["parity"], "parity"),
        "settings": Settings(precision=document["precision"], threads=threads),
    }


def _stored(name: str, checksum: str) -> str:
    """`model.onnx` as `model.<checksum>.onnx`."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{checksum}.{suffix}"


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove the files of earlier saves."""
    for path in folder.iterdir():
        if _NAMED_BY_SUM.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)
