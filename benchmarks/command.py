"""``python -m benchmarks``."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import helps, page
from benchmarks.budget import budget
from benchmarks.cases import ABOUT, CASES, find_cases
from benchmarks.fresh import OnProgress
from benchmarks.record import ISAS, Record, read_records, to_json, write_record
from convattn.cli._tables import make_console, print_table
from convattn.cli.bench import MODES, Device, ModeName, Threads, choose_threads, require_device
from convattn.errors import UserError

app = typer.Typer(
    name="benchmarks",
    help="Measure operators, networks, training and memory, beside rivals and the plain convolution.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

DTYPES = ("float32", "bfloat16", "float16")

Cases = Annotated[list[str] | None, typer.Argument(help="Names, or patterns with *.", show_default=False)]
Models = Annotated[list[str], typer.Argument(help="Names; 'convattn list' has them.", show_default=False)]
Against = Annotated[str, typer.Option(help="The plain network.")]
Size = Annotated[int, typer.Option(min=32, help="Height and width of the images.")]
Batch = Annotated[str, typer.Option(help="Images at a time: 8, or several as in 1,8.")]
IsaName = Annotated[str, typer.Option("--isa", help="At most avx512, avx2 or baseline, on all sides.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; in training, of autocast.")]
Rounds = Annotated[int, typer.Option(min=2, help="Rounds of turns; what is slow sits some out.")]
Processes = Annotated[int, typer.Option(min=0, help="Fresh processes for each peak of memory; 0 leaves it out.")]
Subjects = Annotated[str, typer.Option(help="Only these beside the convolution, as in native,unfold.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile and FlexAttention too: slow to compile.")]
AllowBusy = Annotated[bool, typer.Option("--allow-busy", help="Measure on a busy machine; the record says so.")]
Out = Annotated[Path, typer.Option(help="Folder for the records.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write the records as JSON for programs.")]

Job: TypeAlias = "tuple[str, Callable[[OnProgress], Record]]"
"""What is measured, for people, and what measures it."""


def op(
    cases: Cases = None,
    mode: ModeName = "forward",
    batch: Batch = "1",
    threads: Threads = None,
    isa: IsaName = "default",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    rounds: Rounds = 40,
    subjects: Subjects = "",
    compile_too: Compile = False,
    allow_busy: AllowBusy = False,
    out: Out = Path("results"),
    as_json: AsJson = False,
    list_them: Annotated[bool, typer.Option("--list", help="Name the cases and stop.")] = False,
) -> None:
    """Time operators."""
    from benchmarks.op import OpRun, measure

    if list_them:
        for case in CASES:
            print(f"{case.name:18} {ABOUT[case.operator]}")
        return
    common: dict[str, Any] = {"mode": _mode(mode), "rounds": rounds, "allow_busy": allow_busy, "compiled": compile_too}
    common |= _place(threads, isa, device, dtype) | {"subjects": tuple(filter(None, subjects.split(",")))}
    jobs: list[Job] = []
    for case in find_cases(cases or ["*"]):
        for images in _batches(batch):
            run = OpRun(case=case.name, batch=images, **common)
            jobs.append((f"{case.name} {mode} batch {images}", partial(measure, run)))
    _run(jobs, out, as_json)


def model(
    models: Models,
    against: Against = "conv_resnet50",
    mode: ModeName = "forward",
    size: Size = 224,
    batch: Batch = "1",
    threads: Threads = None,
    isa: IsaName = "default",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    rounds: Rounds = 30,
    processes: Processes = 3,
    allow_busy: AllowBusy = False,
    out: Out = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Compare networks."""
    from benchmarks.network import NetworkRun, measure

    kind: Any = "train" if _mode(mode) == "train" else "model"
    common: dict[str, Any] = {"size": size, "rounds": rounds, "processes": processes, "allow_busy": allow_busy}
    common |= _place(threads, isa, device, dtype)
    runs = [NetworkRun(models=tuple(models), base=against, batch=images, **common) for images in _batches(batch)]
    _run([(f"{mode} batch {run.batch}", partial(measure, kind, run)) for run in runs], out, as_json)


def runtime(
    models: Models,
    against: Against = "conv_resnet50",
    runtime_name: Annotated[str, typer.Option("--runtime", help="onnxruntime or openvino.")] = "onnxruntime",
    operators: Annotated[str, typer.Option(help="Of ONNX files: standard or convattn.")] = "standard",
    precision: Annotated[str, typer.Option(help="Of the files: float32, float16, bfloat16 or int8.")] = "float32",
    size: Size = 224,
    batch: Batch = "1",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes for each file.")] = 5,
    allow_busy: AllowBusy = False,
    out: Out = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Compare exported networks."""
    from benchmarks.runtimes import Runtime, RuntimeRun, measure
    from convattn.export.report import Operators, Precision

    for name, value, known in (
        ("--runtime", runtime_name, get_args(Runtime)),
        ("--operators", operators, get_args(Operators)),
        ("--precision", precision, get_args(Precision)),
    ):
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    common: dict[str, Any] = {"size": size, "rounds": rounds, "allow_busy": allow_busy, "dtype": precision}
    common |= {"threads": choose_threads(threads), "runtime": runtime_name, "operators": operators}
    runs = [RuntimeRun(models=tuple(models), base=against, batch=images, **common) for images in _batches(batch)]
    _run([(f"{runtime_name} batch {run.batch}", partial(measure, run)) for run in runs], out, as_json)


def exports(
    out: Out = Path("results"),
    docs_folder: Annotated[Path, typer.Option("--docs", help="Folder of the page.")] = Path("docs"),
    from_record: Annotated[bool, typer.Option("--from-record", help="Write the page alone.")] = False,
) -> None:
    """Export everything."""
    from benchmarks import exports as room

    record, console = out / room.RECORD, make_console()
    cells = room.read(record) if from_record else room.measure(record, on_progress=_line(console))
    (docs_folder / room.PAGE).write_text(room.page(cells), encoding="utf-8")
    console.print(str(docs_folder / room.PAGE), highlight=False, soft_wrap=True)


def gpu_kernels(
    arch: Annotated[
        list[int] | None, typer.Option(help="80, 90 or 100; may be given again. Without it, all.", show_default=False)
    ] = None,
    out: Out = Path("results"),
    docs_folder: Annotated[Path, typer.Option("--docs", help="Folder of the page.")] = Path("docs"),
) -> None:
    """Compile the GPU kernels."""
    from benchmarks import gpu_kernels as room
    from benchmarks.gpu_compile import SHARED

    console = make_console()
    rows = room.measure(out / room.RECORD, arch or tuple(SHARED), on_progress=_line(console))
    (docs_folder / room.PAGE).write_text(room.page(rows), encoding="utf-8")
    console.print(str(docs_folder / room.PAGE), highlight=False, soft_wrap=True)


def _line(console: Any) -> "OnProgress":
    return lambda done, what: console.print(f"{done:4.0%} {what}", highlight=False)


def memory(
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 8,
    channels: Annotated[int, typer.Option(min=4, help="Channels, divisible by 4.")] = 64,
    size: Annotated[int, typer.Option(min=4, help="Height and width of the map.")] = 56,
    processes: Annotated[int, typer.Option(min=1, help="Fresh processes for every layer.")] = 5,
    threads: Threads = None,
    out: Out = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Peak memory of one layer."""
    from benchmarks.memory import MemoryCase, measure

    if channels % 4:
        raise UserError(f"--channels must be divisible by 4, got {channels}")
    case = MemoryCase(batch, channels, size, size, threads=choose_threads(threads))
    _run([("memory", lambda on_progress: measure(case, processes=processes, on_progress=on_progress))], out, as_json)


def data(
    workers: Annotated[str, typer.Option(help="Processes that load: 2, or several as in 0,1,2.")] = "0,1,2",
    images: Annotated[int, typer.Option(min=100, help="JPEGs of 256x256.")] = 4000,
    size: Annotated[int, typer.Option(min=32, help="Height and width of the crops.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Epochs of each source, in turns.")] = 3,
    allow_busy: AllowBusy = False,
    out: Out = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Training images a second."""
    from benchmarks.loading import Loading, measure

    common: dict[str, Any] = {"images": images, "size": size, "batch": batch, "rounds": rounds}
    runs = [Loading(workers=each, allow_busy=allow_busy, **common) for each in _numbers("--workers", workers, 0)]
    _run([(f"loading with {run.workers} workers", partial(measure, run)) for run in runs], out, as_json)


def start(
    images: Annotated[int, typer.Option(min=1000, help="PNGs of 8x8.")] = 200_000,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Starts on each form.")] = 3,
    threads: Threads = None,
    allow_busy: AllowBusy = False,
    out: Out = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Seconds and memory until the first step."""
    from benchmarks.starting import Starting, measure

    common: dict[str, Any] = {"rounds": rounds, "threads": choose_threads(threads), "allow_busy": allow_busy}
    run = Starting(images=images, workers=workers, **common)
    _run([("starting", partial(measure, run))], out, as_json)


def docs(
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("docs"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if they are out of date.")] = False,
) -> None:
    """Write the page of benchmarks."""
    if not records.is_dir():
        raise UserError(f"no folder {records}: give the folder of the records with --records")
    found = read_records(records)
    console = make_console()
    if check:
        stale = page.stale(found, out)
        if stale:
            raise UserError(f"out of date: {', '.join(map(str, stale))}; write them with 'python -m benchmarks docs'")
        console.print(f"{out / page.PAGE} is what {len(found)} records say", soft_wrap=True, highlight=False)
        return
    for path in page.write(found, out):
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


VERBS: dict[Callable[..., None], str] = {
    op: helps.OP_HELP,
    model: helps.MODEL_HELP,
    runtime: helps.RUNTIME_HELP,
    exports: helps.EXPORTS_HELP,
    gpu_kernels: helps.GPU_KERNELS_HELP,
    memory: helps.MEMORY_HELP,
    data: helps.DATA_HELP,
    start: helps.START_HELP,
    docs: helps.DOCS_HELP,
}
for _verb, _help in VERBS.items():
    _verb.__doc__ = _help
    app.command()(_verb)
app.command()(budget)


def _batches(text: str) -> list[int]:
    """``"1,8"`` -> ``[1, 8]``."""
    return _numbers("--batch", text, 1)


def _numbers(option: str, text: str, least: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and least <= int(part) <= 4096 for part in parts):
        what = "a number of images" if option == "--batch" else "a number"
        raise UserError(f"{option} must be {what}, or several as in {least},8, got {text!r}")
    return list(dict.fromkeys(map(int, parts)))


def _mode(mode: str) -> str:
    if mode not in MODES:
        raise UserError(f"--mode must be {' or '.join(MODES)}, got {mode!r}")
    return mode


def _place(threads: int | None, isa: str, device: str, dtype: str) -> dict[str, Any]:
    """Where measurements run; a UserError for what this machine has not."""
    threads = choose_threads(threads)
    if isa not in ISAS:
        raise UserError(f"--isa must be one of {', '.join(ISAS)}, got {isa!r}")
    if dtype not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    require_device(device)
    return {"threads": threads, "isa": isa, "device": device, "dtype": dtype}


def _run(jobs: list[Job], out: Path, as_json: bool) -> None:
    """Measure one after the other, writing every record at once; then show them."""
    records, paths, failures = [], [], []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    show = make_console(stderr=True)
    with Progress(*columns, console=show, transient=True, disable=not show.is_terminal, refresh_per_second=2) as bar:
        whole = bar.add_task("", total=len(jobs))
        for done, (what, measure) in enumerate(jobs):

            def on_progress(part: float, doing: str, done: int = done, what: str = what) -> None:
                bar.update(whole, completed=done + part, description=escape(f"{what}: {doing}"))

            on_progress(0.0, "starting")
            try:
                record = measure(on_progress)
            except RuntimeError as error:  # one process that fails is not the end of the others
                failures.append(f"{what}: {error}")
                continue
            records.append(record)
            paths.append(write_record(record, out))
    if as_json:
        print(json.dumps([json.loads(to_json(record)) for record in records], indent=2))
    elif records:
        _show(records, paths)
    wrong = [
        f"{record.slug}: {name} is wrong: {check.note}"
        for record in records
        for name, check in record.checks.items()
        if check.state == "wrong"
    ]
    for problem in [*failures, *wrong]:
        make_console(stderr=True).print(f"[bold red]failed:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if failures or wrong:
        raise typer.Exit(1)


def _show(records: list[Record], paths: list[Path]) -> None:
    console = make_console()
    for title, head, rows in page.tables(records, page.place_of):
        table = Table(*head, title=escape(title))
        for row in rows:
            table.add_row(*(re.sub(r"\*\*(.+?)\*\*", r"[bold red]\1[/]", escape(cell)) for cell in row))
        print_table(console, table)
    for line in page.absences(records):
        console.print(line, style="dim", soft_wrap=True, highlight=False, markup=False)
    if any(record.environment.quiet == "no" for record in records):
        console.print("The machine was busy: do not trust these times.", style="yellow")
    for path in paths:
        console.print(f"record: {path}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"next: {_next(records[0])}", highlight=False, soft_wrap=True)


def _next(record: Record) -> str:
    """Return what a person may want to run after a measurement."""
    base, *others = dict.fromkeys(name.partition("@")[0] for name in (record.base, *record.results))
    networks = " ".join(others or [base])
    steps = {
        "op": "python -m benchmarks model acmix_resnet50   (a whole network beside the plain one)",
        "memory": "python -m benchmarks op 'acmix*' --mode train   (what the layer costs in time)",
        "model": f"python -m benchmarks model {networks} --mode train   (their training steps)",
        "runtime": f"python -m benchmarks model {networks}   (the same in PyTorch)",
        "data": "python -m benchmarks start   (what a run needs to start on many images)",
        "start": "python -m benchmarks data   (how fast the images come then)",
        "train": f"convattn cost {networks} {base}   (parameters and multiply-adds)",
    }
    return steps[record.kind] + "\nthen: python -m benchmarks docs   (the page of all records)"
