"""What a sceptic would try instead, each trained as long as the network with gates."""

import copy
from typing import Any

import torch
import torch_pruning
from avletters_parts.clips import FRAMES, Loader, Part
from avletters_parts.learned import Recipe, converted
from avletters_parts.training import top1, train
from torch import nn

import vared2_fx as vr
from vared2_fx.passes.leaves import called_path
from vared2_fx.passes.rewrite import regions
from vared2_fx.policy.statistics import dense_macs

LEAST = 1


class Controls:
    """Controls of one seed. Each gives {"top1", "share", "epochs", "seconds"}; `share` is of the base's cost."""

    def __init__(self, base: nn.Module, parts: dict[str, Part], loaders: dict[str, Loader], lr: float, seed: int):
        """`base` is not changed."""
        self._base, self._parts, self._loaders, self._lr, self._seed = base, parts, loaders, lr, seed
        self._clip = next(iter(loaders["test"]))["video"][:1]
        self._dense = dense_macs(base, self._clip)

    def longer(self, seconds: float, *, rate: float = 1.0) -> dict[str, Any]:
        """The base itself, without any saving; `rate` times the learning rate of the others."""
        return self._trained(copy.deepcopy(self._base), seconds, rate=rate)

    def fewer_frames(self, target: float, seconds: float) -> dict[str, Any]:
        """Clips of fewer frames over the same time: the nearest number, which may cost up to 1/32 above `target`."""
        return self._trained(copy.deepcopy(self._base), seconds, frames=round(target * FRAMES))

    def smaller_pictures(self, target: float, seconds: float) -> dict[str, Any]:
        """The same pictures at a lower resolution."""
        fits = [scale / 100 for scale in range(30, 100) if self._cost(scale / 100) <= target]
        return self._trained(copy.deepcopy(self._base), seconds, scale=max(fits, default=0.3))

    def pruned(self, target: float, seconds: float) -> dict[str, Any]:
        """Channels taken out by Torch-Pruning, the same share in every layer, those of least magnitude."""
        fewest, most = 0.0, 0.95
        for _ in range(8):
            ratio = (fewest + most) / 2
            share = dense_macs(self._without(ratio), self._clip) / self._dense
            fewest, most = (fewest, ratio) if share <= target else (ratio, most)
        return self._trained(self._without(most), seconds) | {"ratio": most}

    def static(self, recipe: Recipe, choices: dict[str, tuple[int, float]], seconds: float) -> dict[str, Any]:
        """Fixed choices, in a network converted and distilled like the one with gates."""
        dynamic = converted(self._base, recipe, self._loaders["calibrate"], self._seed)
        network = vr.specialize(dynamic, choices, share_weights=False)
        return self._trained(network, seconds, distilled=recipe.teacher != "labels") | {"choices": choices}

    def average(self, recipe: Recipe, layers: dict[str, float], seconds: float) -> dict[str, Any]:
        """In each layer the choice that costs what gates spent there on average; what is left over goes to the next."""
        dynamic = converted(self._base, recipe, self._loaders["calibrate"], self._seed)
        decisions = vr.with_decisions(dynamic).eval()(self._clip)[1]
        prices = {called_path(name): decision.macs for name, decision in decisions.items()}
        choices, owed = {}, 0.0
        for path, region in regions(dynamic).items():
            macs = prices[path]
            owed += layers[path] * float(macs[0, 0])
            spent = {choice: float(macs[region.grid.index(choice)]) for choice in region.grid.all()}
            choice = min(spent, key=lambda choice: abs(spent[choice] - owed))
            choices[path], owed = (choice.frame_stride, choice.channel_share), owed - spent[choice]
        return self.static(recipe, choices, seconds)

    def _cost(self, scale: float) -> float:
        small = next(iter(Loader(self._parts["test"], batch_size=1, scale=scale)))["video"]
        return dense_macs(self._base, small) / self._dense

    def _without(self, ratio: float) -> nn.Module:
        network = copy.deepcopy(self._base).to(memory_format=torch.contiguous_format)
        classes = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        pruner = torch_pruning.pruner.BasePruner(
            network,
            self._clip.contiguous(),
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=[classes],
        )
        pruner.step()
        return network.to(memory_format=torch.channels_last_3d)

    def _trained(
        self,
        network: nn.Module,
        seconds: float,
        *,
        frames: int = FRAMES,
        scale: float = 1.0,
        distilled: bool = False,
        rate: float = 1.0,
    ) -> dict[str, Any]:
        """Train for about as long as was given: what one epoch takes is measured on a copy."""
        loader = Loader(self._parts["train"], training=True, frames=frames, scale=scale, seed=self._seed + 1)
        test = Loader(self._parts["test"], frames=frames, scale=scale)
        teacher = vr.train.distill.Teacher(copy.deepcopy(self._base), lambda video: (video,)) if distilled else None
        torch.manual_seed(self._seed)  # dropout then does not depend on what ran before
        one = train(copy.deepcopy(network), loader, epochs=1, lr=rate * self._lr, teacher=teacher)
        epochs = max(LEAST, round(seconds / one))
        spent = train(network, loader, epochs=epochs, lr=rate * self._lr, teacher=teacher)
        share = dense_macs(network, next(iter(test))["video"][:1]) / self._dense
        return {"top1": top1(network, test), "share": share, "epochs": epochs, "seconds": spent}
