"""Decide, for every convolution, whether it is converted and with which choices; changes nothing."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import fx, nn

from vared2_fx.config import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import ChoiceGrid, ConvGeometry
from vared2_fx.passes.regions import Reason, Site, conv_sites, why_not
from vared2_fx.passes.shapes import total_macs
from vared2_fx.passes.trace import UNTRACED
from vared2_fx.passes.untraced import Untraced, together
from vared2_fx.tables import by, percent, si, text_table


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanEntry:
    """One convolution: what becomes of it, and why."""

    path: str
    operation: str
    reason: Reason
    """`convert`, or the code of why not."""
    detail: str
    """The reason in words; empty for `convert`."""
    in_shape: tuple[int, ...] | None
    """(C, T, H, W) of the input; None where shapes are unknown."""
    out_shape: tuple[int, ...] | None
    macs: int | None
    """Multiply-adds per clip."""
    grid: ChoiceGrid
    """The choices it gets; only the full one where it stays static."""

    @property
    def converts(self) -> bool:
        """Whether this convolution is made dynamic."""
        return self.reason == "convert"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `convert` would do to a network."""

    network: str
    entries: tuple[PlanEntry, ...]
    input_shape: tuple[int, ...] | None
    """Shape of the clip that shapes and multiply-adds hold for; None where they are unknown."""
    input_is_guess: bool
    """The caller gave no example inputs: `input_shape` is a usual size that the network runs on."""
    macs: int | None
    """Multiply-adds per clip of the whole network, convolutions and matrix products."""
    untraced: tuple[Untraced, ...] = ()
    """Modules that torch.fx could not follow. Each runs its own code; the convolutions inside convert on their own."""
    nesting: tuple[Any, ...] = ()
    """How lists and dicts lie in each other in the arguments that the network was traced for; see `nesting_of`."""

    @property
    def converted(self) -> tuple[PlanEntry, ...]:
        """The entries that become dynamic."""
        return tuple(entry for entry in self.entries if entry.converts)

    @property
    def skipped(self) -> tuple[PlanEntry, ...]:
        """The entries that stay static."""
        return tuple(entry for entry in self.entries if not entry.converts)

    @property
    def why_nothing(self) -> str:
        """Why nothing converts, in words; empty where something does."""
        if self.converted:
            return ""
        order = ("not_worth_it", *sorted({entry.reason for entry in self.skipped} - {"not_worth_it"}))
        details = {entry.reason: entry.detail for entry in self.skipped}
        reasons = "; ".join(f"{details[reason]} ({reason})" for reason in order if reason in details)
        return reasons or "it has no 3D convolution"

    def __str__(self) -> str:
        """A table of every convolution, fit for 100 columns."""
        rows = []
        for entry in self.entries:
            share = "" if entry.macs is None or not self.macs else percent(entry.macs / self.macs)
            shape = "" if entry.out_shape is None else by(entry.out_shape)
            what = "R " + " ".join(map(str, entry.grid.frame_strides))
            what += "  r " + " ".join(f"{share:g}" for share in entry.grid.channel_shares)
            what = what if entry.converts else f"static: {entry.reason}"
            rows.append((entry.path, entry.operation, shape, share, what))
        head = f"{self.network}: {len(self.converted)} of {len(self.entries)} 3D convolutions convert"
        if self.input_shape is not None and self.macs is not None:
            inside = sum(entry.macs or 0 for entry in self.converted)
            head += f", {percent(inside / max(1, self.macs))} of {si(self.macs)}MACs"
            head += f"; {'guessed ' if self.input_is_guess else ''}input {by(self.input_shape)}"
        columns = ("layer", "operation", ">output", ">MACs", "choices")
        reasons = {entry.reason: entry.detail for entry in self.skipped}
        notes = [f"static, {code}: {detail}" for code, detail in sorted(reasons.items())]
        notes += [] if self.converted else [f"Nothing worth converting, because {self.why_nothing}."]
        notes += [f"not followed: {text}" for text in together(self.untraced)]
        return "\n".join([head, text_table(columns, rows), *notes])


def make_plan(
    gm: fx.GraphModule,
    *,
    config: ConvertConfig,
    input_shape: tuple[int, ...] | None = None,
    input_is_guess: bool = False,
    nesting: tuple[Any, ...] = (),
) -> Plan:
    """Decide for every convolution of a traced (and, where possible, measured) network.

    Raises:
        ConvertError: a pattern in `include` or `exclude` matches no convolution.
    """
    sites = conv_sites(gm)
    for name in ("include", "exclude"):
        _check_patterns(f"ConvertConfig.{name}", getattr(config, name), [site.path for site in sites])
    batch = input_shape[0] if input_shape else 1
    network = total_macs(gm) // batch if input_shape else None
    return Plan(
        network=type(gm).__name__,
        entries=_worth_it(tuple(_entry(site, config, network, batch) for site in sites), config, network),
        input_shape=input_shape,
        input_is_guess=input_is_guess,
        macs=network,
        untraced=gm.meta.get(UNTRACED, ()),
        nesting=nesting,
    )


def _worth_it(entries: tuple[PlanEntry, ...], config: ConvertConfig, network: int | None) -> tuple[PlanEntry, ...]:
    """`entries`, or none converted where too little of the network could convert, whatever the user kept out of it."""
    inside = sum(entry.macs or 0 for entry in entries if entry.converts or entry.reason == "excluded")
    if not network or inside >= config.min_total_share * network:
        return entries
    detail = (
        f"all that could convert does {percent(inside / network)} of the network's multiply-adds, "
        f"less than min_total_share={config.min_total_share:g}"
    )
    static = {"reason": "not_worth_it", "detail": detail, "grid": ChoiceGrid((1,), (1.0,))}
    return tuple(replace(entry, **static) if entry.converts else entry for entry in entries)  # type: ignore[arg-type]


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of the shell patterns matches `path`."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _check_patterns(where: str, patterns: tuple[str, ...], paths: list[str]) -> None:
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(path, pattern) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4)
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise ConvertError(f"{where}: {pattern!r} matches none of the {len(paths)} 3D convolutions{hint}.")


def _entry(site: Site, config: ConvertConfig, network: int | None, batch: int) -> PlanEntry:
    node = site.nodes[0]
    source = node.args[0] if node.args else node.kwargs["input"]
    in_shape = source.meta.get("shape") if isinstance(source, fx.Node) else None
    out_shape = node.meta.get("shape")
    macs = sum(call.meta["macs"] for call in site.nodes) // batch if "macs" in node.meta else None
    grid = ChoiceGrid((1,), (1.0,))
    reason, detail = why_not(site) or _thresholds(site, config, out_shape, macs, network) or ("convert", "")
    if reason == "convert":
        grid = _offered(site, config, out_shape)
        if len(grid) == 1:
            reason, detail = "no_choice", "no frame stride or channel share of the config makes it cheaper"
    return PlanEntry(
        path=site.path,
        operation=_describe(site.conv),
        reason=reason,
        detail=detail,
        in_shape=tuple(in_shape[1:]) if in_shape else None,
        out_shape=tuple(out_shape[1:]) if out_shape else None,
        macs=macs,
        grid=grid,
    )


def _thresholds(
    site: Site, config: ConvertConfig, out_shape: tuple[int, ...] | None, macs: int | None, network: int | None
) -> tuple[Reason, str] | None:
    assert isinstance(site.conv, nn.Conv3d)
    if not matches(site.path, config.include) or matches(site.path, config.exclude):
        return "excluded", "by include or exclude of the config"
    if site.conv.out_channels < config.min_channels:
        return "few_channels", f"fewer than min_channels={config.min_channels} output channels"
    if out_shape is not None and len(out_shape) != 5:
        return "unbatched", "its input has no batch dimension"
    if out_shape is not None and out_shape[2] < config.min_frames:
        return "few_frames", f"fewer than min_frames={config.min_frames} output frames"
    if macs is not None and network and macs < config.min_macs_share * network:
        return "few_macs", f"less than min_macs_share={config.min_macs_share:g} of the network's multiply-adds"
    return None


def _offered(site: Site, config: ConvertConfig, out_shape: tuple[int, ...] | None) -> ChoiceGrid:
    """The config's choices that make a difference here: no stride above T, no share that keeps all channels."""
    assert isinstance(site.conv, nn.Conv3d)
    geometry = ConvGeometry.of(site.conv)
    strides = tuple(r for r in config.frame_strides if out_shape is None or r <= out_shape[2])
    shares: dict[int, float] = {}
    for share in config.channel_shares:
        shares.setdefault(geometry.kept_channels(share), share)
    return ChoiceGrid(strides, tuple(shares.values()))


def _describe(conv: nn.Module) -> str:
    if not isinstance(conv, nn.Conv3d):
        return type(conv).__name__
    try:
        return str(ConvGeometry.of(conv))
    except ConvertError:
        return type(conv).__name__
