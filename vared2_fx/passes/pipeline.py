"""The ordered list of passes that `convert` runs, and the runner that times and names them."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from torch import fx

from vared2_fx.config import ConvertConfig
from vared2_fx.passes.gate_blocks import gate_blocks
from vared2_fx.passes.plan import Plan
from vared2_fx.passes.rewrite import gate_convs

log = logging.getLogger(__name__)

Pass = Callable[[fx.GraphModule], fx.GraphModule]


def pipeline(config: ConvertConfig, plan: Plan) -> list[Pass]:
    """The rewrites that carry out `plan`, in order."""
    blocks = [region for region in plan.regions if region.nodes]
    sites = {region.path: region.grid for region in plan.regions if not region.nodes}
    if blocks:
        return [partial(gate_blocks, blocks=blocks, config=config)]
    return [partial(gate_convs, sites=sites, config=config)]


def run_passes(gm: fx.GraphModule, passes: Sequence[Pass]) -> fx.GraphModule:
    """Run `passes` in order; log what each changed and how long it took; name the pass in an error."""
    for run in passes:
        name = getattr(run, "func", run).__name__
        before, start = _census(gm), time.perf_counter()
        try:
            gm = run(gm)
        except Exception as exc:
            exc.add_note(f"in the pass {name}") if hasattr(exc, "add_note") else None
            raise
        changed = _census(gm)
        counts = ", ".join(
            f"{kind} {before[kind]} -> {changed[kind]}"
            for kind in sorted(before.keys() | changed.keys())
            if before[kind] != changed[kind]
        )
        log.info("%s: %s (%.2f s)", name, counts or "nothing to change", time.perf_counter() - start)
    return gm


def _census(gm: fx.GraphModule) -> Counter[str]:
    nodes = gm.graph.find_nodes(op="call_module")
    return Counter(type(gm.get_submodule(str(node.target))).__name__ for node in nodes)
