"""`deploy`: from a static network to an engine that runs it."""

import logging
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from vared2_fx import zoo
from vared2_fx.config import EngineName
from vared2_fx.convert import conversion
from vared2_fx.deploy.deployed import Deployed, run_engine
from vared2_fx.deploy.engines import BY_NAME, Engine, Settings
from vared2_fx.deploy.engines.base import check_threads
from vared2_fx.deploy.parity import compare
from vared2_fx.deploy.program import Program, first_line, programs
from vared2_fx.errors import ConvertError, DeployError, ZooError
from vared2_fx.modes import evaluating, unchanged
from vared2_fx.passes.deploy.pipeline import ENGINES, PRECISIONS, Precision, own_copy, prepare_own
from vared2_fx.passes.leaves import leaves
from vared2_fx.passes.shapes import Inputs, as_args
from vared2_fx.wrappers import unwrapped

if TYPE_CHECKING:
    from vared2_fx.routes import DeployedRoutes, Routed

log = logging.getLogger(__name__)


@overload
def deploy(
    model: nn.Module,
    engine: EngineName = ...,
    *,
    precision: Precision = ...,
    example_inputs: Inputs | None = ...,
    threads: int | None = ...,
) -> Deployed: ...


@overload
def deploy(
    model: "Routed",
    engine: EngineName = ...,
    *,
    precision: Precision = ...,
    threads: int | None = ...,
) -> "DeployedRoutes": ...


def deploy(
    model: "nn.Module | Routed",
    engine: EngineName = "torch",
    *,
    precision: Precision = "fp32",
    example_inputs: Inputs | None = None,
    threads: int | None = None,
) -> "Deployed | DeployedRoutes":
    """Make a static network run in an engine, on the processor.

    Any network will do: the original, or what `specialize` makes of a dynamic one. Both go the same way, so that
    comparing them is fair.

    Args:
        model: the network, in float32, without gates; not changed, in no way. It is run in evaluation mode. Or what
            `train_router` made, which `deploy_routed` then deploys.
        engine: `torch` (folded, in channels_last_3d, oneDNN), `compile` (torch.compile; needs a C++ compiler), `onnx`
            (onnxruntime) or `openvino`.
        precision: what it computes in: `fp32`, or `bf16` (torch, compile, openvino). It takes and gives float32.
        example_inputs: what the network is called with, as for `convert`; by default what the zoo says of a network
            of its own, or what it was converted with. Other numbers of clips and frames work where the graph allows
            them; `signature` and `notes` say so. Heights and widths are those of the example.
        threads: threads of one call; None leaves it to the engine. (Torch has one number for all that runs in a
            thread; it is set for the call and set back.)

    Returns:
        The deployed network; call it like `model`, from any number of threads. Of routes `DeployedRoutes`.

    Raises:
        DeployError: no such engine or precision; a package is missing; the network has gates, or cannot be exported;
            or the engine's output is not the network's (see `deploy.parity`).
    """
    from vared2_fx.routes import Routed, deploy_routed  # made of deployed networks themselves

    if isinstance(model, Routed):
        if example_inputs is not None:
            raise DeployError("deploy: routes know the size of their clips; leave example_inputs out.")
        return deploy_routed(model, engine, precision=precision, threads=threads)
    settings = _settings(engine, precision, threads)
    BY_NAME[engine].check(settings)
    args = example_args(unwrapped(model), example_inputs)
    with torch.autocast("cpu", enabled=False):
        with torch.inference_mode(False):
            own = own_copy(model)
            gm = prepare_own(own, args, engine, precision)
            output = _output(own, args)
            program, running, notes = _build(gm, args, output, engine, settings)
        parity = compare(
            own,
            lambda inputs: run_engine(running, type(own).__name__, program.signature.flatten(inputs)),
            args,
            output,
            program.signature,
            precision,
            other_sizes=engine != "compile",  # which takes seconds to minutes for each shape
        )
    inside = [f"kept as it is, since torch.fx cannot follow it: {path}" for path in leaves(gm)]
    deployed = Deployed(
        engine=running,
        network=type(own).__name__,
        signature=program.signature,
        parity=parity,
        notes=(*notes, *program.notes, *running.notes, *inside),
    )
    log.info("%s", deployed)
    return deployed


def _build(
    gm: fx.GraphModule, args: tuple[Any, ...], output: Any, engine: EngineName, settings: Settings
) -> tuple[Program, Engine, list[str]]:
    """The engine with the most free axes with which it runs the example, and a note where it refused more.

    Raises:
        DeployError: none does.
    """
    refused: list[Exception] = []
    for program in programs(gm, args, output):
        try:
            running = BY_NAME[engine].build(program, settings)
            running.run(
                [x.clone() for x in program.signature.flatten(args)]
            )  # engines compile, and refuse, at the first call
        except DeployError:
            raise
        except Exception as exc:
            refused.append(exc)
            continue
        return program, running, [f"{engine} refused free axes: {first_line(exc)}" for exc in refused[:1]]
    raise DeployError(
        f"deploy: engine {engine!r} refuses this network ({type(refused[-1]).__name__}: {str(refused[-1])[:500]})."
    ) from refused[-1]


def _settings(engine: str, precision: str, threads: int | None) -> Settings:
    if engine not in ENGINES:
        raise DeployError(f"deploy: no engine {engine!r}; there are {', '.join(ENGINES)}.")
    if precision not in PRECISIONS:
        raise DeployError(f"deploy: no precision {precision!r}; there are {', '.join(PRECISIONS)}.")
    check_threads("deploy", threads)
    return Settings(precision=precision, threads=threads)


def _output(own: nn.Module, args: tuple[Any, ...]) -> Any:
    """What the network gives for the example.

    Raises:
        DeployError: it does not run on it.
    """
    try:
        with unchanged(own), evaluating(own):
            return own(*tree_map_only(Tensor, torch.clone, args))
    except Exception as exc:
        raise DeployError(
            f"deploy: the network does not run on its example inputs ({type(exc).__name__}: {first_line(exc)}). Pass "
            "example_inputs of the shape that it is used with."
        ) from exc


def example_args(model: nn.Module, example_inputs: Inputs | None) -> tuple[Any, ...]:
    """The positional arguments to try a network with: those given, else what is known of it.

    Raises:
        DeployError: nothing is known, or they hold other things than tensors on the processor.
    """
    if example_inputs is not None:
        given: tuple[Any, ...] = tree_map_only(Tensor, lambda x: x.detach().cpu(), as_args(example_inputs))
        return given
    source, shape = getattr(model, "vared2_source", None), None
    try:
        made = conversion(model)
        source, plan = made.source, made.plan
        shape = None if plan.input_is_guess or plan.nesting else plan.input_shape
    except ConvertError:
        pass
    if shape is not None:
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
    try:
        if source is not None:
            return as_args(zoo.spec(str(source["name"])).example_inputs())
    except ZooError:
        pass
    raise DeployError(
        f"deploy: say with example_inputs= what {type(model).__name__} is called with, such as "
        "torch.randn(1, 3, 16, 224, 224); only the zoo's networks are known."
    )
