"""Which choices are worth their name on this machine: those that are slower than computing everything do so [ours]."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import vared2_fx
from vared2_fx.convert import conversion
from vared2_fx.errors import ConvertError
from vared2_fx.layers import FULL, Choice, DynamicRegion
from vared2_fx.modes import evaluating, unchanged
from vared2_fx.passes.fingerprint import fingerprint
from vared2_fx.passes.rewrite import full_regions, regions
from vared2_fx.passes.shapes import Inputs, as_args, clips_of, measure_shapes
from vared2_fx.policy.fix import converted, full
from vared2_fx.progress import track
from vared2_fx.report.environment import device_name, layout
from vared2_fx.tables import text_table
from vared2_fx.turns import in_turns, wait_for
from vared2_fx.typed_json import as_type, digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceTime:
    """One choice of one region, with what its gate takes; the full choice without, as it needs no gate."""

    region: str
    """Its path."""
    frame_stride: int
    channel_share: float
    ms: float
    """Median."""
    speed_up: float
    """Median of the ratios to everything computed, of the same round."""

    @property
    def choice(self) -> Choice:
        """What was timed."""
        return Choice(self.frame_stride, self.channel_share)

    @property
    def pays(self) -> bool:
        """It is faster than computing everything, or is that."""
        return self.choice == FULL or self.speed_up > 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Autotuned:
    """What `autotune` found; `print` it."""

    times: tuple[ChoiceTime, ...]
    """Of all choices of all regions that ran."""
    batch_size: int
    """Clips of a call that was timed."""
    threads: int
    processor: str

    @property
    def replaced(self) -> dict[str, tuple[Choice, ...]]:
        """By region, the choices that now compute everything; of regions that have any."""
        slow: dict[str, tuple[Choice, ...]] = {}
        for time in self.times:
            if not time.pays:
                slow[time.region] = (*slow.get(time.region, ()), time.choice)
        return slow

    def __str__(self) -> str:
        rows = [
            (time.region, str(time.choice), f"{time.ms:.2f}", f"{time.speed_up:.2f}", "" if time.pays else "in full")
            for time in self.times
        ]
        slow, total = sum(map(len, self.replaced.values())), sum(time.choice != FULL for time in self.times)
        about = (
            f"{slow} of {total} choices are slower than computing everything, and do that now. Batch "
            f"{self.batch_size}, threads {self.threads}, {self.processor}."
        )
        return "\n".join([text_table(("region", "choice", ">ms", ">speed-up", ""), rows), about])


def autotune(
    dynamic: fx.GraphModule,
    example_inputs: Inputs,
    *,
    rounds: int = 7,
    store: str | Path | None = None,
    measure_again: bool = False,
) -> Autotuned:
    """Time every choice of every region in torch, and let those that do not pay compute everything instead.

    Skipping has a price: the gate, slices, a rebuild, kernels too small for the threads. Where it is more than what is
    saved, a region computes everything when its gate asks for that choice; the network's decisions, and what is counted
    of them, say so. What a clip gets does not depend on its batch. A region in which nothing pays does not ask its gate
    any more. Weights stay as they are. `vr.save` does not keep it, as another machine has other times.

    Times depend on the machine, threads, shapes and dtype: they are measured once for each and stored.

    Args:
        dynamic: a converted network, maybe inside a wrapper; tuned in place.
        example_inputs: clips as it is going to be called with, as for `scan`; of random values, if need be.
        rounds: how often each choice is timed, in turns with the others.
        store: folder of the stored times; by default `vared2_fx` in the user's cache folder.
        measure_again: do not read them, only write.

    Returns:
        Times, and the choices that are replaced.

    Raises:
        ConvertError: not a converted network; gates of kind `soft_modulation`, which weigh several choices; or clips
            that the network does not run on.
    """
    network = converted("autotune", dynamic)
    found = regions(network)
    if any(region.gate.kind == "soft_modulation" for region in found.values()):
        raise ConvertError(
            "autotune: gates of kind soft_modulation weigh several choices; convert with gate='softmax'."
        )
    if type(rounds) is not int or rounds < 1:
        raise ConvertError(f"autotune: rounds={rounds!r}; it must be a number of at least 1.")
    args = as_args(example_inputs)
    measure_shapes(full_regions(network), args)  # raises what is wrong with them
    release(network)
    file = _file(store, network, args)
    tuned = None if measure_again else _read(file, found)
    if tuned is None:
        tuned = _measure(network, found, args, rounds)
        _write(file, tuned)
    for path, choices in tuned.replaced.items():
        found[path].gate.run_in_full(choices)
    return tuned


def release(dynamic: nn.Module) -> None:
    """Undo `autotune`: every choice computes what it is called."""
    for module in dynamic.modules():
        if isinstance(module, DynamicRegion):
            module.gate.run_in_full(())


def _measure(
    network: fx.GraphModule, found: Mapping[str, DynamicRegion], args: tuple[Any, ...], rounds: int
) -> Autotuned:
    """Each region where it stands, on the input that reaches it when everything is computed."""
    measured: list[ChoiceTime] = []
    bar = iter(track([*found, None], "timing choices"))
    next(bar)

    def time(path: str, region: DynamicRegion, x: Tensor) -> None:
        measured.extend(_times(path, region, x, rounds))
        next(bar)

    hooks = [
        region.register_forward_pre_hook(lambda region, inputs, path=path: time(path, region, inputs[0]))
        for path, region in found.items()
    ]
    try:
        with unchanged(network), evaluating(network), full(network):
            network(*tree_map_only(Tensor, torch.clone, args))  # some write into what they are given
    finally:
        for hook in hooks:
            hook.remove()
    clips = clips_of(args)
    return Autotuned(
        times=tuple(measured),
        batch_size=len(clips),
        threads=torch.get_num_threads(),
        processor=device_name(clips.device),
    )


def _times(path: str, region: DynamicRegion, x: Tensor, rounds: int) -> list[ChoiceTime]:
    """All choices of a region, the full one first, timed in turns."""
    runs: dict[Choice, Callable[[], Any]] = {}
    num_strides = len(region.grid.frame_strides)
    for choice in region.grid.all():
        if choice.frame_stride > region.out_frames(x.shape[2]):
            continue  # not offered to such clips
        j, i = region.grid.index(choice)
        decision = x.new_zeros(len(x), num_strides + len(region.grid.channel_shares))
        decision[:, j] = decision[:, num_strides + i] = 1.0
        runs[choice] = partial(region.forward, x, decision)  # not region(…): we are in a hook of it
    gate = region.gate
    look = {None: lambda: gate.logits(gate.standardised(gate.look(x)))}
    times = in_turns({**look, **runs}, rounds=rounds, wait=partial(wait_for, x.device))
    full_ms, gate_ms = times[FULL], times[None]
    found = []
    for choice in runs:
        own = [ms + (choice != FULL) * gate for ms, gate in zip(times[choice], gate_ms, strict=True)]
        found.append(
            ChoiceTime(
                region=path,
                frame_stride=choice.frame_stride,
                channel_share=choice.channel_share,
                ms=median(own),
                speed_up=median(dense / mine for dense, mine in zip(full_ms, own, strict=True)),
            )
        )
    return found


def _file(folder: str | Path | None, network: fx.GraphModule, args: tuple[Any, ...]) -> Path:
    """Where times of this network, for such clips, on this machine are stored."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    first = next(network.parameters())
    about = {
        "release": vared2_fx.__version__,
        "network": fingerprint(network),
        "config": asdict(conversion(network).config),
        "choices": {path: [tuple(choice) for choice in r.grid.all()] for path, r in regions(network).items()},
        "inputs": [(tuple(x.shape), str(x.dtype), x.stride()[1] == 1) for x in tree_leaves(args)],
        "machine": [device_name(first.device), first.device.type, torch.get_num_threads(), torch.__version__],
        "weights": [str(first.dtype), layout(network)],
    }
    return (Path(cache) / "vared2_fx" if folder is None else Path(folder)) / f"times-{digest(about)[:24]}.json"


def _read(file: Path, found: Mapping[str, DynamicRegion]) -> Autotuned | None:
    """What was stored; None where nothing was, or nothing that fits: it is measured again then."""
    try:
        tuned: Autotuned = as_type(Autotuned, json.loads(file.read_text(encoding="utf-8")), "autotune")
    except (OSError, ValueError, ConvertError):
        return None
    fits = all(time.region in found and time.choice in found[time.region].grid.all() for time in tuned.times)
    return tuned if fits else None


def _write(file: Path, tuned: Autotuned) -> None:
    """Store it; where that is not possible, say so and go on."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(asdict(tuned), indent=1) + "\n", encoding="utf-8")
        new.replace(file)
    except OSError as exc:
        log.warning("autotune: times are not stored: %s", exc)
