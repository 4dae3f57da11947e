"""`train_router`: one decision per clip, learned from what each route makes of the clips.

N clips, K routes, cheapest first; the last computes everything.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from vared2_fx.batches import batches_of, read_batch, set_epoch
from vared2_fx.errors import DataError, TrainError
from vared2_fx.modes import evaluating
from vared2_fx.packing import packer
from vared2_fx.routes.curve import measure, winner
from vared2_fx.routes.find import check_shape
from vared2_fx.routes.found import Routes
from vared2_fx.routes.routed import Routed
from vared2_fx.routes.router import Router, fit_router, make_router
from vared2_fx.train.evaluate import check_scores

ROUTER_SHARE = 0.01
"""The router costs no more than this share of the original's multiply-adds, if its narrowest form allows it."""


def train_router(
    dynamic: fx.GraphModule,
    routes: Routes,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    *,
    passes: int = 1,
    epochs: int = 60,
    seed: int = 0,
) -> Routed:
    """Train the router, compare it with a cascade and with both together, and keep what is best on validation clips.

    Every clip runs through every route. The router learns to tell, from low-resolution frames and what changes in
    them, which routes keep the clip's answer: its label, or, for clips without labels, what the full network says.
    Where the full one is wrong too, nothing is lost by a cheaper one. The weights of the routes are left alone.

    Three ways to choose are measured on `val_loader` along their whole curve: by the router; a cascade, in which the
    full network runs too where the cheapest route is not confident; and both. The one that is best in the mean over
    all budgets is used, the simpler one where two are alike.

    Take training clips on which the weights were not trained, if there are any: of those that they know by heart, any
    route is right.

    Args:
        dynamic: the converted network that the routes were found for; not changed, but shared: the routes' weights are
            its own.
        routes: from `find_routes`.
        train_loader: clips of the routes' size, with labels or without.
        val_loader: other clips, for the curve.
        passes: how often `train_loader` is gone through; more where it augments.
        epochs: passes over what was seen, when the router learns.
        seed: of the router's weights and its training.

    Returns:
        The routed network; `print` it. Its router is in float32, on the device of `dynamic`.

    Raises:
        ConvertError: `routes` are of another network.
        TrainError: a number out of range.
        DataError: a loader is empty, has clips of another size, or labels for some batches only.
    """
    for name, value in (("passes", passes), ("epochs", epochs)):
        if type(value) is not int or value < 1:
            raise TrainError(f"train_router: {name}={value!r}; at least 1.")
    networks = routes.networks(dynamic)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        num_scores = max(1, len(networks) - 1)  # of a single route nobody asks for one
        router = make_router(routes.clip_shape, num_scores, ROUTER_SHARE * routes.dense_macs)
    seen = _look(networks, router, routes, train_loader, passes)
    if len(networks) > 1:
        fit_router(router, seen.views, seen.keeps, epochs=epochs, seed=seed)
    router.eval()
    held = _look(networks, router, routes, val_loader, 1)
    with torch.no_grad():
        chances = torch.cat([router.scores(some.float()).sigmoid() for some in torch.split(held.views, 64)])
    router_share = router.macs / routes.dense_macs
    curves = measure(
        chances.double().numpy(),
        held.right.double().numpy(),
        held.confidences.double().numpy(),
        routes.shares,
        router_share,
    )
    return Routed(
        routes=routes,
        networks=networks,
        router=router.to(next(networks[-1].parameters()).device),
        kind=winner(curves),
        curves=curves,
        labelled=held.labelled,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What the routes made of all clips, and what the router sees of them."""

    views: Tensor  # float16 (N, 3C, T', h, w)
    right: Tensor  # bool (N, K)
    confidences: Tensor  # float (N, K)
    labelled: bool

    @property
    def keeps(self) -> Tensor:
        """Whether nothing is lost by a route: float (N, K − 1)."""
        return (self.right[:, :-1] | ~self.right[:, -1:]).float()


def _look(
    networks: tuple[fx.GraphModule, ...], router: Router, routes: Routes, loader: Iterable[Any], passes: int
) -> _Seen:
    pack, like = packer(networks[-1]), next(networks[-1].parameters())
    views, right, confidences, labelled = list[Tensor](), list[Tensor](), list[Tensor](), set[bool]()
    for number in range(passes):
        set_epoch(loader, number)
        for raw in batches_of(loader):
            given = read_batch(raw)
            batch = given.to(like)
            if not len(batch.video):
                continue
            check_shape("train_router", routes.clip_shape, batch.video)
            outputs = []
            for network in networks:
                with evaluating(network):
                    outputs.append(network(*pack(batch.video)))
            answers = torch.stack([output.argmax(1) for output in outputs], 1)
            wanted = answers[:, -1] if batch.labels is None else batch.labels
            check_scores(wanted, outputs[-1])
            labelled.add(batch.labels is not None)
            right.append((answers == wanted[:, None]).cpu())
            confidences.append(torch.stack([o.float().softmax(1).amax(1) for o in outputs], 1).cpu())
            with torch.no_grad():
                views.append(router.look(given.video.float().cpu()).half())
    if len(labelled) != 1:
        raise DataError(
            "train_router: some batches have labels and some have none; give one kind."
            if labelled
            else "train_router: the loader gave no clips."
        )
    return _Seen(
        views=torch.cat(views),
        right=torch.cat(right),
        confidences=torch.cat(confidences),
        labelled=labelled == {True},
    )
