"""The two calls that a user begins with: `scan` looks, `convert` changes a copy."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from vared2_fx import zoo
from vared2_fx.auto import fastest_plan
from vared2_fx.config import ConvertConfig, read_target
from vared2_fx.errors import ConvertError, ZooError
from vared2_fx.layers import ConvVariant, DynamicRegion, SlimConv
from vared2_fx.modes import evaluating, unchanged
from vared2_fx.passes.check import check
from vared2_fx.passes.hooks import has_hooks, no_hook_lost, watched_hooks
from vared2_fx.passes.nesting import nesting_of
from vared2_fx.passes.pipeline import pipeline, run_passes
from vared2_fx.passes.plan import Plan
from vared2_fx.passes.planning import make_plan
from vared2_fx.passes.reach import check_target
from vared2_fx.passes.shapes import Inputs, as_args, clips_of, guess_shapes, measure_shapes
from vared2_fx.passes.trace import CONVERSION, copy_model, forget_shapes, trace
from vared2_fx.policy.fix import full
from vared2_fx.wrappers import inner_name, unwrapped

log = logging.getLogger(__name__)

_OF_GRAPH_MODULES = {name for name in dir(fx.GraphModule) if name not in dir(nn.Module)} | {"meta", "forward"}

_SMALL_CLIPS = ((5, 32), (8, 64), (16, 112))
"""(frames, pixels)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """How a converted network was made; `conversion(dynamic)` finds it again."""

    config: ConvertConfig
    plan: Plan
    source: dict[str, object] | None
    """Name and number of classes of the zoo's network, None for the user's own."""


def scan(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    config: ConvertConfig | None = None,
    *,
    target_macs: float | str | None = None,
) -> Plan:
    """Say what `convert` would do, layer by layer; changes nothing, and computes nothing but for granularity `auto`.

    Args:
        model: the network.
        example_inputs: a clip batch (N, C, T, H, W), or a list of them for a network that takes a list; a tuple is
            several positional arguments. Without, the zoo's clip size for a network of the zoo, else the first usual
            clip size that the network runs on.
        config: what may be converted; the default `ConvertConfig()`.
        target_macs: share of the multiply-adds that is to be reached, 0.65 or "65%"; None: any.

    Returns:
        The plan; `print` it.

    Raises:
        ConvertError: the network cannot be traced, does not run on the example inputs, the config names
            layers that are not there, or no policy comes down to `target_macs`.
        DeployError: the engine, whose times granularity `auto` wants, is not installed or cannot run the network.
    """
    target = read_target("scan: target_macs", target_macs)
    plan = _look(copy_model(_convertible(model)), example_inputs, config or ConvertConfig())[1]
    if target is not None:
        check_target("scan", target, plan.reach)
    return plan


@torch.inference_mode(False)  # what it makes can be trained, wherever it is called
def convert(
    model: nn.Module, example_inputs: Inputs | None = None, config: ConvertConfig | None = None
) -> fx.GraphModule:
    """Make a network that decides, for each clip, which frames and channels to compute.

    Until it is trained it computes what `model` computes. With example inputs that is checked on them; where torch.fx
    could not follow a part of the network also without, on a small made-up clip, if one fits.

    Args:
        model: the network; not changed, in no way, also when this raises.
        example_inputs: as for `scan`; they only add the facts that need shapes (which layers have too few frames
            or too few multiply-adds to be worth it) and the check.
        config: what may be converted; the default `ConvertConfig()`.

    Returns:
        A GraphModule with the inputs and outputs of `model`, on its device, in its mode.

    Raises:
        ConvertError: as for `scan`; or nothing can be converted; or the result would differ from the original.
    """
    config = config or ConvertConfig()
    own = copy_model(_convertible(model))
    gm, plan = _look(own, example_inputs, config)
    if not plan.converted:
        raise ConvertError(
            f"convert: nothing worth converting in {plan.network}, because {plan.why_nothing}. `scan(model)` lists its "
            f"{len(plan.entries)} 3D convolutions."
        )
    dynamic = apply_plan(gm, plan, config, getattr(own, "vared2_source", None))
    inputs = _small_clip(own) if example_inputs is None and plan.untraced else example_inputs
    if inputs is not None:
        exact = config.gate != "soft_modulation" or config.normalize
        with nullcontext() if exact else full(dynamic):
            log.info("check: largest difference %.1e of the largest output", check(own, dynamic, inputs))
    return dynamic


def conversion(dynamic: nn.Module) -> Conversion:
    """How `dynamic`, maybe inside a wrapper, was made.

    Raises:
        ConvertError: it was not made by `convert` or `load`.
    """
    network = unwrapped(dynamic)
    found = getattr(network, "meta", {}).get(CONVERSION, vars(network).get(CONVERSION))
    if not isinstance(found, Conversion):
        raise ConvertError(f"{type(network).__name__} is not a converted network; call convert(model) first.")
    return found


def apply_plan(
    gm: fx.GraphModule, plan: Plan, config: ConvertConfig, source: dict[str, object] | None
) -> fx.GraphModule:
    """Carry out `plan` on a traced network; `gm` itself is not changed."""
    dynamic = run_passes(gm, pipeline(config, plan))
    forget_shapes(dynamic)
    kept = replace(config, filter=None)  # the plan holds what it chose
    dynamic.meta[CONVERSION] = Conversion(config=kept, plan=plan, source=source)
    setattr(dynamic, CONVERSION, dynamic.meta[CONVERSION])
    return dynamic


def _convertible(model: nn.Module) -> nn.Module:
    """`model`, unless it is no plain network.

    Raises:
        ConvertError: it says what to pass instead.
    """
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ConvertError(f"convert: expected a torch.nn.Module, got {kind}; a network of the zoo is zoo.load(name).")
    if any(isinstance(module, (DynamicRegion, ConvVariant, SlimConv)) for module in model.modules()):
        raise ConvertError("convert: this network is converted already; convert the original with another config.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConvertError(f"convert: {kind} is a compiled program; convert the network that it was made from.")
    if any(nn.parameter.is_lazy(parameter) for parameter in model.parameters()):
        raise ConvertError(f"convert: {kind} has lazy layers without weights; run it once, then convert it.")
    if len({tensor.is_meta for tensor in model.state_dict().values()}) > 1:
        raise ConvertError(f"convert: a part of {kind} is on the meta device, without values; load its weights first.")
    clashing = [name for name, _ in (*model.named_children(), *model.named_parameters()) if name in _OF_GRAPH_MODULES]
    if clashing and not isinstance(model, fx.GraphModule):
        raise ConvertError(
            f"convert: `{clashing[0]}` of {kind} is a name that torch.fx needs for itself in the converted network; "
            "rename that part, or wrap the network in a module that holds it."
        )
    for path, module in model.named_modules():
        if (inner := inner_name(module)) is not None:
            place = "the network inside it," if not path else "a network with what is inside it,"
            where = f"model.{path}" if path else "model"
            raise ConvertError(
                f"convert: {where} is a wrapper ({type(module).__name__}); pass {place} {where}.{inner}."
            )
        own_call = type(module).__call__ is not nn.Module.__call__
        if own_call and not isinstance(module, (fx.GraphModule, torch.jit.ScriptModule)):
            raise ConvertError(
                f"convert: {type(module).__name__} (`{path}`) has a __call__ of its own, which a graph would call "
                "twice or not at all; put what it does into forward."
            )
    if has_hooks(model):
        raise ConvertError(
            f"convert: {kind} itself carries hooks, which would be lost; set them on the result instead."
        )
    if "forward" in vars(model):
        raise ConvertError(
            f"convert: the forward of this {kind} was replaced on the object (patched, or compiled), which its graph "
            "would not show. Pass the network as its class makes it, or a class of your own with that forward."
        )
    return model


def _look(own: nn.Module, example_inputs: Inputs | None, config: ConvertConfig) -> tuple[fx.GraphModule, Plan]:
    known = _zoo_inputs(own) if example_inputs is None else example_inputs
    args = () if known is None else as_args(known)
    with watched_hooks(own) as seen:
        gm = trace(own, nesting_of(args), num_given=len(args))
    no_hook_lost(gm, own, seen)
    shape, is_guess = None if known is None else _shape_of(known), False
    if example_inputs is not None:
        measure_shapes(gm, example_inputs)
    elif known is None or not _runs_on(gm, known):
        shape, is_guess = guess_shapes(gm), True

    def plan(config: ConvertConfig) -> Plan:
        return make_plan(
            gm, config=config, source=own, input_shape=shape, input_is_guess=is_guess, nesting=nesting_of(args)
        )

    if config.granularity != "auto":
        return gm, plan(config)
    if is_guess and shape is not None:
        args = (torch.randn(shape).to(next(own.parameters())),)
    return gm, fastest_plan(gm, plan, config, args)


def _zoo_inputs(own: nn.Module) -> Inputs | None:
    """What the zoo says that a network of its takes, on the device and in the dtype of `own`."""
    source = getattr(own, "vared2_source", None)
    if source is None:
        return None
    try:
        like = next(own.parameters())
        inputs: Inputs = tree_map_only(Tensor, lambda x: x.to(like), zoo.spec(source["name"]).example_inputs())
        return inputs
    except ZooError:
        return None


def _small_clip(own: nn.Module) -> Tensor | None:
    """A made-up clip that `own` runs on, to check a network that could not be followed; None where none fits."""
    conv = next(module for module in own.modules() if isinstance(module, nn.Conv3d))
    for frames, pixels in _SMALL_CLIPS:
        shape = (1, conv.in_channels, frames, pixels, pixels)
        clip = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(conv.weight)
        try:
            with unchanged(own), evaluating(own):
                own(clip)
            return clip
        except Exception:
            continue
    log.warning("%s: not checked, as it runs on no small clip; pass example_inputs", type(own).__name__)
    return None


def _runs_on(gm: fx.GraphModule, inputs: Inputs) -> bool:
    try:
        measure_shapes(gm, inputs)
        return True
    except ConvertError:
        log.info("%s does not run on the zoo's clip size", type(gm).__name__)
        return False


def _shape_of(example_inputs: Inputs) -> tuple[int, ...]:
    return tuple(clips_of(example_inputs).shape)
