"""The two calls that a user begins with: `scan` looks, `convert` changes a copy."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vared2_fx import zoo
from vared2_fx.config import ConvertConfig, read_target
from vared2_fx.errors import ConvertError, ZooError
from vared2_fx.layers import ConvVariant, DynamicConv
from vared2_fx.passes.check import check
from vared2_fx.passes.hooks import has_hooks, no_hook_lost
from vared2_fx.passes.pipeline import pipeline, run_passes
from vared2_fx.passes.plan import Plan, make_plan
from vared2_fx.passes.reach import check_target
from vared2_fx.passes.shapes import Inputs, as_args, guess_shapes, measure_shapes
from vared2_fx.passes.trace import CONVERSION, copy_model, trace
from vared2_fx.policy.fix import full
from vared2_fx.wrappers import inner_name, unwrapped

log = logging.getLogger(__name__)

_OF_GRAPH_MODULES = {name for name in dir(fx.GraphModule) if name not in dir(nn.Module)} | {"meta", "forward"}


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
    """Say what `convert` would do, layer by layer; computes and changes nothing.

    Args:
        model: the network.
        example_inputs: a clip batch (N, C, T, H, W), or a sequence of positional arguments. Without, the zoo's
            clip size for a network of the zoo, else the first usual clip size that the network runs on.
        config: what may be converted; the default `ConvertConfig()`.
        target_macs: share of the multiply-adds that is to be reached, 0.65 or "65%"; None: any.

    Returns:
        The plan; `print` it.

    Raises:
        ConvertError: the network cannot be traced, does not run on the example inputs, the config names
            layers that are not there, or no policy comes down to `target_macs`.
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

    Until it is trained it computes what `model` computes. With example inputs that is checked on them.

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
        reasons = sorted({f"{entry.reason} ({entry.detail})" for entry in plan.skipped})
        raise ConvertError(
            f"convert: nothing to convert in {plan.network}: {len(plan.entries)} 3D convolutions, "
            f"{'; '.join(reasons) or 'none at all'}. `scan(model)` lists them."
        )
    dynamic = apply_plan(gm, plan, config, getattr(own, "vared2_source", None))
    if example_inputs is not None:
        exact = config.gate != "soft_modulation" or config.normalize
        with nullcontext() if exact else full(dynamic):
            log.info("check: largest difference %.1e of the largest output", check(own, dynamic, example_inputs))
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
    for node in dynamic.graph.nodes:
        node.meta.clear()  # shapes of the example; they need not hold for what comes
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
    if any(isinstance(module, (DynamicConv, ConvVariant)) for module in model.modules()):
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
    with no_hook_lost(own):
        gm = trace(own)
    _no_optional_input(gm, 0 if example_inputs is None else len(as_args(example_inputs)))
    if example_inputs is None:
        shape, is_guess = _known_shape(gm, own)
    else:
        measure_shapes(gm, example_inputs)
        shape, is_guess = _shape_of(example_inputs), False
    return gm, make_plan(gm, config=config, source=own, input_shape=shape, input_is_guess=is_guess)


def _no_optional_input(gm: fx.GraphModule, given: int) -> None:
    """Refuse inputs that are None unless given: tracing takes what depends on that as if they were.

    Raises:
        ConvertError: the graph uses one that is not among the first `given`.
    """
    for node in gm.graph.find_nodes(op="placeholder")[given:]:
        if node.args == (None,) and node.users:
            raise ConvertError(
                f"trace: `{node.target}` of {type(gm).__name__}.forward is None unless it is given, and a graph holds "
                "only one of the two cases. Pass example_inputs with it, or a network around it that settles it."
            )


def _known_shape(gm: fx.GraphModule, own: nn.Module) -> tuple[tuple[int, ...] | None, bool]:
    source = getattr(own, "vared2_source", None)
    if source is not None:
        try:
            like = next(own.parameters())
            clips = tree_map_only(Tensor, lambda x: x.to(like), zoo.spec(source["name"]).example_inputs())
            measure_shapes(gm, clips)
            return _shape_of(clips), False
        except (ZooError, ConvertError):
            log.info("%s does not run on the zoo's clip size", source["name"])
    return guess_shapes(gm), True


def _shape_of(example_inputs: Inputs) -> tuple[int, ...]:
    first = next((x for x in tree_leaves(example_inputs) if isinstance(x, Tensor)), torch.empty(1))
    return tuple(first.shape)
