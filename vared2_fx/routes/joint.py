"""`finetune_routes`: routes learn the clips that the router sends them, then the router learns the new routes [ours].

N clips, K routes, cheapest first; the last computes everything.
"""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from vared2_fx.batches import Batch, batches_of, read_batch, set_epoch
from vared2_fx.config import FinetuneConfig
from vared2_fx.errors import ConvertError, DataError, TrainError
from vared2_fx.modes import same_modes
from vared2_fx.packing import packer
from vared2_fx.policy.fix import converted, policy
from vared2_fx.routes.curve import mean_quality
from vared2_fx.routes.find import check_shape, measure_routes
from vared2_fx.routes.routed import Routed
from vared2_fx.routes.train import train_router
from vared2_fx.train.distill import distillation_loss, make_teacher
from vared2_fx.train.evaluate import check_scores
from vared2_fx.train.objective import check_finite
from vared2_fx.train.optimizer import make_optimizer
from vared2_fx.train.setup import make_scheduler, num_batches
from vared2_fx.train.variants import forgiving_loss

log = logging.getLogger(__name__)


def finetune_routes(
    dynamic: fx.GraphModule,
    routed: Routed,
    train_loader: Iterable[Any],
    router_loader: Iterable[Any],
    val_loader: Iterable[Any],
    *,
    epochs: int = 2,
    lr: float = 3e-5,
    router_epochs: int = 60,
    seed: int = 0,
) -> Routed:
    """Train the routes' weights a little more under the router's decisions, then the router under the new weights.

    Each batch runs twice and updates the weights once: every clip with the route that the router picks for it at the
    default budget, so that a route gets better at the clips that it is given; and with one drawn at random, so that
    the other points of the curve stay what they are. Learned are the labels, where there are any, and the answers that
    the full network gave at the start. Norms keep their statistics.

    The result is kept if it gets more on the validation clips, in the mean over all budgets; else every weight is given
    back as it was, and `routed` too.

    Args:
        dynamic: the network that `routed` shares its weights with; trained in place. Its mode is restored.
        routed: from `train_router`.
        train_loader: clips for the weights, may augment; those of fine-tuning will do.
        router_loader: clips for the router, as for `train_router`; best such that the weights are not trained on.
        val_loader: other clips, for the curve.
        epochs: passes over `train_loader`.
        lr: largest learning rate of AdamW; it falls along a cosine.
        router_epochs: passes of the router over `router_loader`, see `train_router`.
        seed: of the routes that are drawn, and of the router.

    Returns:
        The new routed network; or `routed` itself where that was better.

    Raises:
        ConvertError: `routed` shares no weights with `dynamic`.
        TrainError: a number out of range, or a loss that is not finite.
        DataError: a loader is empty, has clips of another size, or labels for some batches only.
    """
    network = converted("finetune_routes", dynamic)
    own, used = ({id(p) for p in module.parameters()} for module in (network, routed.networks[-1]))
    if not used & own:
        raise ConvertError("finetune_routes: the routes do not share this network's weights; take train_router's.")
    if epochs < 1 or router_epochs < 1 or not 0 < lr < math.inf:
        raise TrainError(
            f"finetune_routes: epochs={epochs}, router_epochs={router_epochs}, lr={lr}; at least one epoch each, and a "
            "rate above 0."
        )
    config = FinetuneConfig(epochs=epochs, lr=lr, gate_lr=lr, seed=seed)
    before = {name: value.detach().clone() for name, value in network.state_dict().items()}
    better = False
    try:
        with same_modes(network):
            _Weights(network, routed, batches_of(train_loader), config).train()
        routes = measure_routes(network, routed.routes, router_loader)
        after = train_router(network, routes, router_loader, val_loader, epochs=router_epochs, seed=seed)
        low = min(routed.curve[0].share, after.curve[0].share)
        gained = mean_quality(after.curve, low) - mean_quality(routed.curve, low)
        better = gained > 0
        log.info("routes: %+.2f points in the mean over all budgets, %s", 100 * gained, "kept" if better else "undone")
    finally:
        if not better:
            network.load_state_dict(before)
    return after if better else routed


class _Weights:
    """The weights' part: the router stays as it is."""

    def __init__(self, network: fx.GraphModule, routed: Routed, loader: Iterable[Any], config: FinetuneConfig) -> None:
        self.network, self.routed, self.loader, self.config = network, routed, loader, config
        self.pack, self.like = packer(network), next(network.parameters())
        self.teacher = make_teacher(network, None, self.pack)
        self.optimizer = make_optimizer(network, config)
        self.scheduler = make_scheduler(self.optimizer, config, config.epochs * num_batches(loader))
        self.draw = torch.Generator().manual_seed(config.seed)
        self.step = 0

    def train(self) -> None:
        """All epochs.

        Raises:
            DataError: the loader gave no clips, or clips of another size.
        """
        for epoch in range(self.config.epochs):
            self.network.train()
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
            set_epoch(self.loader, epoch)
            for raw in self.loader:
                batch = read_batch(raw).to(self.like)
                if len(batch.video):
                    check_shape("finetune_routes", self.routed.routes.clip_shape, batch.video)
                    self._update(batch, epoch)
        self.optimizer.zero_grad()
        if not self.step:
            raise DataError("finetune_routes: the training loader gave no clips.")

    def _update(self, batch: Batch, epoch: int) -> None:
        self.scheduler.step_update(self.step)
        taught = self.teacher(batch.video)
        if batch.labels is not None:
            check_scores(batch.labels, taught)
        self.optimizer.zero_grad()
        for taken in (self.routed.choose(batch.video), self._drawn(len(batch.video))):
            for route in set(taken.tolist()):
                some = (taken == route).nonzero()[:, 0]
                with policy(self.network, self.routed.routes.routes[route].choices):
                    output = self.network(*self.pack(batch.video[some])).float()
                loss = distillation_loss(output, taught[some])
                if batch.labels is not None:
                    loss = loss + forgiving_loss(output, batch.labels[some])
                check_finite(loss, epoch + 1, self.step)
                (loss * len(some) / len(taken)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.step += 1

    def _drawn(self, count: int) -> Tensor:
        drawn = torch.randint(len(self.routed.networks), (count,), generator=self.draw)
        return drawn.to(self.like.device)
