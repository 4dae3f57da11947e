"""A router and its routes as one network in torch: one decision per clip."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from vared2_fx.batches import read_labelled
from vared2_fx.errors import ConvertError, DataError
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.routes.curve import Kind, Point, at
from vared2_fx.routes.found import Routes
from vared2_fx.routes.router import Router
from vared2_fx.runtime import Floats, Places, route_batch, shares_of, taken
from vared2_fx.tables import percent, si, text_table


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedAnswer:
    """What a batch of N clips got."""

    output: Tensor
    """Class scores, (N, classes), float32 in whatever precision the network computes."""
    routes: Tensor
    """int64 (N,): the route that each clip took, 0 the cheapest."""
    again: Tensor
    """bool (N,): clips for which the full network ran too, as the route's answer was not confident."""
    shares: Tensor
    """float (N,): multiply-adds of each clip, of the original's, router included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedEvaluation:
    """A routed network on labelled clips."""

    accuracy: float
    """Top-1."""
    share: float
    """Mean multiply-adds, of the original's, router included."""
    clips: int
    """How many there were."""

    def __str__(self) -> str:
        return f"top-1 {percent(self.accuracy)} of {self.clips} clips at {percent(self.share)} of the multiply-adds"


@dataclass(frozen=True, kw_only=True, eq=False)
class Routed:
    """Router and routes; made by `train_router`. Call it like the network; `print` it to see the curve."""

    routes: Routes
    """What the routes are."""
    networks: tuple[fx.GraphModule, ...]
    """Static network of each route, cheapest first, weights shared with the dynamic one."""
    router: Router
    """Chooses."""
    kind: Kind
    """Which way to choose came out best on the validation clips."""
    curves: Mapping[Kind, tuple[Point, ...]]
    """Operating points of each way, measured on the validation clips; that of `kind` is used."""
    labelled: bool
    """Whether `Point.quality` is top-1; else it is agreement with the full network."""

    @property
    def curve(self) -> tuple[Point, ...]:
        """Operating points, cheapest first, each better than all before it."""
        return self.curves[self.kind]

    def point(self, budget: float | None = None) -> Point:
        """The best operating point that costs at most `budget`.

        Args:
            budget: mean multiply-adds per clip, as a share of the original's; None: what the gated network took.
                Below the cheapest point that is taken.

        Raises:
            ConvertError: `budget` is no positive number.
        """
        return at(self.curve, self.default_budget if budget is None else check_budget(budget))

    @property
    def default_budget(self) -> float:
        """What the gated network took, as a share of the original's multiply-adds."""
        return self.routes.gated.macs / self.routes.dense_macs

    def __call__(self, clips: Tensor, *, budget: float | None = None) -> Tensor:
        """Clips (N, C, T, H, W) → class scores (N, classes); see `answer`."""
        return self.answer(clips, budget=budget).output

    def answer(self, clips: Tensor, *, budget: float | None = None) -> RoutedAnswer:
        """Let each clip take its route, the clips of one route together; evaluation mode, no gradients.

        Args:
            clips: (N, C, T, H, W), N ≥ 1, of the size that the routes were found for, in any precision and on any
                device: copies go to where router and routes are. Scores come back to the clips' device.
            budget: as for `point`.

        Raises:
            ConvertError: `budget` is no positive number.
            DataError: clips of another size.
        """
        if not len(clips) or tuple(clips.shape[1:]) != self.routes.clip_shape:
            wanted = ", ".join(map(str, self.routes.clip_shape))
            raise DataError(f"Clips of {tuple(clips.shape)}; these routes take (N, {wanted}), N ≥ 1.")
        pack, own = packer(self.networks[-1]), clips.to(next(self.networks[-1].parameters()))

        def run(route: int, places: Places) -> Floats:
            with evaluating(self.networks[route]):
                return _numbers(self.networks[route](*pack(clips_at(own, places))))

        answer = answer_of(
            len(clips),
            self.point(budget),
            self.routes.shares,
            self.router_share,
            score=lambda: self._logits(clips),
            run=run,
        )
        return replace(answer, output=answer.output.to(clips.device))

    def choose(self, clips: Tensor, *, budget: float | None = None) -> Tensor:
        """The route that each clip (N, C, T, H, W) takes first: int64 (N,), on the clips' device.

        Raises:
            ConvertError: `budget` is no positive number.
        """
        point = self.point(budget)
        if point.first is not None:
            return torch.full((len(clips),), point.first, device=clips.device)
        keeps = torch.from_numpy(self._logits(clips)).double().sigmoid().numpy()
        return torch.from_numpy(taken(keeps, self.routes.shares, point.price)).to(clips.device)

    def _logits(self, clips: Tensor) -> Floats:
        with evaluating(self.router):
            return _numbers(self.router(clips.to(next(self.router.parameters()))))

    @property
    def router_share(self) -> float:
        """Multiply-adds of the router, of the original's."""
        return self.router.macs / self.routes.dense_macs

    def evaluate(self, loader: Iterable[Any], *, budget: float | None = None) -> RoutedEvaluation:
        """Run it over labelled clips.

        Raises:
            DataError: no clips, or a batch without labels.
        """
        right, shares = list[Tensor](), list[Tensor]()
        for raw in loader:
            batch, labels = read_labelled(raw)
            if len(labels):
                got = self.answer(batch.video, budget=budget)
                right.append(got.output.argmax(1) == labels)
                shares.append(got.shares)
        if not right:
            raise DataError("evaluate: the loader gave no clips.")
        hits = torch.cat(right).double()
        return RoutedEvaluation(accuracy=float(hits.mean()), share=float(torch.cat(shares).mean()), clips=len(hits))

    def __str__(self) -> str:
        rows = [
            (percent(p.share), percent(p.quality), " ".join(f"{100 * part:.0f}" for part in p.mix)) for p in self.curve
        ]
        others = ", ".join(
            f"{kind} {percent(at(curve, self.default_budget).quality)}" for kind, curve in self.curves.items()
        )
        return "\n".join(
            [
                f"{len(self.networks)} routes, chosen by {self.kind}; the router takes {si(self.router.macs)}MACs, "
                f"{percent(self.router_share)} of the original",
                text_table((">MACs", quality_name(self.labelled), ">runs of each route, %"), rows),
                f"at the gates' {percent(self.default_budget)} of the MACs: {others}",
            ]
        )


def quality_name(labelled: bool) -> str:
    """What the column of `Point.quality` is called in a table."""
    return ">top-1" if labelled else ">agrees with the full network"


def _numbers(scores: Tensor) -> Floats:
    """As numpy, which has no bfloat16, takes them."""
    return np.asarray(scores.float().cpu())


def clips_at(clips: Tensor, places: Places) -> Tensor:
    """The clips at `places`, ascending; `clips` themselves where these are all."""
    return clips if len(places) == len(clips) else clips[torch.from_numpy(places).to(clips.device)]


def answer_of(
    count: int,
    point: Point,
    shares: tuple[float, ...],
    router_share: float,
    score: Callable[[], Floats],
    run: Callable[[int, Places], Floats],
) -> RoutedAnswer:
    """Let `count` clips take their routes at an operating point, and count what each costs; see `route_batch`."""
    output, routes, again = route_batch(
        count,
        first=point.first,
        price=point.price,
        confidence=point.confidence,
        shares=shares,
        score=score,
        run=run,
    )
    cost = shares_of(routes, again, shares=shares, router_share=router_share if point.first is None else 0.0)
    return RoutedAnswer(
        output=torch.from_numpy(output),
        routes=torch.from_numpy(routes),
        again=torch.from_numpy(again),
        shares=torch.from_numpy(cost),
    )


def check_budget(budget: float) -> float:
    """`budget`, if it is a positive number.

    Raises:
        ConvertError: it is not.
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < float("inf"):
        raise ConvertError(f"budget={budget!r}; a share of the original's multiply-adds, such as 0.6.")
    return float(budget)
