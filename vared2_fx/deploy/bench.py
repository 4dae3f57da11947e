"""`bench`: a network and static variants of it in one engine, timed in turns."""

import platform
from collections.abc import Mapping
from functools import partial
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vared2_fx.config import EngineName
from vared2_fx.deploy.deployed import Deployed
from vared2_fx.deploy.files import versions
from vared2_fx.deploy.make import deploy, example_args
from vared2_fx.deploy.speed import BenchResult, Timed
from vared2_fx.errors import ConvertError, DeployError
from vared2_fx.passes.deploy.follow import follow
from vared2_fx.passes.deploy.pipeline import Precision, own_copy
from vared2_fx.passes.shapes import Inputs, clips_of, total_macs
from vared2_fx.report.environment import processor
from vared2_fx.turns import in_turns
from vared2_fx.wrappers import unwrapped

BASE = "base"


def bench(
    base: nn.Module,
    variants: Mapping[str, nn.Module] | None = None,
    *,
    engine: EngineName = "torch",
    precision: Precision = "fp32",
    example_inputs: Inputs | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    rounds: int = 10,
    warmup: int = 3,
) -> BenchResult:
    """Measure how long a network and variants of it take in an engine, all prepared the same way.

    They run in turns in this process, each once a round, in an order drawn anew for each round: what runs after what
    must not decide. A variant's speed-up is the median of its ratios to the base of the same round.

    Args:
        base: the network; not changed.
        variants: static networks that take the same, by the name under which they are to be listed.
        engine: as for `deploy`.
        precision: as for `deploy`.
        example_inputs: as for `deploy`.
        batch_size: clips in a call; by default as many as the example has. Networks are deployed on the example, where
            their graphs allow other numbers of clips: on many, checking them would take most of the time and memory.
        threads: threads of a call; by default torch's number. All engines are told it.
        rounds: how often each network is timed.
        warmup: how often each runs before that.

    Returns:
        Times, multiply-adds and where they were taken; `print` it.

    Raises:
        DeployError: as for `deploy`; or a number that cannot be, or a variant called `base`.
    """
    if BASE in (variants or {}):
        raise DeployError(f"bench: a variant is called {BASE!r}; that is the network itself. Give it another name.")
    for name, value, least in (("rounds", rounds, 2), ("warmup", warmup, 0), ("batch_size", batch_size, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise DeployError(f"bench: {name}={value!r}; it must be a number of at least {least}.")
    threads = torch.get_num_threads() if threads is None else threads
    example = args = example_args(unwrapped(base), example_inputs)
    if batch_size is not None:
        args = _of_batch(example, batch_size)
    networks = {BASE: base, **(variants or {})}
    macs = {name: _macs(model, example) for name, model in networks.items()}
    deploy_on = partial(deploy, engine=engine, precision=precision, threads=threads)
    deployed = {name: deploy_on(model, example_inputs=example) for name, model in networks.items()}
    for name, model in networks.items():
        if not deployed[name].signature.accepts(args):  # its graph holds for so many clips only
            deployed[name] = deploy_on(model, example_inputs=args)
    times = in_turns({name: partial(d, *args) for name, d in deployed.items()}, rounds=rounds, warmup=warmup)
    timed = [_timed(name, deployed[name], macs[name], macs[BASE], times[name], times[BASE]) for name in networks]
    return BenchResult(
        network=deployed[BASE].network,
        engine=engine,
        precision=precision,
        layout="channels_last_3d" if engine in ("torch", "compile") else "the engine's own",
        threads=threads,
        batch_size=len(clips_of(args)),
        inputs=tuple(tuple(x.shape) for x in tree_leaves(args)),
        dtype=deployed[BASE].signature.inputs[0].dtype,
        rounds=rounds,
        warmup=warmup,
        base=timed[0],
        variants=tuple(timed[1:]),
        processor=processor(),
        python=platform.python_version(),
        versions=versions(deployed[BASE]),
    )


def _of_batch(args: tuple[Any, ...], batch_size: int) -> tuple[Any, ...]:
    """The example with so many clips, its own again and again."""
    num_clips = len(clips_of(args))

    def change(x: Tensor) -> Tensor:
        if len(x) != num_clips:
            raise DeployError(
                f"bench: an input of shape {tuple(x.shape)} is not per clip; give example_inputs with {batch_size} "
                "clips instead of batch_size."
            )
        return x[torch.arange(batch_size) % num_clips]

    changed: tuple[Any, ...] = tree_map_only(Tensor, change, args)
    return changed


def _macs(model: nn.Module, args: tuple[Any, ...]) -> int:
    """Multiply-adds per clip of convolutions and matrix products."""
    try:
        return total_macs(follow(own_copy(model), args)) // len(clips_of(args))
    except ConvertError as exc:
        raise DeployError(f"bench: {exc}") from exc


def _timed(
    name: str, deployed: Deployed, macs: int, base_macs: int, times: list[float], base_times: list[float]
) -> Timed:
    low, median, high = quantiles(times, n=4, method="inclusive")
    ratios = [base / own for base, own in zip(base_times, times, strict=True)]
    slow, speed_up, fast = quantiles(ratios, n=4, method="inclusive")
    return Timed(
        name=name,
        ms=median,
        low_ms=low,
        high_ms=high,
        min_ms=min(times),
        max_ms=max(times),
        macs=macs,
        speed_up=speed_up,
        low_speed_up=slow,
        high_speed_up=fast,
        ideal_speed_up=base_macs / max(1, macs),
        difference=deployed.parity.difference,
        notes=deployed.notes,
    )
