"""What a table or figure of a paper consists of: its scales, their rows, the published figures, the way to ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from reproduce.settings import Setting

Scale: TypeAlias = Literal["count", "speed", "photos", "digits", "clipart", "scenes", "full"]
SCALES: tuple[Scale, ...] = get_args(Scale)
SMALL_SCALES: tuple[Scale, ...] = ("digits", "clipart", "scenes")
"""Those whose rows are trained small, with several seeds."""
SEEDED: tuple[Scale, ...] = ("photos", *SMALL_SCALES)
"""Those with several seeds, whose figures are compared with a baseline and not with the paper's."""
Chart: TypeAlias = Literal["rows", "kernel", "epoch", "depth"]
Reader: TypeAlias = Literal["figures", "epochs", "rates"]

ABOUT: dict[Scale, str] = {
    "count": "counted, no training",
    "speed": "timed on this machine, as ratios",
    "photos": "fitted on scikit-learn's two photos",
    "digits": "trained on scikit-learn's 1,797 digits",
    "clipart": "trained on 1,645 pictures of clip art in ten classes",
    "scenes": "trained on embedded scenes of digits",
    "full": "the paper's own data set",
}


@dataclass(frozen=True)
class Quantity:
    """A column: what is compared.

    Args:
        name: for people.
        unit: behind its numbers.
        key: its name among a run's figures; for counts, what the counting returns.
        digits: decimals shown.
    """

    name: str
    unit: str
    key: str
    digits: int = 1


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        label: for people.
        published: the paper's figures by quantity, with the digits that it prints; what it does not give is left out.
        group: rows of one group share a baseline.
        baseline: whether the others of its group are compared with this one.
        count: for counted parts, makes ours by the quantities' keys.
        fit: for fitted parts, makes ours of a seed.
        setting: for trained parts, what is trained.
        subject: for timed parts, what is timed.
        why: for a quantity's name, or for ``""`` all of them, why ours differs.
        x: its place on a chart's axis.
    """

    label: str
    published: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    baseline: bool = False
    count: Callable[[], Mapping[str, float]] | None = None
    fit: Callable[[int], Mapping[str, float]] | None = None
    setting: Setting | None = None
    subject: str = ""
    why: Mapping[str, str] = field(default_factory=dict)
    x: float | None = None


@dataclass(frozen=True)
class Part:
    """A table at one scale.

    Args:
        scale: see :data:`ABOUT`.
        quantities: its columns.
        rows: its lines.
        time: for people: how long it takes, for trained parts a run.
        need: for people: what has to be there.
        why: why ours are other numbers than the published ones, for all rows.
        read: what of a run's folder are its figures: those of its summary, of every epoch, or its α and β by depth.
        chart: how it is drawn.
        case: for timed parts, the image's size and the batch.
        runs: on the paper's own data, of how many runs its figures are means.
    """

    scale: Scale
    quantities: tuple[Quantity, ...]
    rows: tuple[Row, ...]
    time: str
    need: str = "nothing"
    why: str = ""
    read: Reader = "figures"
    chart: Chart = "rows"
    case: Mapping[str, int] = field(default_factory=dict)
    runs: int = 1

    @property
    def comparable(self) -> bool:
        """Whether published figures and ours are of one thing: the same network, the same data set."""
        return self.scale in ("count", "full")

    def baseline_of(self, row: Row) -> Row | None:
        """The row that a row is compared with; none for the baselines themselves."""
        if row.baseline:
            return None
        return next((other for other in self.rows if other.baseline and other.group == row.group), None)


@dataclass(frozen=True)
class Entry:
    """A table or figure of a paper.

    Args:
        paper: ``"acmix"`` or ``"xvolution"``.
        number: as the paper calls it: ``"table 1"``, ``"supplement, table 1"``.
        caption: what it shows.
        parts: its scales.
        reason: where it has no parts, why there is nothing to compute.
    """

    paper: Literal["acmix", "xvolution"]
    number: str
    caption: str
    parts: tuple[Part, ...] = ()
    reason: str = ""

    @property
    def id(self) -> str:
        """How it is asked for.

        Example:
            >>> Entry("acmix", "supplement, table 1", "").id
            'acmix-supplement-table1'
        """
        return f"{self.paper}-{self.number.replace(', ', '-').replace(' ', '')}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{ {'acmix': 'ACmix', 'xvolution': 'X-volution'}[self.paper] }, {self.number}"

    def part(self, scale: Scale) -> Part | None:
        """Its part at a scale."""
        return next((part for part in self.parts if part.scale == scale), None)
