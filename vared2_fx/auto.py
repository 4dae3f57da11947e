"""Granularity `auto`: blocks or stages, whichever an engine runs faster, place by place [ours]."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from vared2_fx.config import ConvertConfig
from vared2_fx.layers import FULL, Choice
from vared2_fx.modes import evaluating
from vared2_fx.passes.pipeline import pipeline, run_passes
from vared2_fx.passes.plan import Plan, PlanEntry, PlanRegion
from vared2_fx.policy.fix import specialize

FINER = 0.95
"""Blocks are taken where they save this share of what their stage saves: finer decisions keep more accuracy."""
NAMES = {"block": "in blocks", "stage": "as a stage"}
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the network that can be one stage, or some blocks."""

    blocks: tuple[PlanRegion, ...]
    stage: PlanRegion | None


def places(blocks: Plan, stages: Plan) -> list[Place]:
    """Every region of both plans once: a stage with the blocks in it; a block that is in none."""
    found, left = [], list(blocks.regions)
    for stage in stages.regions:
        inside = {node.name for node in stage.nodes[1:]}
        own = tuple(block for block in left if inside.issuperset(node.name for node in block.nodes[1:]))
        left = [block for block in left if block not in own]
        found.append(Place(own, stage))
    return found + [Place((block,), None) for block in left]


def fastest_plan(
    gm: fx.GraphModule, make_plan: Callable[[ConvertConfig], Plan], config: ConvertConfig, args: tuple[Any, ...]
) -> Plan:
    """Plan each place as that of its forms which makes the network fastest in `config.engine`.

    The network is measured whole, with one place after the other at the config's finest reduction and everything else
    in full, in turns with the original.

    Args:
        gm: the traced and measured network; not changed.
        make_plan: plans it for a config.
        config: what may be converted.
        args: the positional arguments of a call.

    Raises:
        DeployError: the engine cannot run it, or is not installed.
    """
    both = {kind: make_plan(replace(config, granularity=kind)) for kind in ("block", "stage")}
    found = places(both["block"], both["stage"])
    probe = _probe(config)
    speed_ups = _measure(gm, both, found, probe, config, args) if found else {}
    chosen: dict[str, PlanRegion] = {}
    slow: dict[str, str] = {}
    for number, place in enumerate(found):
        measured = {kind: speed_ups[kind, number] for kind in ("block", "stage") if (kind, number) in speed_ups}
        said = ", ".join(f"{value:.2f} times {NAMES[kind]}" for kind, value in measured.items())
        kind = pick(measured)
        if kind is None:
            convs = [c for region in (*place.blocks, place.stage) if region is not None for c in region.convs]
            slow |= dict.fromkeys(convs, f"with {probe} here the network gets no faster in {config.engine}: {said}")
            continue
        why = f"{NAMES[kind]}, as with {probe} here the speed in {config.engine} is {said}"
        regions = place.blocks if kind == "block" or place.stage is None else (place.stage,)
        chosen |= {region.path: replace(region, why=why) for region in regions}
    return _merged(both["block"], gm, chosen, slow)


def pick(speed_ups: dict[str, float]) -> str | None:
    """`block`, `stage`, or None where neither is faster than the original; by the network's speed-up with each."""
    saved = {kind: 1 - 1 / speed_up for kind, speed_up in speed_ups.items()}
    block, stage = saved.get("block", 0.0), saved.get("stage", 0.0)
    if max(block, stage) <= 0:
        return None
    return "block" if block > 0 and block >= FINER * stage else "stage"


def _probe(config: ConvertConfig) -> Choice:
    """The finest reduction: of frames, or of channels where frames are not reduced."""
    if len(config.frame_strides) > 1:
        return Choice(config.frame_strides[1], 1.0)
    return Choice(1, config.channel_shares[min(1, len(config.channel_shares) - 1)])


def _measure(
    gm: fx.GraphModule,
    plans: dict[str, Plan],
    found: list[Place],
    probe: Choice,
    config: ConvertConfig,
    args: tuple[Any, ...],
) -> dict[tuple[str, int], float]:
    """The network's speed-up with one place reduced, by form and number of the place."""
    from vared2_fx.deploy.bench import bench  # not above: deployment reads what convert made

    dynamic = {
        kind: run_passes(gm, pipeline(replace(config, granularity=kind), plan))  # type: ignore[arg-type]
        for kind, plan in plans.items()
        if plan.regions
    }
    speed_ups: dict[tuple[str, int], float] = {}
    for number, place in enumerate(found):
        forms = {"block": place.blocks, "stage": () if place.stage is None else (place.stage,)}
        variants = {
            kind: specialize(dynamic[kind], {"*": FULL} | {region.path: probe for region in own})
            for kind, own in forms.items()
            if own
        }
        with evaluating(gm):  # place by place: an engine may keep gigabytes for each network
            result = bench(gm, variants, engine=config.engine, example_inputs=args, rounds=_ROUNDS, warmup=2)
        speed_ups |= {(timed.name, number): timed.speed_up for timed in result.variants}
    return speed_ups


def _merged(plan: Plan, gm: fx.GraphModule, chosen: dict[str, PlanRegion], slow: dict[str, str]) -> Plan:
    """`plan` with these regions in place of its own."""
    order = {node.name: position for position, node in enumerate(gm.graph.nodes)}
    regions = sorted(chosen.values(), key=lambda region: order[region.nodes[-1].name])
    within = {path: region.path for region in regions for path in region.convs}

    def entry_of(entry: PlanEntry) -> PlanEntry:
        if entry.path in within:
            return replace(entry, reason="convert", detail="", region=within[entry.path])
        if entry.path in slow:
            return replace(entry, reason="not_faster", detail=slow[entry.path], region=None)
        return entry

    return replace(plan, regions=tuple(regions), entries=tuple(map(entry_of, plan.entries)))
