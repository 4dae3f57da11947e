"""What tools that users know print for the network of docs/report.md: torchinfo, fvcore, Torch-Pruning.

    pip install -e '.[bench]' && python benchmarks/other_tools.py

Writes `results/other_tools.txt`. All three look at one clip's shape; none of them at the clips.
"""

import copy
import warnings

import torch
import torch_pruning
import torchinfo
from common import RESULTS
from fvcore.nn import FlopCountAnalysis, flop_count_table

import vared2_fx as vr
from vared2_fx.tables import si

NAME = "vared2_demo"


def main() -> None:
    warnings.simplefilter("ignore")  # the tracer's, about shapes that it takes for constants
    torch.set_num_threads(1)
    model, clip = vr.zoo.load(NAME, pretrained=True).eval(), vr.zoo.spec(NAME).example_inputs(batch=1)
    columns = ("output_size", "num_params", "mult_adds")
    info = torchinfo.summary(model, input_data=clip, col_names=columns, depth=2, verbose=0, col_width=18)
    analysis = FlopCountAnalysis(model, clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    parts = [f"torchinfo {torchinfo.__version__}", trimmed(str(info))]
    parts += ["fvcore", flop_count_table(analysis, max_depth=2)]
    macs, params = torch_pruning.utils.count_ops_and_params(model, clip)
    parts += [f"Torch-Pruning {torch_pruning.__version__}", f"{si(macs)} MACs, {si(params)} parameters"]
    macs, params = torch_pruning.utils.count_ops_and_params(pruned(copy.deepcopy(model), clip), clip)
    parts += ["Torch-Pruning, half of all channels pruned by magnitude", f"{si(macs)} MACs, {si(params)} parameters"]
    plan = vr.scan(model, clip)
    parts += ["vared2_fx, vr.scan", str(plan)]
    text = "\n".join(parts) + "\n"
    (RESULTS / "other_tools.txt").write_text(text)
    print(text)


def trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


def pruned(model: torch.nn.Module, clip: torch.Tensor) -> torch.nn.Module:
    """The network with half of its channels, as Torch-Pruning takes them out; for every clip alike."""
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        clip,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.head],
    )
    pruner.step()
    return model


if __name__ == "__main__":
    main()
