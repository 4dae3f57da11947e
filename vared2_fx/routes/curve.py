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
"""`router`: its scores choose. `cascade`: one route for all, and the full one too where that is not confident. `both`:
the router's route, and the full one too where that is not confident. To each belong the single routes, with nothing
that chooses."""
_PRICES = (0.0, *np.geomspace(0.02, 20, 32).tolist())
_CONFIDENCES = (0.0, *np.linspace(0.3, 0.99, 24).tolist(), 1.01)
_Knobs = tuple[int | None, float, float]  # of a point: first, price, confidence
_CLEARLY = 0.002
"""A way that is not simpler has to be so much better, in mean accuracy along the curve, to be taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One operating point."""

    first: int | None
    """The route that every clip takes first, and no router runs; None: the router chooses."""
    price: float
    """What a whole network's multiply-adds cost the router, in units of the probability that the answer is kept: the
    route with the highest probability minus price times share is taken."""
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
    alone: list[_Knobs] = [(route, 0.0, 0.0) for route in range(len(shares))]
    tried: dict[Kind, list[_Knobs]] = {
        "router": [(None, price, 0.0) for price in _PRICES],
        "cascade": [(route, 0.0, confidence) for route, *_ in alone[:-1] for confidence in _CONFIDENCES],
        "both": [(None, price, confidence) for price in _PRICES[::2] for confidence in _CONFIDENCES[::2]],
    }
    if len(shares) == 1:
        tried = {"cascade": []}
    return {
        kind: front([_point(keeps, right, confidences, shares, router_share, *knobs) for knobs in alone + ways])
        for kind, ways in tried.items()
    }


def _point(
    keeps: Floats,
    right: Floats,
    confidences: Floats,
    shares: Sequence[float],
    router_share: float,
    first: int | None,
    price: float,
    confidence: float,
) -> Point:
    clips, last = np.arange(len(right)), len(shares) - 1
    routes = taken(keeps, shares, price) if first is None else np.full(len(right), first)
    again = (routes < last) & (confidences[clips, routes] < confidence)
    answered = np.where(again, last, routes)
    runs = np.bincount(routes, minlength=len(shares)) + again.sum() * (np.arange(len(shares)) == last)
    mix = runs / len(right)
    return Point(
        first=first,
        price=price,
        confidence=confidence,
        share=float(mix @ np.asarray(shares)) + (router_share if first is None else 0.0),
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
