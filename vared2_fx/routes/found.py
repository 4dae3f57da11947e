"""What `find_routes` found, and how it is printed."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from vared2_fx.layers import Choice
from vared2_fx.policy.fix import specialize
from vared2_fx.tables import percent, si, text_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One joint choice of all regions, which makes one static network."""

    choices: Mapping[str, Choice]
    """By path of the region."""
    macs: int
    """Multiply-adds per clip; no gate is left that would cost any."""
    agreement: float
    """Share of the clips that get the gated network's answer from it."""
    accuracy: float | None
    """Top-1 if every clip took it; None for clips without labels."""
    clips: int
    """Clips whose own joint choice is nearer to it than to the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What all clips together cost and get."""

    macs: float
    """Mean multiply-adds per clip."""
    agreement: float
    """Share of the clips that get the gated network's answer."""
    accuracy: float | None
    """Top-1; None for clips without labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """A few joint choices that stand for all that the gates took; `print` it to see what is lost."""

    routes: tuple[Route, ...]
    """Cheapest first; the last computes everything."""
    dense_macs: int
    """Multiply-adds per clip of the original network."""
    gated: Assignment
    """The network with its gates, their multiply-adds included."""
    nearest: Assignment
    """If every clip took the route next to its own joint choice."""
    clip_shape: tuple[int, ...]
    """(C, T, H, W) of the clips."""
    num_clips: int
    """Clips that were looked at."""
    num_joint: int
    """Different joint choices that the gates took."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Multiply-adds of each route, of the original's."""
        return tuple(route.macs / self.dense_macs for route in self.routes)

    def networks(self, dynamic: fx.GraphModule) -> tuple[fx.GraphModule, ...]:
        """The static network of each route, weights shared with `dynamic`.

        Raises:
            ConvertError: `dynamic` has not the regions that the routes name.
        """
        return tuple(specialize(dynamic, route.choices) for route in self.routes)

    @property
    def best_static(self) -> Route:
        """The best single route that costs no more than the nearest routes together: what routing has to beat."""
        affordable = [route for route in self.routes if route.macs <= self.nearest.macs * (1 + 1e-9)]
        return max(affordable, key=lambda r: (r.agreement if r.accuracy is None else r.accuracy, -r.macs))

    def __str__(self) -> str:
        rows = [
            (
                str(i),
                si(r.macs),
                percent(r.macs / self.dense_macs),
                percent(r.agreement),
                _top1(r.accuracy),
                str(r.clips),
            )
            for i, r in enumerate(self.routes)
        ]
        columns = ("route", ">MACs", ">of the original", ">agrees with the gates", ">top-1", ">clips")
        lines = [
            f"{len(self.routes)} routes for {self.num_joint} joint choices of {self.num_clips} clips",
            text_table(columns, rows),
            self._line("gates", self.gated),
            self._line("nearest route", self.nearest),
            f"best single route at that cost: {percent(self.best_static.macs / self.dense_macs)} of the MACs, agrees "
            f"with the gates on {percent(self.best_static.agreement)}, top-1 {_top1(self.best_static.accuracy)}",
        ]
        if self.num_joint == 1:
            lines.append("the gates take the same choice for every clip: train them first (finetune, fit_gates)")
        return "\n".join(lines)

    def _line(self, name: str, got: Assignment) -> str:
        return (
            f"{name}: {percent(got.macs / self.dense_macs)} of the MACs, agrees with the gates on "
            f"{percent(got.agreement)}, top-1 {_top1(got.accuracy)}"
        )


def _top1(accuracy: float | None) -> str:
    return "unknown" if accuracy is None else percent(accuracy)
