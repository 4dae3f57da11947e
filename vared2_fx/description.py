"""The JSON beside saved weights: written from a conversion, read back with every value checked."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vared2_fx.config import ConvertConfig
from vared2_fx.convert import Conversion
from vared2_fx.errors import CheckpointError, ConvertError
from vared2_fx.passes.fingerprint import Fingerprint
from vared2_fx.passes.nesting import read_nesting
from vared2_fx.passes.plan import Plan
from vared2_fx.typed_json import as_type, digest, read_document

FORMAT_VERSION = 6

_KEYS = {"format_version", "source", "config", "plan", "graph", "training", "weights_sha256", "sha256"}


def describe(made: Conversion, graph: Fingerprint, *, training: bool) -> dict[str, Any]:
    """What is saved of a network besides its weights; the checksums are still missing."""
    return {
        "format_version": FORMAT_VERSION,
        "source": made.source,
        "config": asdict(made.config),
        "plan": asdict(made.plan),
        "graph": graph,
        "training": training,
    }


def to_json(description: dict[str, Any]) -> str:
    """The text to save, with a checksum of its own."""
    return json.dumps({**description, "sha256": digest(description)}, indent=1, allow_nan=False)


def read_description(path: Path) -> dict[str, Any]:
    """Read what `to_json` wrote.

    Raises:
        CheckpointError: it cannot be read, is of another version, or was changed since.
    """
    return read_document(
        path,
        where="load",
        version=FORMAT_VERSION,
        keys=_KEYS,
        remedy="load it with the release that wrote it",
        error=CheckpointError,
    )


def read_conversion(path: Path, document: dict[str, Any]) -> Conversion:
    """The conversion that a description tells of.

    Args:
        path: of the file, for errors.
        document: from `read_description`.

    Raises:
        CheckpointError: a value is missing or not of its kind.
    """
    try:
        config, plan = as_type(ConvertConfig, document["config"], "config"), as_type(Plan, document["plan"], "plan")
        plan = replace(plan, nesting=read_nesting("plan.nesting", plan.nesting))
        for region in plan.regions:
            ConvertConfig(frame_strides=region.grid.frame_strides, channel_shares=region.grid.channel_shares)
        source = as_type(dict[str, Any] | None, document["source"], "source")
        if source is not None:
            as_type(str, source.get("name"), "source.name")
            as_type(int, source.get("num_classes"), "source.num_classes")
        as_type(bool, document["training"], "training")
        if not re.fullmatch("[0-9a-f]{64}", as_type(str, document["weights_sha256"], "weights_sha256")):
            raise ConvertError(f"weights_sha256 is {document['weights_sha256']!r:.80}.")
        as_type(tuple[str, ...], as_type(dict[str, Any], document["graph"], "graph").get("nodes"), "graph.nodes")
        for key, settings in as_type(dict[str, Any], document["graph"].get("modules"), "graph.modules").items():
            as_type(
                str, as_type(dict[str, Any], settings, f"graph.modules.{key}").get("type"), f"graph.modules.{key}.type"
            )
    except ConvertError as exc:
        raise CheckpointError(f"load: {path} holds what cannot be: {exc}") from exc
    return Conversion(config=config, plan=plan, source=source)
