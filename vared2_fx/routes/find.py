"""`find_routes`: the few joint choices that stand for what the gates decide.

N clips, P joint choices, L regions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from vared2_fx.batches import batches_of, read_batch
from vared2_fx.errors import ConvertError, DataError
from vared2_fx.layers import ChoiceGrid
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.passes.leaves import called_path
from vared2_fx.passes.rewrite import regions, with_decisions
from vared2_fx.policy.fix import converted, policy
from vared2_fx.policy.statistics import clip_macs, computed_choices, dense_macs
from vared2_fx.routes.found import Assignment, Route, Routes
from vared2_fx.routes.medoids import Floats, medoids
from vared2_fx.train.evaluate import check_scores

MAX_POINTS = 400
"""Joint choices that are clustered, the most frequent ones; distances between more would take long."""
POOL = 3
"""Joint choices that are tried on the clips, for each route that is wanted."""

Joint = tuple[int, ...]
"""Of every region the index of its choice in `grid.all()`."""


def find_routes(dynamic: fx.GraphModule, loader: Iterable[Any], num_routes: int = 4) -> Routes:
    """Find the few joint choices that stand for all that the gates take [ours].

    The joint choices that the gates take for the clips are clustered around medoids, so that each route is a choice
    that some clip got; the distance of two is what differs between them, in multiply-adds. Three times as many as are
    wanted are tried on the clips. Of these, those are left out that cost more and agree less with the gated network
    than another (all but the Pareto front); among the rest medoids are taken again. The cheapest joint choice that was
    taken is always among them, and so is the full one, whether taken or not.

    Args:
        dynamic: a converted network with trained gates, each of which takes one choice per clip; not changed.
        loader: clips of one size: a loader's batches, with or without labels, or a tensor (N, C, T, H, W). It is gone
            through as often as three times `num_routes`, and must give the same clips each time.
        num_routes: routes to find, 2 or more; fewer come back where the gates take fewer, or others are no better.

    Returns:
        The routes, cheapest first, and what is lost; `print` it.

    Raises:
        ConvertError: not a converted network, or `num_routes` is below 2.
        DataError: no clips, clips of several sizes, or another number of clips in the second pass.
    """
    if type(num_routes) is not int or num_routes < 2:
        raise ConvertError(
            f"find_routes: num_routes={num_routes!r}; it takes at least 2, the cheapest and the full one."
        )
    network = converted("find_routes", dynamic)
    batches = batches_of(loader)
    with evaluating(network):
        seen = _look(network, batches)
        points, weights, macs = _points(seen)
        costs = _costs(seen, points)
        distances = np.abs(costs[:, None, :] - costs[None, :, :]).sum(2)
        fixed = (int(macs.argmin()), points.index(seen.full))
        pool = medoids(distances, weights, count=POOL * num_routes, fixed=fixed)
        answers = {place: _answers(network, batches, seen, points[place]) for place in pool}
    agreement = {place: float((answer == seen.answers).float().mean()) for place, answer in answers.items()}
    front = [p for p in pool if p in fixed or _undominated(p, pool, macs, agreement)]
    inner = distances[np.ix_(front, front)]
    near: Floats = np.asarray(np.bincount(distances[:, front].argmin(1), weights, len(front)), dtype=np.float64)
    places = [front[i] for i in medoids(inner, near, count=num_routes, fixed=tuple(front.index(p) for p in set(fixed)))]
    places.sort(key=lambda place: macs[place])
    return _found(
        network, seen, [points[p] for p in places], [int(macs[p]) for p in places], [answers[p] for p in places]
    )


def measure_routes(dynamic: fx.GraphModule, routes: Routes, loader: Iterable[Any]) -> Routes:
    """The same routes with what they and the gates do now, after the weights of `dynamic` were trained.

    Raises:
        ConvertError: `routes` are of another network.
        DataError: as for `find_routes`.
    """
    network, batches = converted("measure_routes", dynamic), batches_of(loader)
    with evaluating(network):
        seen = _look(network, batches)
        if any(set(route.choices) != set(seen.grids) for route in routes.routes):
            raise ConvertError("measure_routes: the routes name other regions than this network has.")
        joints: list[Joint] = [
            tuple(grid.all().index(route.choices[path]) for path, grid in seen.grids.items()) for route in routes.routes
        ]
        answers = [_answers(network, batches, seen, joint) for joint in joints]
    return _found(network, seen, joints, [route.macs for route in routes.routes], answers)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What the gates decided for all clips."""

    grids: dict[str, ChoiceGrid]
    tables: list[Tensor]  # of each region int64 (choices,): multiply-adds
    joint: list[Joint]  # of each clip
    answers: Tensor  # int64 (N,)
    labels: Tensor | None  # int64 (N,)
    gated_macs: float
    dense: int
    clip_shape: tuple[int, ...]

    @property
    def full(self) -> Joint:
        return (0,) * len(self.grids)

    def macs(self, joint: Joint) -> int:
        saved = sum(int(table[0] - table[index]) for table, index in zip(self.tables, joint, strict=True))
        return self.dense - saved


def _look(network: fx.GraphModule, batches: Iterable[Any]) -> _Seen:
    grids = {path: region.grid for path, region in regions(network).items()}
    pack, like, observed = packer(network), next(network.parameters()), with_decisions(network).eval()
    tables: dict[str, Tensor] = {}
    joint: list[Joint] = []
    answers, labels, macs, shape, dense = list[Tensor](), list[Tensor | None](), list[Tensor](), None, 0
    for raw in batches:
        batch = read_batch(raw).to(like)
        if not len(batch.video):
            continue
        if shape is None:
            shape = tuple(batch.video.shape[1:])
            dense = dense_macs(network, pack(batch.video[:1]))
        check_shape("find_routes", shape, batch.video)
        output, decisions = observed(*pack(batch.video))
        check_scores(output.argmax(1) if batch.labels is None else batch.labels, output)
        by_path = {called_path(name): decision for name, decision in reversed(decisions.items())}
        for path, decision in by_path.items():
            tables[path] = decision.macs.flatten().cpu()
        places = torch.zeros(len(output), len(grids), dtype=torch.int64)
        for column, path in enumerate(grids):
            if path in by_path:
                j, i = computed_choices(by_path[path]).cpu().unbind(1)
                places[:, column] = j * len(grids[path].channel_shares) + i
        joint.extend(map(tuple, places.tolist()))
        answers.append(output.argmax(1).cpu())
        labels.append(None if batch.labels is None else batch.labels.cpu())
        macs.append(clip_macs(decisions, dense).cpu())
    if shape is None:
        raise DataError("find_routes: the loader gave no clips.")
    known = [y for y in labels if y is not None]
    return _Seen(
        grids=grids,
        tables=[tables.get(path, torch.zeros(len(grid.all()), dtype=torch.int64)) for path, grid in grids.items()],
        joint=joint,
        answers=torch.cat(answers),
        labels=torch.cat(known) if len(known) == len(labels) else None,
        gated_macs=float(torch.cat(macs).double().mean()),
        dense=dense,
        clip_shape=shape,
    )


def check_shape(where: str, shape: tuple[int, ...], video: Tensor) -> None:
    """Refuse clips (N, C, T, H, W) of another size than `shape`, (C, T, H, W).

    Raises:
        DataError: saying which.
    """
    if tuple(video.shape[1:]) != shape:
        raise DataError(
            f"{where}: clips of {tuple(video.shape[1:])} after clips of {shape}; a route is a static network, for one "
            "size. Crop all clips alike."
        )


def _points(seen: _Seen) -> tuple[list[Joint], Floats, Floats]:
    """Different joint choices, how many clips took each, and their multiply-adds; the full one is among them.

    Those that cost as much as the full one are left out: of a small layer rebuilding may cost more than is saved.
    """
    points, counts = np.unique(np.array(seen.joint), axis=0, return_counts=True)
    by_count = sorted(zip(map(tuple, points.tolist()), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    saving = [pair for pair in by_count if seen.macs(pair[0]) < seen.macs(seen.full)]
    kept = dict([*saving[:MAX_POINTS], *sorted(saving, key=lambda pair: seen.macs(pair[0]))[:1]])
    kept[seen.full] = dict(by_count).get(seen.full, 0)
    macs = np.array([seen.macs(point) for point in kept], dtype=np.float64)
    return list(kept), np.array(list(kept.values()), dtype=np.float64), macs


def _costs(seen: _Seen, points: list[Joint]) -> Floats:
    """(P, L): multiply-adds of each region."""
    tables = [table.double().numpy() for table in seen.tables]
    return np.array([[table[i] for table, i in zip(tables, point, strict=True)] for point in points])


def _answers(network: fx.GraphModule, batches: Iterable[Any], seen: _Seen, joint: Joint) -> Tensor:
    """What the network answers to all clips with one joint choice: int64 (N,)."""
    pack, like = packer(network), next(network.parameters())
    choices = {path: grid.all()[i] for (path, grid), i in zip(seen.grids.items(), joint, strict=True)}
    with policy(network, choices):
        videos = (read_batch(raw).to(like).video for raw in batches)
        found = [network(*pack(video)).argmax(1).cpu() for video in videos if len(video)]
    answers = torch.cat(found) if found else torch.empty(0)
    if len(answers) != len(seen.answers):
        raise DataError(
            f"find_routes: the loader gave {len(seen.answers)} clips, then {len(answers)}; it has to give the same "
            "ones each time."
        )
    return answers


def _undominated(place: int, pool: list[int], macs: Floats, agreement: dict[int, float]) -> bool:
    return not any(
        macs[other] <= macs[place]
        and agreement[other] >= agreement[place]
        and (macs[other] < macs[place] or agreement[other] > agreement[place])
        for other in pool
    )


def _found(network: fx.GraphModule, seen: _Seen, joints: list[Joint], macs: list[int], answers: list[Tensor]) -> Routes:
    costs = _costs(seen, joints)
    own = _costs(seen, seen.joint)
    nearest = np.abs(own[:, None, :] - costs[None, :, :]).sum(2).argmin(1)
    taken = torch.stack(answers, 1).gather(1, torch.from_numpy(nearest)[:, None])[:, 0]
    return Routes(
        routes=tuple(
            Route(
                choices={path: grid.all()[i] for (path, grid), i in zip(seen.grids.items(), joint, strict=True)},
                macs=cost,
                agreement=_same(answer, seen.answers),
                accuracy=None if seen.labels is None else _same(answer, seen.labels),
                clips=int((nearest == place).sum()),
            )
            for place, (joint, cost, answer) in enumerate(zip(joints, macs, answers, strict=True))
        ),
        dense_macs=seen.dense,
        gated=_assigned(seen, seen.answers, seen.gated_macs),
        nearest=_assigned(seen, taken, float(np.mean(np.array(macs)[nearest]))),
        clip_shape=seen.clip_shape,
        num_clips=len(seen.joint),
        num_joint=len(set(seen.joint)),
    )


def _assigned(seen: _Seen, answers: Tensor, macs: float) -> Assignment:
    accuracy = None if seen.labels is None else _same(answers, seen.labels)
    return Assignment(macs=macs, agreement=_same(answers, seen.answers), accuracy=accuracy)


def _same(answers: Tensor, wanted: Tensor) -> float:
    return float((answers == wanted).double().mean())
