"""`deploy_routed`: router and routes in an engine, batches bucketed by route."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vared2_fx.config import EngineName
from vared2_fx.deploy.deployed import Deployed
from vared2_fx.deploy.make import deploy
from vared2_fx.errors import DeployError
from vared2_fx.packing import Pack, packer
from vared2_fx.passes.deploy.pipeline import Precision
from vared2_fx.routes.curve import Point, at
from vared2_fx.routes.routed import Routed, RoutedAnswer, answer_of, check_budget, clips_at, quality_name
from vared2_fx.runtime import Floats, Places, best_point, chunks, expected_ms
from vared2_fx.tables import percent, text_table
from vared2_fx.turns import in_turns

SIZES = (1, 2, 4, 8)
"""Bucket sizes that are compiled ahead, for engines that compile each shape; a bucket is cut into such."""
PER_SHAPE: tuple[EngineName, ...] = ("compile", "openvino")
"""Engines that compile for each input shape."""
_ROUNDS = 5


def deploy_routed(
    routed: Routed,
    engine: EngineName = "torch",
    *,
    precision: Precision = "fp32",
    threads: int | None = None,
    sizes: Sequence[int] | None = None,
) -> "DeployedRoutes":
    """Make router and routes run in an engine, on the processor; each is compared with its network as by `deploy`.

    Args:
        routed: from `train_router`; not changed. What is deployed is a copy of its weights.
        engine: as for `deploy`.
        precision: of the routes, as for `deploy`; the router stays in fp32.
        threads: of one call, as for `deploy`.
        sizes: bucket sizes to compile ahead, 1 among them; by default 1, 2, 4, 8 for `compile` and `openvino`, which
            compile each shape, and any size for the others.

    Returns:
        Router and routes, with the time of each, measured in turns with one clip.

    Raises:
        DeployError: as for `deploy`; or `sizes` that cannot be.
    """
    wanted = _sizes(engine, sizes)
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(1, *routed.routes.clip_shape, generator=generator)
    pack = packer(routed.networks[-1])
    kwargs: dict[str, Any] = {"engine": engine, "threads": threads}
    routes = tuple(
        deploy(network, precision=precision, example_inputs=pack(clip), **kwargs) for network in routed.networks
    )
    router = deploy(routed.router, example_inputs=(clip,), **kwargs) if len(routes) > 1 else None
    made = [*routes, *([router] if router else [])]
    if any(axis.max == 1 for d in made for spec in d.signature.inputs for axis in spec.axes[:1]):
        wanted = (1,)
    for size in wanted:
        some = clip.expand(size, *clip.shape[1:]).contiguous()
        for d in made:
            d(*((some,) if d is router else pack(some)))
    runs: dict[int, Callable[[], Any]] = {k: partial(d, *pack(clip)) for k, d in enumerate(routes)}
    if router is not None:
        runs[-1] = partial(router, clip)
    times = {k: median(ms) for k, ms in in_turns(runs, rounds=_ROUNDS).items()}
    return DeployedRoutes(
        router=router,
        routes=routes,
        curve=routed.curve,
        labelled=routed.labelled,
        shares=routed.routes.shares,
        router_share=routed.router_share,
        default_budget=routed.default_budget,
        clip_shape=routed.routes.clip_shape,
        sizes=wanted,
        route_ms=tuple(times[k] for k in range(len(routes))),
        router_ms=times.get(-1, 0.0),
        pack=pack,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class DeployedRoutes:
    """Router and routes in an engine: call it with clips, from as many threads as one likes."""

    router: Deployed | None
    """Chooses; None where there is one route."""
    routes: tuple[Deployed, ...]
    """Cheapest first."""
    curve: tuple[Point, ...]
    """Operating points, cheapest first."""
    labelled: bool
    """Whether `Point.quality` is top-1; else it is agreement with the full network."""
    shares: tuple[float, ...]
    """Multiply-adds of each route, of the original's."""
    router_share: float
    """Multiply-adds of the router, of the original's."""
    default_budget: float
    """What the gated network took, as a share of the original's multiply-adds."""
    clip_shape: tuple[int, ...]
    """(C, T, H, W)."""
    sizes: tuple[int, ...]
    """Sizes into which buckets are cut; empty: any."""
    route_ms: tuple[float, ...]
    """Time of each route for one clip, in milliseconds, on the machine that deployed it."""
    router_ms: float
    """Time of the router for one clip, in milliseconds."""
    pack: Pack
    """From clips to what the network is called with."""

    def expected_ms(self, point: Point) -> float:
        """Mean time of a clip at an operating point, in milliseconds, from the times of router and routes."""
        return expected_ms(point.first, point.mix, self.route_ms, self.router_ms)

    def longest_ms(self, point: Point) -> float:
        """The longest time that a clip can take at an operating point, in milliseconds, from the same times.

        Routes that no validation clip took count too, if some scores of the router lead there.
        """
        if point.first is not None:
            return self._ms_through(point.first, point)
        most = self.shares[0] + 1 / point.price if point.price else np.inf  # more than the surest answer can pay for
        within = (k for k, share in enumerate(self.shares) if share <= most)
        return self.router_ms + max(self._ms_through(k, point) for k in within)

    def _ms_through(self, route: int, point: Point) -> float:
        """Time of a clip that takes `route` first, and then the full one if it can."""
        again = self.route_ms[-1] if point.confidence > 0 and route < len(self.routes) - 1 else 0.0
        return self.route_ms[route] + again

    def ms_of(self, answer: RoutedAnswer, point: Point) -> float:
        """How long the clips of an answer take one after the other, in milliseconds, from the same times."""
        router = self.router_ms if point.first is None else 0.0
        routes: float = sum(self.route_ms[route] for route in answer.routes.tolist())
        return routes + int(answer.again.sum()) * self.route_ms[-1] + len(answer.routes) * router

    def point(self, *, budget: float | None = None, target_ms: float | None = None) -> Point:
        """The best operating point within both limits; below the cheapest, that one.

        Args:
            budget: mean multiply-adds per clip, of the original's. If both are None, what the gated network took.
            target_ms: mean time per clip, in milliseconds, by the times that were measured for single clips.

        Raises:
            ConvertError: `budget` is no positive number.
            DeployError: `target_ms` is none.
        """
        if target_ms is None:
            return at(self.curve, self.default_budget if budget is None else check_budget(budget))
        if isinstance(target_ms, bool) or not isinstance(target_ms, (int, float)) or not target_ms > 0:
            raise DeployError(f"target_ms={target_ms!r}; milliseconds per clip, above 0.")
        limit = float("inf") if budget is None else check_budget(budget)
        shares, qualities = [p.share for p in self.curve], [p.quality for p in self.curve]
        times = [*map(self.expected_ms, self.curve)]
        return self.curve[best_point(shares, qualities, times, budget=limit, target_ms=target_ms)]

    def __call__(self, clips: Tensor, *, budget: float | None = None, target_ms: float | None = None) -> Tensor:
        """Clips (N, C, T, H, W) → class scores (N, classes); see `answer`."""
        return self.answer(clips, self.point(budget=budget, target_ms=target_ms)).output

    def answer(self, clips: Tensor, point: Point | None = None) -> RoutedAnswer:
        """Let each clip take its route, the clips of one route together.

        Args:
            clips: (N, C, T, H, W), float32, N ≥ 1.
            point: an operating point, from `point`; by default that at the gated network's multiply-adds.

        Raises:
            DeployError: clips of another size or type.
        """
        if clips.dim() != 5 or not len(clips) or tuple(clips.shape[1:]) != self.clip_shape:
            wanted = ", ".join(map(str, self.clip_shape))
            raise DeployError(f"Clips of {tuple(clips.shape)}; these routes take (N, {wanted}).")
        if clips.dtype != torch.float32 or clips.device.type != "cpu":
            raise DeployError(f"Clips are {clips.dtype} on {clips.device}; they have to be float32 on the processor.")
        clips = clips.detach()

        def score() -> Floats:
            assert self.router is not None
            return np.concatenate([self.router(some).numpy() for some in self._cut(clips)])

        def run(route: int, places: Places) -> Floats:
            parts = self._cut(clips_at(clips, places))
            return np.concatenate([self.routes[route](*self.pack(some)).numpy() for some in parts])

        point = self.point() if point is None else point
        return answer_of(len(clips), point, self.shares, self.router_share, score, run)

    def _cut(self, clips: Tensor) -> Iterator[Tensor]:
        return (clips[part] for part in chunks(len(clips), self.sizes))

    def __str__(self) -> str:
        rows = [
            (str(k), percent(share), f"{ms:.2f} ms")
            for k, (share, ms) in enumerate(zip(self.shares, self.route_ms, strict=True))
        ]
        if self.router is not None:
            rows.append(("router", percent(self.router_share), f"{self.router_ms:.2f} ms"))
        table = text_table(("route", ">MACs", ">one clip"), rows)
        points = [(percent(p.share), percent(p.quality), f"{self.expected_ms(p):.2f} ms") for p in self.curve]
        sizes = f", buckets of {', '.join(map(str, self.sizes))}" if self.sizes else ""
        head = f"{self.routes[0].engine_name}, {self.routes[0].precision}{sizes}"
        return "\n".join([head, table, text_table((">budget", quality_name(self.labelled), ">mean time"), points)])


def _sizes(engine: EngineName, sizes: Sequence[int] | None) -> tuple[int, ...]:
    if sizes is None:
        return SIZES if engine in PER_SHAPE else ()
    if 1 not in sizes or any(type(size) is not int or size < 1 for size in sizes) or len(set(sizes)) > 8:
        raise DeployError(f"deploy_routed: sizes={tuple(sizes)}; up to 8 numbers of clips, 1 among them.")
    return tuple(sorted(set(sizes)))
