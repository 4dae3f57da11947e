"""The plan of a conversion: every convolution, what becomes of it, and the regions that decide."""

import textwrap
from dataclasses import dataclass

from vared2_fx.errors import ConvertError
from vared2_fx.layers import Choice, ChoiceGrid
from vared2_fx.passes.flow_graph import GraphNode
from vared2_fx.passes.nesting import Nesting
from vared2_fx.passes.reach import Level, Reach, level_index, reach_of
from vared2_fx.passes.regions import Reason
from vared2_fx.passes.roles import Kind
from vared2_fx.passes.untraced import Untraced, together
from vared2_fx.tables import by, percent, si, text_table


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanEntry:
    """One convolution: what becomes of it, and why."""

    path: str
    operation: str
    reason: Reason
    """`convert`, or the code of why not."""
    detail: str
    """The reason in words; empty for `convert`."""
    in_shape: tuple[int, ...] | None
    """(C, T, H, W) of the input; None where shapes are unknown."""
    out_shape: tuple[int, ...] | None
    macs: int | None
    """Multiply-adds per clip."""
    region: str | None = None
    """Path of the region that it is a part of; None where it stays static."""

    @property
    def converts(self) -> bool:
        """Whether this convolution is made dynamic."""
        return self.reason == "convert"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanNode:
    """A value of the graph."""

    name: str
    kind: Kind
    """What is done to compute it."""
    shape: tuple[int, ...]
    """(C, T, H, W), without the batch; empty where it is no map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRegion:
    """What one gate decides for: a convolution, or a run of layers."""

    path: str
    convs: tuple[str, ...]
    """Paths of its convolutions."""
    grid: ChoiceGrid
    """The choices it gets."""
    in_shape: tuple[int, ...] | None
    """(C, T, H, W) of its input; None where shapes are unknown."""
    out_shape: tuple[int, ...] | None
    choice_macs: tuple[int, ...] | None = None
    """Multiply-adds per clip of each choice, in the order of `grid.all()`, cheap operations counted, the gate not; None
    where shapes are unknown, or these clips take a branch without it."""
    gate_macs: int | None = None
    """Operations per clip of its gate; None as above."""
    prefix: str = ""
    """Of a run of layers: path of the module around them."""
    nodes: tuple[PlanNode, ...] = ()
    """Of a run of layers: the value that it reads, then those that it computes, in order."""
    why: str = ""
    """Why it is this run of layers and no other, in words; empty where the config said so."""

    @property
    def operation(self) -> str:
        """What it is, in words."""
        return "convolution" if len(self.convs) == 1 else f"{len(self.convs)} convolutions"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `convert` would do to a network."""

    network: str
    entries: tuple[PlanEntry, ...]
    input_shape: tuple[int, ...] | None
    """Shape of the clip that shapes and multiply-adds hold for; None where they are unknown."""
    input_is_guess: bool
    """The caller gave no example inputs: `input_shape` is a usual size that the network runs on."""
    macs: int | None
    """Multiply-adds per clip of the whole network, convolutions and matrix products."""
    regions: tuple[PlanRegion, ...] = ()
    """What decides, in the order in which it runs."""
    untraced: tuple[Untraced, ...] = ()
    """Modules that torch.fx could not follow. Each runs its own code; the convolutions inside convert on their own."""
    nesting: Nesting = ()
    """How lists and dicts lie in each other in the arguments that the network was traced for."""
    graph: tuple[GraphNode, ...] = ()
    """How the convolutions are connected."""

    @property
    def converted(self) -> tuple[PlanEntry, ...]:
        """The entries that become dynamic."""
        return tuple(entry for entry in self.entries if entry.converts)

    @property
    def skipped(self) -> tuple[PlanEntry, ...]:
        """The entries that stay static."""
        return tuple(entry for entry in self.entries if not entry.converts)

    @property
    def reach(self) -> Reach | None:
        """What the converted network can come down to; None where shapes are unknown."""
        if self.macs is None:
            return None
        return reach_of(self.macs, [(r.choice_macs, r.gate_macs or 0) for r in self.regions if r.choice_macs])

    def policy(self, level: Level) -> dict[str, Choice]:
        """The choices, for `vared2_fx.policy`, with which the converted network takes the multiply-adds in `reach`.

        Raises:
            ConvertError: shapes are unknown, so that choices have no price.
        """
        chosen = {}
        for region in self.regions:
            if region.choice_macs is None and self.macs is not None:
                continue  # in a branch that these clips do not take
            if region.choice_macs is None and level != "full":
                raise ConvertError(f"plan: what {region.path} costs is unknown; scan with example_inputs.")
            chosen[region.path] = region.grid.all()[level_index(region.choice_macs or (0,), level)]
        return chosen

    @property
    def why_nothing(self) -> str:
        """Why nothing converts, in words; empty where something does."""
        if self.converted:
            return ""
        order = ("not_worth_it", *sorted({entry.reason for entry in self.skipped} - {"not_worth_it"}))
        details = {entry.reason: entry.detail for entry in self.skipped}
        reasons = "; ".join(f"{details[reason]} ({reason})" for reason in order if reason in details)
        return reasons or "it has no 3D convolution"

    def __str__(self) -> str:
        """A table of every convolution, fit for 100 columns."""
        rows, grids = [], {region.path: region.grid for region in self.regions}
        for entry in self.entries:
            share = "" if entry.macs is None or not self.macs else percent(entry.macs / self.macs)
            shape = "" if entry.out_shape is None else by(entry.out_shape)
            what = f"static: {entry.reason}"
            if entry.region:
                what = _choices(grids[entry.region]) if entry.region == entry.path else f"in {entry.region}"
            rows.append((entry.path, entry.operation, shape, share, what))
        head = f"{self.network}: {len(self.converted)} of {len(self.entries)} 3D convolutions convert"
        if self.input_shape is not None and self.macs is not None:
            inside = sum(entry.macs or 0 for entry in self.converted)
            head += f", {percent(inside / max(1, self.macs))} of {si(self.macs)}MACs"
            head += f"; {'guessed ' if self.input_is_guess else ''}input {by(self.input_shape)}"
        columns = ("layer", "operation", ">output", ">MACs", "choices")
        reach = [str(self.reach)] if self.reach is not None and self.converted else []
        notes = [f"static, {code}: {detail}" for code, detail in sorted({(e.reason, e.detail) for e in self.skipped})]
        lines = [line for note in notes for line in textwrap.wrap(note, 100, subsequent_indent="  ")]
        for why in dict.fromkeys(region.why for region in self.regions if region.why):
            paths = ", ".join(region.path for region in self.regions if region.why == why)
            lines += textwrap.wrap(f"{why}: {paths}", 100, subsequent_indent="  ", break_on_hyphens=False)
        lines += [] if self.converted else [f"Nothing worth converting, because {self.why_nothing}."]
        lines += [f"not followed: {text}" for text in together(self.untraced)]
        return "\n".join([head, *reach, text_table(columns, rows), *self._runs(), *lines])

    def _runs(self) -> list[str]:
        """A table of the regions that hold several layers; none, no table."""
        rows = [
            (
                region.path,
                region.operation,
                "" if region.out_shape is None else by(region.out_shape),
                percent(region.choice_macs[0] / self.macs) if region.choice_macs and self.macs else "",
                _choices(region.grid),
            )
            for region in self.regions
            if region.nodes
        ]
        return [text_table(("region", "operation", ">output", ">MACs", "choices"), rows)] if rows else []


def _choices(grid: ChoiceGrid) -> str:
    strides, shares = grid.frame_strides, grid.channel_shares
    return f"R {' '.join(map(str, strides))}  r {' '.join(f'{share:g}' for share in shares)}"
