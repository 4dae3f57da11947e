"""Decide, for every convolution, whether it is converted and with which choices; changes nothing."""

import textwrap
from dataclasses import dataclass, replace

from torch import fx, nn

from vared2_fx.config import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import Choice, ChoiceGrid, ConvGeometry
from vared2_fx.passes.nesting import Nesting
from vared2_fx.passes.reach import Level, Reach, level_index, price, reach_of
from vared2_fx.passes.regions import Hidden, Reason, Site, conv_sites, hidden_convs, why_not
from vared2_fx.passes.select import Deselected, select
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
    choice_macs: tuple[int, ...] | None = None
    """Multiply-adds per clip of each choice, in the order of `grid.all()`, cheap operations counted, the gate not; None
    where it stays static, shapes are unknown, or these clips take a branch without it."""
    gate_macs: int | None = None
    """Operations per clip of its gate; None as above."""

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
    nesting: Nesting = ()
    """How lists and dicts lie in each other in the arguments that the network was traced for."""

    @property
    def converted(self) -> tuple[PlanEntry, ...]:
        """The entries that become dynamic."""
        return tuple(entry for entry in self.entries if entry.converts)

    @property
    def skipped(self) -> tuple[PlanEntry, ...]:
        """The entries that stay static."""
        return tuple(entry for entry in self.entries if not entry.converts)

    @property
    def reach(self) -> Reach | None:
        """What the converted network can come down to; None where shapes are unknown."""
        if self.macs is None:
            return None
        return reach_of(self.macs, [(e.choice_macs, e.gate_macs or 0) for e in self.converted if e.choice_macs])

    def policy(self, level: Level) -> dict[str, Choice]:
        """The choices, for `vared2_fx.policy`, with which the converted network takes the multiply-adds in `reach`.

        Raises:
            ConvertError: shapes are unknown, so that choices have no price.
        """
        chosen = {}
        for entry in self.converted:
            if entry.choice_macs is None and self.macs is not None:
                continue  # in a branch that these clips do not take
            if entry.choice_macs is None and level != "full":
                raise ConvertError(f"plan: what {entry.path} costs is unknown; scan with example_inputs.")
            chosen[entry.path] = entry.grid.all()[level_index(entry.choice_macs or (0,), level)]
        return chosen

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
        reach = [str(self.reach)] if self.reach is not None and self.converted else []
        notes = [f"static, {code}: {detail}" for code, detail in sorted({(e.reason, e.detail) for e in self.skipped})]
        lines = [line for note in notes for line in textwrap.wrap(note, 100, subsequent_indent="  ")]
        lines += [] if self.converted else [f"Nothing worth converting, because {self.why_nothing}."]
        lines += [f"not followed: {text}" for text in together(self.untraced)]
        return "\n".join([head, *reach, text_table(columns, rows), *lines])


def make_plan(
    gm: fx.GraphModule,
    *,
    config: ConvertConfig,
    source: nn.Module | None = None,
    input_shape: tuple[int, ...] | None = None,
    input_is_guess: bool = False,
    nesting: Nesting = (),
) -> Plan:
    """Decide for every convolution of a traced (and, where possible, measured) network.

    Args:
        gm: the traced network.
        config: what may be converted.
        source: the network before it was traced, for `include`, `exclude` and `filter`; without, `gm`, whose
            containers have lost their types.
        input_shape: of the clips that `gm` was measured with.
        input_is_guess: see `Plan`.
        nesting: see `Plan`.

    Raises:
        ConvertError: an entry of `include` or `exclude` matches no convolution, or `filter` fails.
    """
    sites, hidden = conv_sites(gm), list(hidden_convs(gm))
    paths = [site.path for site in sites] + [place.path for place in hidden]
    deselected = select(paths, config, gm if source is None else source)
    batch = input_shape[0] if input_shape else 1
    network = total_macs(gm) // batch if input_shape else None
    order = {node: position for position, node in enumerate(gm.graph.nodes)}
    entries = [(order[site.first], _entry(site, config, deselected, network, batch)) for site in sites]
    entries += [(order[place.node], _hidden_entry(place, batch)) for place in hidden]
    return Plan(
        network=type(gm).__name__,
        entries=_worth_it(tuple(entry for _, entry in sorted(entries, key=lambda pair: pair[0])), config, network),
        input_shape=input_shape,
        input_is_guess=input_is_guess,
        macs=network,
        untraced=gm.meta.get(UNTRACED, ()),
        nesting=nesting,
    )


def _worth_it(entries: tuple[PlanEntry, ...], config: ConvertConfig, network: int | None) -> tuple[PlanEntry, ...]:
    """`entries`, or none converted where too little of the network could convert, whatever the user kept out of it."""
    inside = sum(entry.macs or 0 for entry in entries if entry.converts or entry.reason in ("excluded", "filtered"))
    if not network or inside >= config.min_total_share * network:
        return entries
    detail = (
        f"all that could convert does {percent(inside / network)} of the network's multiply-adds, "
        f"less than min_total_share={config.min_total_share:g}"
    )
    static = {"reason": "not_worth_it", "detail": detail, "grid": ChoiceGrid((1,), (1.0,))}
    return tuple(replace(entry, **static) if entry.converts else entry for entry in entries)  # type: ignore[arg-type]


def _entry(site: Site, config: ConvertConfig, deselected: Deselected, network: int | None, batch: int) -> PlanEntry:
    node = site.nodes[0]
    in_shape, out_shape = _shapes(node)
    macs = sum(call.meta["macs"] for call in site.nodes) // batch if "macs" in node.meta else None
    grid = ChoiceGrid((1,), (1.0,))
    found = why_not(site) or deselected.get(site.path) or _thresholds(site, config, out_shape, macs, network)
    reason, detail = found or ("convert", "")
    if reason == "convert":
        grid = _offered(site, config, out_shape)
        if len(grid) == 1:
            reason, detail = "no_choice", "no frame stride or channel share of the config makes it cheaper"
    entry = PlanEntry(
        path=site.path,
        operation=_describe(site.conv),
        reason=reason,
        detail=detail,
        in_shape=tuple(in_shape[1:]) if in_shape else None,
        out_shape=tuple(out_shape[1:]) if out_shape else None,
        macs=macs,
        grid=grid,
    )
    if reason != "convert" or in_shape is None:
        return entry
    assert isinstance(site.conv, nn.Conv3d)
    t, h, w = in_shape[2:]
    choice_macs, gate_macs = price(site.conv, grid, config, (t, h, w))
    return replace(entry, choice_macs=choice_macs, gate_macs=gate_macs)


def _hidden_entry(place: Hidden, batch: int) -> PlanEntry:
    in_shape, out_shape = _shapes(place.node)
    return PlanEntry(
        path=place.path,
        operation=place.operation,
        reason=place.reason,
        detail=place.detail,
        in_shape=tuple(in_shape[1:]) if in_shape else None,
        out_shape=tuple(out_shape[1:]) if out_shape else None,
        macs=None if place.macs is None else place.macs // batch,
        grid=ChoiceGrid((1,), (1.0,)),
    )


def _shapes(node: fx.Node) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Shape of the first input and of the output, batch included."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source.meta.get("shape") if isinstance(source, fx.Node) else None, node.meta.get("shape")


def _thresholds(
    site: Site, config: ConvertConfig, out_shape: tuple[int, ...] | None, macs: int | None, network: int | None
) -> tuple[Reason, str] | None:
    assert isinstance(site.conv, nn.Conv3d)
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
