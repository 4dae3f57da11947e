"""The ordered list of passes before an engine takes over."""

from functools import partial
from typing import Any, Literal, get_args

from torch import fx, nn

from vared2_fx.config import EngineName
from vared2_fx.errors import ConvertError, DeployError
from vared2_fx.layers import DynamicRegion, Gate, SelfGated
from vared2_fx.modes import unchanged
from vared2_fx.passes.deploy.cancel_frames import FrameMean, cancel_frames
from vared2_fx.passes.deploy.delay_frames import delay_frames
from vared2_fx.passes.deploy.drop_inactive import drop_inactive
from vared2_fx.passes.deploy.fold_norms import fold_norms
from vared2_fx.passes.deploy.follow import follow
from vared2_fx.passes.deploy.frame_forms import FrameForm, PhasedFrames, ResizedFrames, frame_forms
from vared2_fx.passes.deploy.mean_pools import mean_pools
from vared2_fx.passes.deploy.memory_format import channels_last
from vared2_fx.passes.deploy.precision import compute_in_bf16
from vared2_fx.passes.deploy.replace_swish import replace_swish
from vared2_fx.passes.deploy.settle_variants import settle_variants
from vared2_fx.passes.pipeline import Pass, run_passes
from vared2_fx.passes.shapes import Inputs, as_args
from vared2_fx.passes.trace import copy_model
from vared2_fx.wrappers import unwrapped

Precision = Literal["fp32", "bf16"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

FIXED_FRAMES = (PhasedFrames, ResizedFrames, FrameMean)
"""Modules of a graph that holds for one number of frames only."""


def deploy_pipeline(engine: EngineName, precision: Precision, args: tuple[Any, ...]) -> list[Pass]:
    """The passes for `engine`, in order; `args` is what the network is called with.

    Torch's own engines are given the layout, and in bf16 the network that computes so; the others choose both
    themselves.
    """
    forms: dict[EngineName, FrameForm] = {"openvino": "resize", "onnx": "broadcast"}
    form = forms.get(engine, "laid")
    passes: list[Pass] = [settle_variants, replace_swish, drop_inactive, fold_norms, delay_frames, cancel_frames]
    passes += [partial(frame_forms, form=form), mean_pools]
    if engine in ("torch", "compile"):
        passes += [partial(compute_in_bf16, args=args)] if precision == "bf16" else []
        passes += [channels_last]
    return passes


def prepare(
    model: nn.Module, example_inputs: Inputs, engine: EngineName = "torch", precision: Precision = "fp32"
) -> fx.GraphModule:
    """Make of a static network the graph that `engine` runs best.

    Args:
        model: the network; not changed.
        example_inputs: what it is called with, as for `convert`.
        engine: which passes run.
        precision: `bf16` changes the graph for torch's own engines only.

    Returns:
        A GraphModule in evaluation mode on the CPU, with the inputs and outputs of `model`.

    Raises:
        DeployError: the network still has gates, is not float32, or does not run on the example inputs.
    """
    return prepare_own(own_copy(model), as_args(example_inputs), engine, precision)


def prepare_own(
    own: nn.Module, args: tuple[Any, ...], engine: EngineName, precision: Precision = "fp32"
) -> fx.GraphModule:
    """`prepare`, of what `own_copy` gave and positional arguments; its values stay what they are."""
    with unchanged(own):
        try:
            gm = follow(own, args)
        except ConvertError as exc:
            raise DeployError(f"deploy: {exc}") from exc
    return run_passes(gm, deploy_pipeline(engine, precision, args))


def own_copy(model: nn.Module) -> nn.Module:
    """A copy of a static network on the CPU, in evaluation mode, without gradients.

    Raises:
        DeployError: it cannot be deployed, or copied.
    """
    check_static(model)
    try:
        return copy_model(unwrapped(model)).cpu().requires_grad_(False).eval()
    except ConvertError as exc:
        raise DeployError(f"deploy: {exc}") from exc


def check_static(model: nn.Module) -> None:
    """Refuse what is no network of float32 without gates.

    Raises:
        DeployError: it says what to pass instead.
    """
    if not isinstance(model, nn.Module):
        raise DeployError(f"deploy: expected a torch.nn.Module, got {type(model).__name__}.")
    if any(isinstance(module, (DynamicRegion, SelfGated, Gate)) for module in model.modules()):
        raise DeployError(
            "deploy: this network still has gates, whose decisions no engine can hold. Fix them first: "
            'vr.specialize(dynamic, {"*": (2, 1.0)}) computes every other frame everywhere, {"*": (1, 1.0)} everything.'
        )
    others = {value.dtype for value in model.state_dict().values() if value.is_floating_point()}
    others = {str(dtype).removeprefix("torch.") for dtype in others} - {"float32"}
    if others:
        raise DeployError(
            f"deploy: weights are {' and '.join(sorted(others))}; deploy a float32 network (`model.float()` on a copy) "
            "and say with precision= in what it is to be computed."
        )
    if any(value.is_meta for value in model.state_dict().values()):
        raise DeployError("deploy: this network is on the meta device, it has no values; load its weights first.")
