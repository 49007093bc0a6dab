"""``python -m reproduce``."""

import shlex
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import torch
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from benchmarks.machine import commit
from convattn.cli._options import choice
from convattn.cli._tables import make_console, print_table, say
from convattn.data.names import counted
from convattn.errors import UserError
from convattn.tasks.alone import alone
from convattn.tasks.interrupt import STOPPED
from convattn.tasks.recipes import parse_overrides
from reproduce.catalogue import ENTRIES, find_entries
from reproduce.clipart import prepare_clipart
from reproduce.dry_run import try_commands
from reproduce.entries import SCALES, SEEDED, SMALL_SCALES, Entry, Part
from reproduce.pool import Place, run_all
from reproduce.results import Results
from reproduce.runs import Run, epochs_done, make_run
from reproduce.speed import run_of, time_table
from reproduce.tables import backbones, seeded
from reproduce.writing import Writer

app = typer.Typer(name="reproduce", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TABLE]...", help="Names such as acmix-table6; acmix and xvolution are all of a paper."),
]
Scale = Annotated[str, choice("--scale", "count, speed, photos, digits, clipart, scenes or full.", *SCALES)]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of every trained row.")]
Out = Annotated[Path, typer.Option(help="Folder of the tables, the page and the runs.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time; they share the processors, and take GPUs in turns.")]
From = Annotated[
    list[Path] | None,
    typer.Option("--from", help="A finished run's folder: fills the published row that it is of.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="For every small run, as epochs=2.", show_default=False),
]
AnyCode = Annotated[
    bool, typer.Option("--any-code", help="Take runs of other versions of the code too, and published records.")
]
AllowBusy = Annotated[bool, typer.Option("--allow-busy", help="Time on a busy machine; the table says so.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Try the commands of --scale full: a step each, on noise.")]
List = Annotated[bool, typer.Option("--list", help="Name the tables and figures, and stop.")]


Chosen: TypeAlias = list[tuple[Entry, Part]]
"""Tables at the scale that was asked for."""


def reproduce(
    tables: Names = None,
    scale: Scale = "count",
    seeds: Seeds = 5,
    out: Out = Path("reproduced"),
    jobs: Jobs = 1,
    runs: From = None,
    settings: Settings = None,
    any_code: AnyCode = False,
    allow_busy: AllowBusy = False,
    dry_run: DryRun = False,
    list_them: List = False,
) -> None:
    """Every table and figure of both papers: what they publish and what is made here.

    [bold]Examples[/]

      python -m reproduce --list                            all of them: what each needs, how long it takes

      python -m reproduce                                   everything that is counted, no training: a minute

      python -m reproduce xvolution-section3.3 --scale photos    how closely PSSA approximates global attention

      python -m reproduce acmix-table6 --scale digits       the table's rows, trained on real digits, 5 seeds

      python -m reproduce --scale scenes --seeds 2 --jobs 2

      python -m reproduce acmix-table7 --scale speed        on a quiet machine

      python -m reproduce --scale full                      the commands for ImageNet, COCO and ADE20K

      python -m reproduce --dry-run                         one step of each of these commands, on noise

      python -m reproduce --from runs/20260101-120000-acmix_resnet50     fills the row that the run is of

    Stop it whenever you like: what is done is in the tables, and the same command goes on.
    """
    entries = find_entries(tables or [])
    if list_them:
        _print_list(entries)
        return
    if dry_run:
        _try(_at(entries, "full"), make_console())
        return
    results = Results(out, seeds, parse_overrides(settings or []), any_code, commit())
    chosen = _at(entries, scale)
    if not chosen and not runs:
        raise UserError(_no_part(entries, scale))
    console = make_console()
    with ExitStack() as held:
        _hold(out, held)
        if runs:
            for told in results.fill_from(runs, [part for _, part in _at(ENTRIES, "full")]):
                say(console, told)
            filled = [(e, part) for e, part in _at(entries, "full") if any(results.of(e, part, r) for r in part.rows)]
            _write(filled, Writer(results, {entry.id: part.scale for entry, part in filled}), console)
            return
        writer = Writer(results, {entry.id: chosen[0][1].scale for entry in entries})
        finished, failures = True, list[str]()
        if scale == "count":
            _count(chosen, results, console)
        elif scale == "photos":
            _fit(chosen, results, console)
        elif scale == "speed":
            _time(chosen, results, allow_busy, console)
        elif scale in SMALL_SCALES:
            if scale == "clipart":
                prepare_clipart()
            finished, failures = _train(chosen, results, writer, jobs, console)
        _write(chosen, writer, console)
        if scale == "full":
            _print_commands(chosen, writer, console)
    for failure in failures:
        Console(stderr=True).print(f"failed: {failure}", style="red", highlight=False, markup=False, soft_wrap=True)
    if not finished:
        again = shlex.join(["python", "-m", "reproduce", *sys.argv[1:]])
        say(console, f"Stopped. The same command goes on: {again}")
        raise typer.Exit(STOPPED)
    if failures:
        raise typer.Exit(1)


app.command()(reproduce)


def _at(entries: Sequence[Entry], scale: str) -> Chosen:
    return [(entry, part) for entry in entries for part in entry.parts if part.scale == scale]


def _no_part(entries: Sequence[Entry], scale: str) -> str:
    lines = []
    for entry in entries:
        scales = ", ".join(part.scale for part in entry.parts)
        lines.append(f"{entry.id}: {f'it has {scales}' if scales else entry.reason}")
    return f"nothing of these has --scale {scale}: {'; '.join(lines)}"


def _count(chosen: Chosen, results: Results, console: Console) -> None:
    """Count every row; one table after the other is kept."""
    with _bar(console) as bar:
        task = bar.add_task("counting", total=sum(len(part.rows) for _, part in chosen))
        for entry, part in chosen:
            bar.update(task, description=f"counting {entry.id}")
            found = {}
            for row in part.rows:
                found[row.label] = dict(row.count()) if row.count is not None else {}
                bar.advance(task)
            results.keep_counts(entry, found)


def _fit(chosen: Chosen, results: Results, console: Console) -> None:
    """Fit what is missing, seed by seed; each fit is kept."""
    needed = [(entry, row, seed) for seed in range(results.seeds) for entry, part in chosen for row in part.rows]
    with _bar(console) as bar:
        for entry, row, seed in bar.track(needed, description="fitting"):
            if row.fit is not None and results.fit_of(entry, row, seed) is None:
                results.keep_fit(entry, row, seed, row.fit(seed))


def _time(chosen: Chosen, results: Results, allow_busy: bool, console: Console) -> None:
    """Time every table's rows in a process of its own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _bar(console) as bar:
        task = bar.add_task("timing", total=len(chosen))
        for number, (entry, part) in enumerate(chosen):

            def on_progress(done: float, what: str, number: int = number, name: str = entry.id) -> None:
                bar.update(task, completed=number + done, description=f"{name}: {what}")

            run = run_of(part, device, torch.get_num_threads(), allow_busy=allow_busy)
            record = time_table(entry, run, results.records(entry), on_progress)
            for name, check in record.checks.items():
                if check.state != "right":
                    say(console, f"not timed: {name}: {check.note}")


def _train(chosen: Chosen, results: Results, writer: Writer, jobs: int, console: Console) -> tuple[bool, list[str]]:
    """Train what is missing; the tables are written after every run."""
    needed = runs_of(chosen, results)
    missing = [run for run, _ in needed.values() if not results.is_trained(run)]
    say(console, f"{counted(len(needed), 'run')}, {len(needed) - len(missing)} of them finished before")
    failures: list[str] = []
    writer.write()
    if not missing:
        return True, failures
    threads = max(1, torch.get_num_threads() // jobs)
    with _bar(console) as bar:
        watch = _Watch(bar, results.runs, missing)

        def done(run: Run, failure: str) -> None:
            if failure:
                failures.append(f"{run.setting.command(run.seed)}: {failure}")
            elif not console.is_terminal:
                say(console, f"done: {run.setting.command(run.seed)}")
            watch.ended(run)
            writer.write(needed[run.name][1])

        place = Place(results.runs, results.commit, torch.cuda.device_count())
        try:
            return run_all(missing, place, jobs, threads, done), failures
        finally:
            watch.stop()


def runs_of(chosen: Chosen, results: Results) -> dict[str, tuple[Run, list[str]]]:
    """All runs that tables need, each once, with the tables that need it: one seed of all tables, then the next."""
    found: dict[str, tuple[Run, list[str]]] = {}
    for seed in range(results.seeds):
        for entry, part in chosen:
            for row in part.rows:
                setting = results.setting(row)
                if setting is not None:
                    run = make_run(setting, seed)
                    found.setdefault(run.name, (run, []))[1].append(entry.id)
    return found


class _Watch(threading.Thread):
    """Moves the bar by the epochs that the runs' own tables show, while the main thread trains."""

    def __init__(self, bar: Progress, root: Path, runs: Sequence[Run]) -> None:
        super().__init__(daemon=True)
        self.bar, self.root, self.runs = bar, root, list(runs)
        self.over = threading.Event()
        self.done: set[str] = set()
        self.task = bar.add_task("", total=sum(run.recipe.epochs for run in runs), completed=self._epochs())
        self._show()
        self.start()

    def run(self) -> None:
        """Look every second."""
        while not self.over.wait(1.0):
            self._show()

    def ended(self, run: Run) -> None:
        """A run came to its end, or failed."""
        self.done.add(run.name)
        self._show()

    def stop(self) -> None:
        """Look no more."""
        self.over.set()
        self.join()

    def _epochs(self) -> int:
        return sum(
            run.recipe.epochs if run.name in self.done else epochs_done(run.folder(self.root)) for run in self.runs
        )

    def _show(self) -> None:
        told = f"run {min(len(self.done) + 1, len(self.runs))} of {len(self.runs)}, epochs"
        self.bar.update(self.task, completed=self._epochs(), description=told)


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    text, bar, _, left = Progress.get_default_columns()
    columns = (text, bar, MofNCompleteColumn(), TimeElapsedColumn(), "left", left)
    # the mean over a long time: runs of different networks follow one another
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=1800
    ) as shown:
        yield shown


def _hold(out: Path, held: ExitStack) -> None:
    """Hold the folder: two of these commands in one folder would train the same runs."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(alone(out, "runs 'python -m reproduce'"))
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; give another folder with --out") from error


def _try(chosen: Chosen, console: Console) -> None:
    """Try the full-scale commands, and say what came of each."""
    if not chosen:
        raise UserError("none of these tables has --scale full, so there is no command to try")
    every, failed, begin = 0, 0, time.perf_counter()
    for tried in try_commands([(entry.id, part) for entry, part in chosen]):
        every, failed = every + 1, failed + bool(tried.fault)
        state = f"failed: {tried.fault}" if tried.fault else f"loss {tried.loss:.3f}"
        size = f"{tried.parameters / 1e6:5.1f} M, {tried.seconds:4.1f} s"
        say(console, f"{'failed' if tried.fault else 'ok':6}  {size}, {state}: {tried.command}")
    say(console, f"{counted(every, 'command')} tried in {time.perf_counter() - begin:.0f} s, {failed} failed")
    if failed:
        raise typer.Exit(1)


def _print_list(entries: Sequence[Entry]) -> None:
    console = make_console()
    for entry in entries:
        console.print(f"[bold]{entry.id}[/]  {entry.caption}", highlight=False, soft_wrap=True)
        if not entry.parts:
            say(console, f"    not computed: {entry.reason}")
        for part in entry.parts:
            rows = f"{counted(len(part.rows), 'row')}{' a seed' if part.scale in SEEDED else ''}"
            say(console, f"    {part.scale:7}  needs {part.need}; {part.time}; {rows}")
    say(console, "next: python -m reproduce acmix-table6 --scale digits")


def _write(chosen: Chosen, writer: Writer, console: Console) -> None:
    """Write the tables and the page, and say what they hold."""
    page = writer.write()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("table", no_wrap=True)
    for heading in ("scale", "numbers", "off by over 1 %"):
        table.add_column(heading, justify="left" if heading == "scale" else "right")
    for entry, part in chosen:
        lines = writer.lines[entry.id][part.scale]
        far = sum(line.is_apart for line in lines)
        given = f"{sum(line.is_run for line in lines)} of {len(lines)}"
        table.add_row(entry.id, part.scale, given, str(far) if part.comparable else "")
    if chosen:
        print_table(console, table)
    say(console, f"page   {page}")
    say(console, f"tables {page.parent}/*.md, *.csv, *.png")
    say(console, "next: python -m reproduce --list   (the other scales of the tables, and what they need)")


def _print_commands(chosen: Chosen, writer: Writer, console: Console) -> None:
    """What would train the rows that no run has filled, their backbones first."""
    for words, rows in backbones(part for _, part in chosen).items():
        say(console, f"{words}  # the backbone of {', '.join(dict.fromkeys(rows))}")
    for entry, part in chosen:
        lines = [line for line in writer.lines[entry.id][part.scale] if not line.is_run]
        for row, words in dict.fromkeys((line.row, line.command) for line in lines):
            say(console, f"{seeded(words, part.runs)}  # {entry.id}, {row}")
