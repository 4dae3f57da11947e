"""How clips take routes, in numpy: needs nothing else of this package, and no torch.

N clips, K routes, cheapest first; the last computes everything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Places = NDArray[np.int64]


def taken(keeps: Floats, shares: Sequence[float], price: float) -> Places:
    """The route of each clip: int64 (N,).

    Args:
        keeps: (N, K − 1), probability that a route keeps the answer; the full one keeps it for sure.
        shares: (K,) multiply-adds, of the original's.
        price: what the whole network's multiply-adds cost, in units of that probability; infinite: the cheapest route.
    """
    if not np.isfinite(price):
        return np.zeros(len(keeps), dtype=np.int64)
    sure = np.concatenate([keeps, np.ones((len(keeps), 1))], axis=1)
    return np.asarray((sure - price * np.asarray(shares)).argmax(1))


def route_batch(
    count: int,
    *,
    price: float,
    confidence: float,
    shares: Sequence[float],
    score: Callable[[], Floats],
    run: Callable[[int, Places], Floats],
) -> tuple[Floats, Places, NDArray[np.bool_]]:
    """Answer a batch of clips, each by its route, the clips of one route together.

    The clips themselves stay with the caller, on whatever device they are: only scores come here.

    Args:
        count: N ≥ 1.
        price: see `taken`.
        confidence: the full network runs too where the largest softmax value of a cheaper route is below this.
        shares: (K,) multiply-adds of the routes.
        score: gives the router's logits of all clips, (N, K − 1).
        run: from a route's number and the places of n clips, int64 (n,), to their class scores (n, classes).

    Returns:
        Class scores (N, classes), the route of each clip, and whether the full network ran after it.
    """
    if np.isfinite(price) and len(shares) > 1:
        first = taken(1 / (1 + np.exp(-np.asarray(score(), dtype=np.float64))), shares, price)
    else:
        first = np.zeros(count, dtype=np.int64)
    last, outputs = len(shares) - 1, None
    again = np.zeros(count, dtype=bool)
    for route in np.unique(first):
        places = np.flatnonzero(first == route)
        got = run(int(route), places)
        outputs = np.empty((count, *got.shape[1:]), got.dtype) if outputs is None else outputs
        outputs[places] = got
        if route < last and confidence > 0:
            again[places] = largest_softmax(got) < confidence
    if again.any():
        outputs[again] = run(last, np.flatnonzero(again))  # type: ignore[index]
    assert outputs is not None
    return outputs, first, again


def largest_softmax(scores: Floats) -> Floats:
    """Class scores (N, classes) → the largest probability of each row, (N,)."""
    return np.asarray(1 / np.exp(scores - scores.max(1, keepdims=True), dtype=np.float64).sum(1))


def chunks(count: int, sizes: Sequence[int]) -> list[slice]:
    """Cut `count` clips into parts of the given sizes, the largest first; one part where there are no sizes."""
    if not sizes:
        return [slice(0, count)] if count else []
    parts, start = [], 0
    while start < count:
        size = max(size for size in sizes if size <= count - start)
        parts.append(slice(start, start + size))
        start += size
    return parts
