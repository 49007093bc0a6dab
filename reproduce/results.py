"""Our side of the tables: what was counted, timed and trained, kept in one folder and read back from it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.record import TIME, Record, read_records
from convattn.data.writing import write_json
from convattn.errors import UserError
from convattn.tasks.finishing import read_result
from convattn.tasks.inference import evaluate, load_model
from convattn.tasks.reach import OVERLAY
from convattn.tasks.recipes import load_recipe, read_recipe
from convattn.tasks.run_folder import RunFolder, open_run
from convattn.tasks.task import task_of
from reproduce.code import source_hash
from reproduce.entries import SEEDED, SMALL_SCALES, Entry, Part, Row
from reproduce.networks import network_cost
from reproduce.records import RECORDS, Recorded, by_command, by_row
from reproduce.runs import Run, commit_of, find_finished, make_run, read_figures, read_json
from reproduce.settings import Setting


@dataclass(frozen=True)
class Measured:
    """What a row came to.

    Args:
        values: for every seed (0 for what has none) the numbers by the quantities' keys.
        commit: of the code that made them.
        wanted: how many seeds there should be.
        note: what has to be said with them.
        command: that made them, where it is not the row's own of today.
    """

    values: Mapping[int, Mapping[str, float]]
    commit: str = ""
    wanted: int = 1
    note: str = ""
    command: str = ""


@dataclass
class Results:
    """A folder of results.

    Args:
        out: the folder.
        seeds: how many a trained row should have; more that are finished, by an earlier command, are shown too.
        overrides: settings for every small run, over the row's own.
        other_code: take finished runs of other source too, and the published records of what the folder does not have.
        commit: of this code.
        published: the folder of the published records.
    """

    out: Path
    seeds: int = 5
    overrides: Mapping[str, Any] = field(default_factory=dict)
    other_code: bool = False
    commit: str = "unknown"
    published: Path = RECORDS
    _read: dict[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    @property
    def runs(self) -> Path:
        """The folder of the training runs."""
        return self.out / "runs"

    def setting(self, row: Row) -> Setting | None:
        """A row's small run with the settings for all of them."""
        if row.setting is None or not self.overrides:
            return row.setting
        return replace(row.setting, overrides={**row.setting.overrides, **self.overrides})

    def of(self, entry: Entry, part: Part, row: Row) -> Measured | None:
        """What a row came to; None where nothing did."""
        if part.scale in ("count", "photos"):
            found = self._counted(entry, row) if part.scale == "count" else self._fitted(entry, row)
        elif part.scale == "speed":
            found = self._timed(entry, part, row)
        else:
            found = self._full(part, row) if part.scale == "full" else self._trained(part, row)
        return found if found is not None and found.values else None

    def earlier(self, entry: Entry, part: Part, row: Row) -> Measured | None:
        """What the published records have of a row, by whatever command it was made; None where they are not taken."""
        found = by_row(self.published).get((entry.id, part.scale, row.label)) if self.other_code else None
        if found is None or not (values := found.by_seed(part.quantities)):
            return None
        setting = self.setting(row)
        changed = part.scale in SMALL_SCALES and setting is not None and setting.command(seed=0) != found.command
        note = f"By an earlier schedule: `{found.command}`." if changed else found.note
        wanted = self.seeds if part.scale in SEEDED else part.runs
        return Measured(values, found.commit, max(wanted, len(values)), note, found.command)

    # counts

    @property
    def _counts(self) -> Path:
        return self.out / "counts.json"

    def keep_counts(self, entry: Entry, counted: Mapping[str, Mapping[str, float]]) -> None:
        """Write what the rows of a table were counted to."""
        kept = read_json(self._counts, dict)
        kept[entry.id] = {"source": source_hash(), "commit": self.commit, "rows": dict(counted)}
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self._counts, kept)

    def _counted(self, entry: Entry, row: Row) -> Measured | None:
        kept = read_json(self._counts, dict).get(entry.id)
        if kept is None or (kept["source"] != source_hash() and not self.other_code):
            return None
        values = kept["rows"].get(row.label)
        return None if values is None else Measured({0: values}, kept["commit"])

    # fits

    @property
    def _fits(self) -> Path:
        return self.out / "fits.json"

    def keep_fit(self, entry: Entry, row: Row, seed: int, found: Mapping[str, float]) -> None:
        """Write what a row was fitted to under a seed."""
        kept, key = read_json(self._fits, dict), f"{row.label}, seed {seed}"
        kept.setdefault(entry.id, {})[key] = {"source": source_hash(), "commit": self.commit, "figures": dict(found)}
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self._fits, kept)

    def fit_of(self, entry: Entry, row: Row, seed: int) -> Mapping[str, Any] | None:
        """The kept fit of a row under a seed; None where there is none by this code."""
        found: Mapping[str, Any] | None = read_json(self._fits, dict).get(entry.id, {}).get(f"{row.label}, seed {seed}")
        return found if found and (found["source"] == source_hash() or self.other_code) else None

    def _fitted(self, entry: Entry, row: Row) -> Measured:
        found = {seed: fit for seed in range(self.seeds) if (fit := self.fit_of(entry, row, seed)) is not None}
        commits = dict.fromkeys(fit["commit"] for fit in found.values())
        return Measured({seed: fit["figures"] for seed, fit in found.items()}, ", ".join(commits), self.seeds)

    # times

    def records(self, entry: Entry) -> Path:
        """The folder of a table's records of times."""
        return self.out / "speed" / entry.id

    def _timed(self, entry: Entry, part: Part, row: Row) -> Measured | None:
        base = row if row.baseline else part.baseline_of(row)
        record = self._newest(entry, row.subject)
        if record is None or base is None or base.subject not in record.results:
            return None
        own, others = record.results[row.subject][TIME], record.results[base.subject][TIME]
        ratio = 1.0 if row.baseline else others.over(own).median
        where = record.environment
        device = where.cpu if where.gpu == "none" else where.gpu
        threads = "1 thread" if where.threads == 1 else f"{where.threads} threads"
        note = f"{device}, {threads}" if where.gpu == "none" else device
        note += "; the machine was busy: do not trust it" if where.quiet == "no" else ""
        return Measured({0: {"throughput": ratio}}, where.commit, note=note)

    def _newest(self, entry: Entry, subject: str) -> Record | None:
        folders = [self.records(entry), *([self.published / "speed" / entry.id] if self.other_code else [])]
        for folder in folders:
            for record in reversed(read_records(folder)):
                if subject in record.results:
                    return record
        return None

    # small runs

    def _trained(self, part: Part, row: Row) -> Measured | None:
        setting = self.setting(row)
        if setting is None:
            return None
        recorded = self._recorded(setting)
        known = recorded.by_seed(part.quantities) if recorded else {}
        values: dict[int, Mapping[str, float]] = {}
        commits = []
        for seed in itertools.count():
            folder = find_finished(make_run(setting, seed), self.runs, other_code=self.other_code)
            if folder is not None:
                values[seed] = self._figures(folder, part)
                commits.append(commit_of(folder))
            elif recorded is not None and seed in known:
                values[seed] = known[seed]
                commits.append(recorded.commit)
            elif seed >= self.seeds:
                break
        return Measured(values, ", ".join(dict.fromkeys(commits)), max(self.seeds, len(values)))

    def is_trained(self, run: Run) -> bool:
        """Whether a run need not be trained: it is finished, or for ``other_code`` in the published records."""
        recorded = self._recorded(run.setting)
        done = find_finished(run, self.runs, other_code=self.other_code) is not None
        return done or (recorded is not None and run.seed in recorded.seeds)

    def _recorded(self, setting: Setting) -> Recorded | None:
        return by_command(self.published).get(setting.command(seed=0)) if self.other_code else None

    def _figures(self, folder: RunFolder, part: Part) -> Mapping[str, float]:
        """A finished run does not change: it is read once."""
        known = f"{folder.path} {part.read} {[quantity.key for quantity in part.quantities]}"
        if known not in self._read:
            found = dict(read_figures(folder, part.read))
            if any(quantity.key == "multiply-adds" for quantity in part.quantities):
                found["multiply-adds"] = _multiply_adds(folder)
            if any(quantity.key == "top5" for quantity in part.quantities) and "top5" not in found:
                found |= _top5(folder)
            self._read[known] = found
        return self._read[known]

    # runs on the papers' own data sets

    @property
    def _filled(self) -> Path:
        return self.out / "filled.json"

    def fill_from(self, folders: Sequence[Path], parts: Sequence[Part]) -> list[str]:
        """Note finished runs that fill published rows, and say which.

        Raises:
            UserError: no run, one that is not finished, or one that no row is for.
        """
        told, kept = [], read_json(self._filled, list)
        for path in folders:
            run = open_run(path)
            if read_result(run) is None:
                raise UserError(f"{path} is not finished: go on with 'convattn train --resume {path}'")
            labels = [row.label for part in parts for row in part.rows if _departures(run, row) is not None]
            if not labels:
                recipe = read_recipe(run.config, trust=True)
                named = f"{recipe.model}{f' under {recipe.network.head}' if recipe.network.head else ''}"
                raise UserError(
                    f"{path} fits no row: it trained {named} by a recipe about {recipe.about or 'nothing said'!r} with "
                    f"model_args {recipe.model_args}; 'python -m reproduce --scale full' prints the rows' commands"
                )
            told.append(f"{path}: {', '.join(dict.fromkeys(labels))}")
            kept.append(str(run.path))
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self._filled, list(dict.fromkeys(kept)))
        return told

    def _full(self, part: Part, row: Row) -> Measured | None:
        values, commits, notes = {}, [], []
        for path in read_json(self._filled, list):
            run = RunFolder(Path(path))
            departures = _departures(run, row) if run.config.is_file() and read_result(run) is not None else None
            if departures is not None:
                values[read_recipe(run.config, trust=True).seed] = self._figures(run, part)
                commits.append(commit_of(run))
                notes += departures
        return Measured(
            values, ", ".join(filter(None, dict.fromkeys(commits))), max(len(values), part.runs), "; ".join(notes)
        )


def _departures(run: RunFolder, row: Row) -> list[str] | None:
    """In what a run of a row's recipe, model and network was shorter or otherwise batched; None for another run."""
    if row.setting is None:
        return None
    theirs, ours = read_recipe(run.config, trust=True), load_recipe(row.setting.recipe, row.setting.overrides)
    options = {name: value for name, value in theirs.model_args.items() if name != OVERLAY}
    named = [(getattr(theirs, name), getattr(ours, name)) for name in ("about", "model", "network")]
    if options != ours.model_args or any(their != our for their, our in named):
        return None
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in ("epochs", "batch_size")]
    return [f"{name} {their} in place of {our}" for name, their, our in pairs if their != our]


def _multiply_adds(folder: RunFolder) -> float:
    """Millions of multiply-adds of a run's classifier for one of its images."""
    recipe = read_recipe(folder.config)
    classes = len(folder.classes.read_text(encoding="utf-8").splitlines())
    options = {**recipe.model_args, "num_classes": classes}
    return network_cost(recipe.model, options, size=max(recipe.data.height_and_width), convention="counted").macs / 1e6


def _top5(folder: RunFolder) -> dict[str, float]:
    """Of a run that did not note it, by its weights; nothing where its images are gone."""
    recipe = read_recipe(folder.config)
    with suppress(UserError):
        images = task_of(recipe).open_data(recipe).val
        return {"top5": 100 * evaluate(load_model(folder.weights), images).figures["top5"]}
    return {}
