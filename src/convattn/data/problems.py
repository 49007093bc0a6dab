"""What is wrong with a data set, as data: which file and entry, what was found there and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convattn.data.types import SkippedFile
from convattn.errors import UserError

SHOWN = 5
"""How many problems the message of a refusal names."""

Level = Literal["fatal", "error", "note"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set.

    Args:
        file: The file that has to be put right.
        id: The id of the entry in it, where the file has entries.
        field: The field of that entry, as in ``annotations.bbox``.
        what: What was found, beside what was expected.
        remedy: What to do.
        level: An "error" refuses training, unless bad entries are left out; a "fatal" one refuses it even so, since
            nothing would be left; a "note" is worth knowing and trains as it is.

    Example:
        >>> print(Problem("train.json", 7, "annotations.bbox", "the box has no area", "remove it"))
        train.json: annotations.bbox of id 7: the box has no area (remove it)
    """

    file: str
    id: int | str | None
    field: str
    what: str
    remedy: str
    level: Level = "error"

    def __str__(self) -> str:
        place = self.field + (f" of id {self.id}" if self.id is not None else "")
        return ": ".join(filter(None, (self.file, place, self.what))) + (f" ({self.remedy})" if self.remedy else "")


class BadData(UserError):
    """A data set that is refused; its ``problems`` are all that was found, the message names the first.

    Example:
        >>> raise BadData([Problem("a.json", 7, "annotations.bbox", "the box has no area", "remove it")])
        Traceback (most recent call last):
        ...
        convattn.data.problems.BadData: 1 problem: a.json: annotations.bbox of id 7: the box has no area (remove it)
    """

    def __init__(self, problems: Sequence[Problem], advice: str = "") -> None:
        self.problems, self.advice = list(problems), advice
        super().__init__(self.problems, advice)

    def __str__(self) -> str:
        count = len(self.problems)
        if count == 1:
            return f"1 problem: {self.problems[0]}" + f"; {self.advice}" * bool(self.advice)
        lines = [f"{count} problems:", *(f"  {one}" for one in self.problems[:SHOWN])]
        if count > SHOWN:
            lines.append(f"  and {count - SHOWN} more")
        return "\n".join(lines + [f"  {self.advice}"] * bool(self.advice))


def errors(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems that refuse training.

    Example:
        >>> errors([Problem("a.json", 3, "images", "no objects", "nothing", level="note")])
        []
    """
    return [one for one in problems if one.level != "note"]


def refuse_or_skip(problems: Sequence[Problem], *, skip_bad: bool) -> list[SkippedFile]:
    """Return what is left out with ``skip_bad``, one entry per error; without it raise where there is an error.

    Raises:
        BadData: There are errors and ``skip_bad`` is False, or one is fatal.
    """
    found = errors(problems)
    fatal = [one for one in found if one.level == "fatal"]
    if fatal and (skip_bad or fatal == found):
        raise BadData(fatal)
    if found and not skip_bad:
        without = "" if fatal else ", or go on without them: --skip-bad (skip_bad=True)"
        raise BadData(found, f"convattn check-data lists them all; mend them{without}")
    return [SkippedFile(one.file if one.id is None else f"{one.file}: id {one.id}", one.what) for one in found]
