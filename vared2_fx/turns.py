"""Timing several things in turns, so that what disturbs the machine disturbs all alike."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

K = TypeVar("K")


def in_turns(
    runs: Mapping[K, Callable[[], Any]], *, rounds: int, warmup: int = 1, wait: Callable[[], None] = lambda: None
) -> dict[K, list[float]]:
    """Milliseconds of each run: in each round all of them, in an order drawn for that round.

    What ran just before leaves its marks on caches, memory and the clock of the processor; in an order that never
    changes, each would always meet the marks of the same one.

    Args:
        runs: what to time.
        rounds: how often each.
        warmup: rounds before that do not count.
        wait: returns when the device has done what it was given.
    """
    for _ in range(warmup):
        for run in runs.values():
            run()
    times: dict[K, list[float]] = {name: [] for name in runs}
    draw = random.Random(0)
    for _ in range(rounds):
        for name, run in draw.sample(list(runs.items()), len(runs)):
            wait()
            start = time.perf_counter()
            run()
            wait()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def wait_for(device: torch.device) -> None:
    """Return when `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
