"""Few of many joint choices such that each of the many is near one of the few."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def medoids(distances: Floats, weights: Floats, *, count: int, fixed: tuple[int, ...] = ()) -> list[int]:
    """Choose points such that the weighted distance of all to their nearest chosen one is small.

    Greedy first, then swaps as long as one helps (PAM). For a few hundred points; no library that this package needs
    has it.

    Args:
        distances: (P, P), symmetric.
        weights: (P,), how much each point counts.
        count: points to choose, those that are fixed included; all of them where there are fewer.
        fixed: points that are chosen in any case.

    Returns:
        Indices, ascending.
    """
    chosen = list(dict.fromkeys(fixed))
    nearest = distances[:, chosen].min(1) if chosen else np.full(len(distances), np.inf)
    while len(chosen) < min(count, len(distances)):
        costs = weights @ np.minimum(nearest[:, None], distances)
        costs[chosen] = np.inf
        chosen.append(int(costs.argmin()))
        nearest = np.minimum(nearest, distances[:, chosen[-1]])
    while (swapped := _best_swap(distances, weights, chosen, len(set(fixed)))) is not None:
        chosen = swapped
    return sorted(chosen)


def _best_swap(distances: Floats, weights: Floats, chosen: list[int], num_fixed: int) -> list[int] | None:
    """The best exchange of one point that is not fixed, or None if none makes things better."""
    best, result = float(weights @ distances[:, chosen].min(1)) * (1 - 1e-9), None
    for place in range(num_fixed, len(chosen)):
        others = chosen[:place] + chosen[place + 1 :]  # the fixed ones stay in front
        nearest = distances[:, others].min(1) if others else np.full(len(distances), np.inf)
        costs = weights @ np.minimum(nearest[:, None], distances)
        costs[others] = np.inf
        if costs.min() < best:
            best, result = float(costs.min()), [*others, int(costs.argmin())]
    return result
