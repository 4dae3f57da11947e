"""What converts in every network of the zoo: counts, multiply-adds within reach, and the error after conversion.

    python benchmarks/networks_table.py            # all: some minutes, and several GiB
    python benchmarks/networks_table.py x3d_xs     # these anew, the others as they are
    python benchmarks/networks_table.py --page     # only write docs/networks.md from the results

Weights are random, norms have random weights and statistics. The cheapest policy takes the cheapest choice of every
region; overhead (cheap operations, gates) is counted. Each network runs in a process of its own.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, in_own_process, machine
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import vared2_fx as vr
from vared2_fx.tables import by, percent, si

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
FILE, PAGE = RESULTS / "networks.json", ROOT / "docs" / "networks.md"


def on_meta(name: str) -> nn.Module:
    """The network without values; pytorchvideo's mvit_* must be built with them first."""
    with torch.device("cpu" if name.startswith("mvit_base") else "meta"):
        return vr.zoo.load(name).to("meta")


def facts(name: str) -> dict[str, Any]:
    """What is known without computing anything."""
    plan = vr.scan(on_meta(name))
    return {
        "library": vr.zoo.spec(name).library,
        "input": [list(shape) for shape in _shapes(vr.zoo.spec(name).example_args())],
        "not_followed": len(plan.untraced),
        "convolutions": len(plan.entries),
        "converted": len(plan.converted),
        "macs": plan.macs,
        "cheapest_macs": plan.reach.cheapest if plan.reach else None,
        "why_nothing": plan.why_nothing,
    }


def error(name: str) -> float | None:
    """Largest difference to the original at the network's own size, as a share of the largest output value.

    None for a network in which nothing converts.
    """
    from networks import randomise_norms

    torch.manual_seed(0)
    model = vr.zoo.load(name)
    spec = vr.zoo.spec(name)
    plan = vr.scan(model)
    if not plan.converted:
        return None
    randomise_norms(model, *spec.example_args())
    with torch.no_grad():
        for parameter in model.parameters():  # some linear heads start with almost equal answers
            if parameter.dim() == 2:
                nn.init.normal_(parameter)
        dynamic = vr.convert(model)
        expected = model(*spec.example_args())
        found = dynamic(*spec.example_args())
        with vr.policy(dynamic, {"*": (4, 0.5)}):
            other = dynamic(*spec.example_args())
    assert _difference(other, expected) > 0.001, "another policy makes no difference: an error of 0 says nothing"
    return _difference(found, expected)


def _difference(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).abs().max() / expected.abs().max())


def page(results: dict[str, Any]) -> str:
    """docs/networks.md."""
    rows, nothing = [], []
    for name, row in results["networks"].items():
        reach = "" if row["why_nothing"] else percent(row["cheapest_macs"] / row["macs"])
        traces = "yes" if not row["not_followed"] else f"but for {row['not_followed']} modules"
        largest = "" if row["error"] is None else f"{row['error']:.0e}" if row["error"] else "0"
        shape = " + ".join(by(shape[1:]) for shape in row["input"] if len(shape) > 2)
        shape += " + boxes" if any(len(shape) == 2 for shape in row["input"]) else ""
        cells = (name, shape, traces, str(row["convolutions"]), str(row["converted"]), f"{si(row['macs'])}")
        rows.append("| " + " | ".join((*cells, reach, largest)) + " |")
        if row["why_nothing"]:
            nothing.append(f"- `{name}`: {row['why_nothing']}.")
    used = ", ".join(f"{name} {results['machine'][name]}" for name in ("torch", "torchvision", "pytorchvideo"))
    return "\n".join(
        [
            "# Networks",
            "",
            "Every network of the zoo, converted with `vr.convert(model)`. Made by `benchmarks/networks_table.py`",
            f"({used}); raw results",
            "are in `benchmarks/results/networks.json`, and tests hold the page against the code.",
            "",
            "- *traces*: whether torch.fx follows it; a module that it cannot follow keeps its own code.",
            "- *found*, *converted*: 3D convolutions; `vared2 scan` gives the reason for each one that stays static.",
            "- *MACs*: multiply-adds per clip at the input shown. *Reachable*: every region at its cheapest choice",
            "  (mostly R = 4, r = 1/2), overhead counted. No accuracy is meant: a trained network will lie in between.",
            "- *Error*: largest difference to the original right after conversion, as a share of the largest output",
            "  value; random weights, norms with random weights and statistics.",
            "",
            "| network | input | traces | found | converted | MACs | reachable | error |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "Nothing worth converting:",
            "",
            *nothing,
            "",
        ]
    )


def _shapes(args: Any) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in tree_leaves(args) if isinstance(x, Tensor)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[])
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--facts", action="store_true", help="only what needs no computing; errors stay as they are")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps({"error": error(args.one)}))
        return
    old = json.loads(FILE.read_text()) if FILE.exists() else {"machine": machine(), "networks": {}}
    names = [] if args.page else args.networks or list(vr.zoo.names())
    for name in names:
        row = {"error": old["networks"].get(name, {}).get("error")} if args.facts else {}
        old["networks"][name] = facts(name) | (row or in_own_process(__file__, f"--one={name}"))
        print(name, old["networks"][name], flush=True)
        old["machine"] = machine() | {"pytorchvideo": version("pytorchvideo")}
        known = {name: old["networks"][name] for name in vr.zoo.names() if name in old["networks"]}
        FILE.write_text(json.dumps({"machine": old["machine"], "networks": known}, indent=1) + "\n")
    PAGE.write_text(page(json.loads(FILE.read_text())))


if __name__ == "__main__":
    main()
