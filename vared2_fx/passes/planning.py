"""Decide, for every convolution, whether it is converted and with which choices; changes nothing."""

from dataclasses import replace

from torch import fx, nn

from vared2_fx.config import ConvertConfig
from vared2_fx.errors import ConvertError
from vared2_fx.layers import ChoiceGrid, ConvGeometry
from vared2_fx.passes.flow_graph import flow_graph
from vared2_fx.passes.nesting import Nesting
from vared2_fx.passes.plan import Plan, PlanEntry, PlanRegion
from vared2_fx.passes.planning_blocks import plan_blocks
from vared2_fx.passes.reach import price
from vared2_fx.passes.regions import Hidden, Reason, Site, conv_sites, hidden_convs, why_not
from vared2_fx.passes.select import Deselected, select
from vared2_fx.passes.shapes import total_macs
from vared2_fx.passes.trace import UNTRACED
from vared2_fx.tables import percent


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
        ConvertError: an entry of `include` or `exclude` matches no convolution, or `filter` fails; or blocks are
            wanted and shapes are unknown.
    """
    sites, hidden = conv_sites(gm), list(hidden_convs(gm))
    paths = [site.path for site in sites] + [place.path for place in hidden]
    deselected = select(paths, config, gm if source is None else source)
    batch = input_shape[0] if input_shape else 1
    network = total_macs(gm) // batch if input_shape else None
    never = {site.path: found for site in sites if (found := why_not(site) or deselected.get(site.path))}
    if config.granularity == "conv":
        static, regions = _plan_convs(sites, never, config, network, batch)
    else:
        if input_shape is None:
            raise ConvertError(
                f"scan: granularity={config.granularity!r} needs the clip's size, and this network runs on no usual "
                "one; pass example_inputs."
            )
        static, regions = plan_blocks(gm, sites, never, config, network, batch)
    regions, static = _worth_it(sites, regions, static, config, network, batch)
    within = {path: region.path for region in regions for path in region.convs}
    order = {node: position for position, node in enumerate(gm.graph.nodes)}
    entries = [(order[site.first], _entry(site, static.get(site.path), within.get(site.path), batch)) for site in sites]
    entries += [(order[place.node], _hidden_entry(place, batch)) for place in hidden]
    return Plan(
        network=type(gm).__name__,
        entries=tuple(entry for _, entry in sorted(entries, key=lambda pair: pair[0])),
        input_shape=input_shape,
        input_is_guess=input_is_guess,
        macs=network,
        regions=regions,
        untraced=gm.meta.get(UNTRACED, ()),
        nesting=nesting,
        graph=flow_graph(gm, {entry.path for _, entry in entries}),
    )


def _plan_convs(
    sites: tuple[Site, ...], never: Deselected, config: ConvertConfig, network: int | None, batch: int
) -> tuple[dict[str, tuple[Reason, str]], tuple[PlanRegion, ...]]:
    """Why convolutions stay static, and a region for each of the others."""
    static, regions = dict(never), []
    for site in sites:
        if site.path in static:
            continue
        in_shape, out_shape = _shapes(site.nodes[0])
        reason = _thresholds(site, config, out_shape, _macs(site, batch), network)
        grid = _offered(site, config, out_shape)
        if reason is None and len(grid) == 1:
            reason = "no_choice", "no frame stride or channel share of the config makes it cheaper"
        if reason is not None:
            static[site.path] = reason
            continue
        region = PlanRegion(
            path=site.path,
            convs=(site.path,),
            grid=grid,
            in_shape=tuple(in_shape[1:]) if in_shape else None,
            out_shape=tuple(out_shape[1:]) if out_shape else None,
        )
        if in_shape is not None:
            assert isinstance(site.conv, nn.Conv3d)
            t, h, w = in_shape[2:]
            choice_macs, gate_macs = price(site.conv, grid, config, (t, h, w))
            region = replace(region, choice_macs=choice_macs, gate_macs=gate_macs)
        regions.append(region)
    return static, tuple(regions)


def _worth_it(
    sites: tuple[Site, ...],
    regions: tuple[PlanRegion, ...],
    static: dict[str, tuple[Reason, str]],
    config: ConvertConfig,
    network: int | None,
    batch: int,
) -> tuple[tuple[PlanRegion, ...], dict[str, tuple[Reason, str]]]:
    """Nothing converted where too little of the network could convert, whatever the user kept out of it."""
    converts = {path for region in regions for path in region.convs}
    chosen = {path for path, (reason, _) in static.items() if reason in ("excluded", "filtered")} | converts
    inside = sum(_macs(site, batch) or 0 for site in sites if site.path in chosen)
    if not network or inside >= config.min_total_share * network:
        return regions, static
    detail = (
        f"all that could convert does {percent(inside / network)} of the network's multiply-adds, "
        f"less than min_total_share={config.min_total_share:g}"
    )
    reason: tuple[Reason, str] = ("not_worth_it", detail)
    return (), static | dict.fromkeys(converts, reason)


def _entry(site: Site, why: tuple[Reason, str] | None, region: str | None, batch: int) -> PlanEntry:
    in_shape, out_shape = _shapes(site.nodes[0])
    reason, detail = why or ("convert", "")
    return PlanEntry(
        path=site.path,
        operation=_describe(site.conv),
        reason=reason,
        detail=detail,
        in_shape=tuple(in_shape[1:]) if in_shape else None,
        out_shape=tuple(out_shape[1:]) if out_shape else None,
        macs=_macs(site, batch),
        region=region,
    )


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
    )


def _macs(site: Site, batch: int) -> int | None:
    """Multiply-adds per clip."""
    return sum(call.meta["macs"] for call in site.nodes) // batch if "macs" in site.nodes[0].meta else None


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
