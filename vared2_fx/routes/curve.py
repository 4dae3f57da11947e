"""Operating points: how the route of a clip is chosen, and what each way costs and gets on validation clips [ours].

N clips, K routes, cheapest first; the last computes everything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vared2_fx.runtime import best_within, taken

Floats = NDArray[np.float64]
Kind = Literal["router", "cascade", "both"]
KINDS: tuple[Kind, ...] = ("router", "cascade", "both")
"""`router`: its scores choose. `cascade`: the cheapest route, and the full one too where the cheapest is not confident.
`both`: the router's route, and the full one too where that is not confident."""
_PRICES = (0.0, *np.geomspace(0.02, 20, 32).tolist())
_CONFIDENCES = (0.0, *np.linspace(0.3, 0.99, 24).tolist(), 1.01)
_CLEARLY = 0.002
"""A way that is not simpler has to be so much better, in mean accuracy along the curve, to be taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One operating point."""

    price: float
    """What a whole network's multiply-adds cost, in units of the probability that the answer is kept: the route with
    the highest probability minus price times share is taken. Infinite: always the cheapest, and no router runs."""
    confidence: float
    """The full network runs too where the largest softmax value of a cheaper route is below this; 0: never."""
    share: float
    """Mean multiply-adds per clip, of the original's, router included."""
    quality: float
    """Share of the validation clips that got the wanted answer: the label, or the full network's."""
    mix: tuple[float, ...]
    """How many runs of each route there are per clip; more than one in all where the full network runs too."""


def measure(
    keeps: Floats, right: Floats, confidences: Floats, shares: Sequence[float], router_share: float
) -> dict[Kind, tuple[Point, ...]]:
    """The curve of each way to choose: cheapest first, each point better than all that are cheaper.

    Args:
        keeps: (N, K − 1), what the router says.
        right: (N, K), 1 where a route gives the wanted answer.
        confidences: (N, K), largest softmax value of each route.
        shares: (K,) multiply-adds of each route, of the original's.
        router_share: those of the router.
    """
    tried: dict[Kind, list[tuple[float, float]]] = {
        "router": [(price, 0.0) for price in _PRICES],
        "cascade": [(float("inf"), confidence) for confidence in _CONFIDENCES],
        "both": [(price, confidence) for price in _PRICES[::2] for confidence in _CONFIDENCES[::2]],
    }
    if len(shares) == 1:
        tried = {"cascade": [(float("inf"), 0.0)]}
    return {
        kind: front([_point(keeps, right, confidences, shares, router_share, *knobs) for knobs in ways])
        for kind, ways in tried.items()
    }


def _point(
    keeps: Floats,
    right: Floats,
    confidences: Floats,
    shares: Sequence[float],
    router_share: float,
    price: float,
    confidence: float,
) -> Point:
    clips, last = np.arange(len(right)), len(shares) - 1
    first = taken(keeps, shares, price)
    again = (first < last) & (confidences[clips, first] < confidence)
    answered = np.where(again, last, first)
    runs = np.bincount(first, minlength=len(shares)) + again.sum() * (np.arange(len(shares)) == last)
    mix = runs / len(right)
    return Point(
        price=price,
        confidence=confidence,
        share=float(mix @ np.asarray(shares)) + (router_share if np.isfinite(price) else 0.0),
        quality=float(right[clips, answered].mean()),
        mix=tuple(mix.tolist()),
    )


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Those that no other beats in cost and quality, cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.share, -p.quality)):
        if not kept or point.quality > kept[-1].quality:
            kept.append(point)
    return tuple(kept)


def winner(curves: dict[Kind, tuple[Point, ...]]) -> Kind:
    """The way whose quality is best in the mean over all budgets from the cheapest point to the full network."""
    low = min(curve[0].share for curve in curves.values())
    quality = {kind: mean_quality(curve, low) for kind, curve in curves.items()}
    best = next(iter(curves))
    for kind in curves:
        if quality[kind] > quality[best] + _CLEARLY:
            best = kind
    return best


def mean_quality(curve: Sequence[Point], low: float) -> float:
    """Of the points that budgets from `low`, a share of the original's multiply-adds, to all of them get."""
    return float(np.mean([at(curve, budget).quality for budget in np.linspace(low, 1.0, 50)]))


def at(curve: Sequence[Point], budget: float) -> Point:
    """The best point that costs at most `budget`, a share of the original's; the cheapest where none does."""
    return curve[best_within([p.share for p in curve], [p.quality for p in curve], budget)]
