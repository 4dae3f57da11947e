"""What `bench` measured: numbers, JSON, a table."""

import json
import textwrap
from dataclasses import asdict, dataclass

from vared2_fx.config import EngineName
from vared2_fx.passes.deploy.pipeline import Precision
from vared2_fx.tables import by, si, text_table

SCHEMA, VERSION, WIDTH = "vared2_fx.bench", 1, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """One network; times are of a call, in milliseconds."""

    name: str
    """`base`, or that of the variant."""
    ms: float
    """Median over the rounds."""
    low_ms: float
    """A quarter of the rounds took less."""
    high_ms: float
    """A quarter took more."""
    min_ms: float
    max_ms: float
    macs: int
    """Multiply-adds per clip, of convolutions and matrix products; rebuilding is not among them."""
    speed_up: float
    """Median of the base's time by its own, round by round; 1 for the base."""
    low_speed_up: float
    """A quarter of the rounds had less."""
    high_speed_up: float
    """A quarter had more."""
    ideal_speed_up: float
    """The base's multiply-adds by its own."""
    difference: float
    """From what the same network gives in torch in fp32, as a share of the largest output."""
    notes: tuple[str, ...]
    """What `deploy` said."""

    @property
    def share(self) -> float | None:
        """How much of what the multiply-adds promise is there: (speed_up − 1) / (ideal − 1); None without promise."""
        gain = self.ideal_speed_up - 1
        return None if abs(gain) < 1e-3 else (self.speed_up - 1) / gain


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """Times of a network and its variants in one engine, prepared the same way and run in turns. `print` it."""

    network: str
    """Class of the network."""
    engine: EngineName
    precision: Precision
    """In what the engine computes."""
    layout: str
    """Of the maps in it."""
    threads: int
    batch_size: int
    """Clips in a call."""
    inputs: tuple[tuple[int, ...], ...]
    """Shapes of what a call is given."""
    dtype: str
    """Of what a call is given."""
    rounds: int
    """How often each was timed."""
    warmup: int
    """How often each ran before."""
    base: Timed
    variants: tuple[Timed, ...]
    processor: str
    python: str
    versions: dict[str, str]
    """Releases of this package, torch and the engine."""

    def to_json(self, *, indent: int | None = 1) -> str:
        """All fields, after `schema` and `version`; of each variant also its `share`."""
        document = asdict(self)
        for row, variant in zip(document["variants"], self.variants, strict=True):
            row["share"] = variant.share
        return json.dumps({"schema": SCHEMA, "version": VERSION, **document}, indent=indent, allow_nan=False)

    def __str__(self) -> str:
        shapes = ", ".join(map(by, self.inputs))
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        head = f"{self.network} in {self.engine}, {self.precision}, {threads}, batch {self.batch_size}: {shapes}"
        columns = ("", ">ms", ">half of the rounds", ">MACs", ">speed-up", ">half of the rounds", ">ideal", ">share")
        rows = [_row(timed, timed is self.base) for timed in (self.base, *self.variants)]
        about = (
            f"ms: a call, median of {self.rounds} rounds in turns after {self.warmup} that do not count. MACs: "
            "multiply-adds per clip of convolutions and matrix products. ideal: speed-up by these. share: "
            "(speed-up − 1) / (ideal − 1). "
            f"{self.processor}, {self.dtype} in and out, layout {self.layout}, "
            + ", ".join(f"{name} {release}" for name, release in {"python": self.python, **self.versions}.items())
            + "."
        )
        notes = dict.fromkeys(note for timed in (self.base, *self.variants) for note in timed.notes)
        lines = [about, *(f"note: {note}" for note in notes)]
        wrapped = [text for line in lines for text in textwrap.wrap(line, WIDTH, break_on_hyphens=False)]
        return "\n".join([*textwrap.wrap(head, WIDTH), text_table(columns, rows, width=WIDTH), *wrapped])


def _row(timed: Timed, is_base: bool) -> tuple[str, ...]:
    spread = f"{timed.low_ms:.1f}-{timed.high_ms:.1f}"
    if is_base:
        return timed.name, f"{timed.ms:.1f}", spread, si(timed.macs), "", "", "", ""
    speed_ups = f"{timed.low_speed_up:.2f}-{timed.high_speed_up:.2f}"
    share = "" if timed.share is None else f"{timed.share:.2f}"
    ideal = f"{timed.ideal_speed_up:.2f}"
    return timed.name, f"{timed.ms:.1f}", spread, si(timed.macs), f"{timed.speed_up:.2f}", speed_ups, ideal, share
