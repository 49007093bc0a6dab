"""``python -m benchmarks``."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import page
from benchmarks.budget import budget
from benchmarks.cases import ABOUT, CASES, find_cases
from benchmarks.fresh import OnProgress
from benchmarks.record import ISAS, Record, read_records, to_json, write_record
from benchmarks.showing import show
from convattn.cli._options import choice
from convattn.cli._tables import make_console, say
from convattn.cli.bench import Device, Mode, Threads, choose_threads, require_device
from convattn.errors import UserError

app = typer.Typer(
    name="benchmarks",
    help="Measure operators, networks, training and memory, beside rivals and the plain convolution.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Cases = Annotated[list[str] | None, typer.Argument(help="Names, or patterns with *.", show_default=False)]
Models = Annotated[list[str], typer.Argument(help="Names; 'convattn list' has them.", show_default=False)]
Against = Annotated[str, typer.Option(help="The plain network.")]
Size = Annotated[int, typer.Option(min=32, help="Height and width of the images.")]
Batch = Annotated[str, typer.Option(help="Images at a time: 8, or several as in 1,8.")]
Isa = Annotated[str, choice("--isa", "At most avx512, avx2 or baseline, on all sides.", *ISAS)]
DTYPES = ("float32", "bfloat16", "float16")
Dtype = Annotated[str, choice("--dtype", "float32, bfloat16 or float16; in training, of autocast.", *DTYPES)]
Runtime = Annotated[str, choice("--runtime", "onnxruntime or openvino.", "onnxruntime", "openvino")]
Operators = Annotated[str, choice("--operators", "Of the files: standard or convattn.", "standard", "convattn")]
Precision = Annotated[str, choice("--precision", "Of the files: float32, float16, bfloat16 or int8.", *DTYPES, "int8")]
Rounds = Annotated[int, typer.Option(min=2, help="Rounds of turns; what is slow sits some out.")]
Processes = Annotated[int, typer.Option(min=0, help="Fresh processes for each peak of memory; 0 leaves it out.")]
Subjects = Annotated[str, typer.Option(help="Only these beside the convolution, as in native,unfold.")]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile and FlexAttention too: slow to compile.")]
AllowBusy = Annotated[bool, typer.Option("--allow-busy", help="Measure on a busy machine; the record says so.")]
Out = Annotated[Path, typer.Option(help="Folder for the records.")]
Docs = Annotated[Path, typer.Option("--docs", help="Folder of the page.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write the records as JSON for programs.")]

Job: TypeAlias = "tuple[str, Callable[[OnProgress], Record]]"
"""What is measured, for people, and what measures it."""


def op(
    cases: Cases = None,
    mode: Mode = "forward",
    batch: Batch = "1",
    threads: Threads = None,
    isa: Isa = "default",
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
    """Time operators beside other forms of them and the plain convolution, each checked before.

    [bold]Examples[/]

      python -m benchmarks op --list                   the cases

      python -m benchmarks op acmix-64@56              one case, batch 1

      python -m benchmarks op 'acmix*' --batch 1,8 --mode train

      python -m benchmarks op acmix-96@20-s2 --threads 1 --isa avx2

      python -m benchmarks op attend-64@56 --device cuda --dtype bfloat16 --batch 64
    """
    from benchmarks.op import OpRun, measure

    if list_them:
        for case in CASES:
            print(f"{case.name:18} {ABOUT[case.operator]}")
        return
    common: dict[str, Any] = {"mode": mode, "rounds": rounds, "allow_busy": allow_busy, "compiled": compile_too}
    common |= _place(threads, isa, device, dtype) | {"subjects": tuple(filter(None, subjects.split(",")))}
    every = [(case.name, images) for case in find_cases(cases or ["*"]) for images in _batches(batch)]
    runs = [OpRun(case=case, batch=images, **common) for case, images in every]
    _run([(f"{run.case} {mode} batch {run.batch}", partial(measure, run)) for run in runs], out, as_json)


def model(
    models: Models,
    against: Against = "conv_resnet50",
    mode: Mode = "forward",
    size: Size = 224,
    batch: Batch = "1",
    threads: Threads = None,
    isa: Isa = "default",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    rounds: Rounds = 30,
    processes: Processes = 3,
    allow_busy: AllowBusy = False,
    out: Out = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Compare networks in turns, time and peak memory: inference, all folded, or the training step.

    [bold]Examples[/]

      python -m benchmarks model acmix_resnet50        beside conv_resnet50, batch 1

      python -m benchmarks model acmix_resnet50 sasa_resnet50 --batch 1,8

      python -m benchmarks model acmix_resnet26 --against conv_resnet26 --threads 1 --processes 0

      python -m benchmarks model acmix_resnet50 --mode train --batch 8     forward, loss, backward, SGD

      python -m benchmarks model xvolution_resnet50 --against xvolution_resnet50@trained     what folding brings

      python -m benchmarks model resnet50@packed --against resnet50     weights packed once, and at every call
    """
    from benchmarks.network import NetworkRun, measure

    kind: Any = "train" if mode == "train" else "model"
    common: dict[str, Any] = {"size": size, "rounds": rounds, "processes": processes, "allow_busy": allow_busy}
    common |= _place(threads, isa, device, dtype)
    runs = [NetworkRun(models=tuple(models), base=against, batch=images, **common) for images in _batches(batch)]
    _run([(f"{mode} batch {run.batch}", partial(measure, kind, run)) for run in runs], out, as_json)


def runtime(
    models: Models,
    against: Against = "conv_resnet50",
    runtime: Runtime = "onnxruntime",
    operators: Operators = "standard",
    precision: Precision = "float32",
    size: Size = 224,
    batch: Batch = "1",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="Processes for each file.")] = 5,
    allow_busy: AllowBusy = False,
    out: Out = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Exported networks in onnxruntime or OpenVINO beside a plain network that is exported alike.

    [bold]Examples[/]

      python -m benchmarks runtime acmix_resnet50 --operators convattn

      python -m benchmarks runtime acmix_swin_tiny --against swin_tiny --batch 1,8

      python -m benchmarks runtime acmix_resnet50 --runtime openvino --operators convattn

      python -m benchmarks runtime acmix_resnet50 --runtime openvino --precision bfloat16

      python -m benchmarks runtime acmix_resnet50 --precision int8

      python -m benchmarks runtime san10 --against san10@pytorch
    """
    from benchmarks.runtimes import RuntimeRun, measure

    common: dict[str, Any] = {"size": size, "rounds": rounds, "allow_busy": allow_busy, "dtype": precision}
    common |= {"threads": choose_threads(threads), "runtime": runtime, "operators": operators}
    runs = [RuntimeRun(models=tuple(models), base=against, batch=images, **common) for images in _batches(batch)]
    _run([(f"{runtime} batch {run.batch}", partial(measure, run)) for run in runs], out, as_json)


def exports(
    out: Out = Path("results"),
    docs_folder: Docs = Path("docs"),
    from_record: Annotated[bool, typer.Option("--from-record", help="Write the page alone.")] = False,
) -> None:
    """Every network and head in every format of export; docs/exports.md shows what came of it.

    [bold]Example[/]

      python -m benchmarks exports
    """
    from benchmarks import exports as room

    record, console = out / room.RECORD, make_console()
    cells = room.read(record) if from_record else room.measure(record, on_progress=_line(console))
    (docs_folder / room.PAGE).write_text(room.page(cells), encoding="utf-8")
    say(console, str(docs_folder / room.PAGE))


def gpu_kernels(
    arch: Annotated[
        list[int] | None, typer.Option(help="80, 90 or 100; may be given again. Without it, all.", show_default=False)
    ] = None,
    out: Out = Path("results"),
    docs_folder: Docs = Path("docs"),
) -> None:
    """Registers, spills and shared memory of every GPU kernel, compiled without a GPU.

    Stop it whenever you like: the same command goes on. docs/gpu-kernels.md shows what came of it.

    [bold]Example[/]

      python -m benchmarks gpu-kernels --arch 90
    """
    from benchmarks import gpu_kernels as room
    from benchmarks.gpu_compile import SHARED

    console = make_console()
    rows = room.measure(out / room.RECORD, arch or tuple(SHARED), on_progress=_line(console))
    (docs_folder / room.PAGE).write_text(room.page(rows), encoding="utf-8")
    say(console, str(docs_folder / room.PAGE))


def gpu_warm(network: str = "acmix_resnet50", batch: int = 64, dtype: Dtype = "bfloat16") -> None:
    """Compile what a network's ACmix layers launch on a GPU, all kinds of layers at once, before it is measured.

    [bold]Example[/]

      python -m benchmarks gpu-warm --network acmix_resnet50 --batch 64
    """
    from benchmarks.gpu_warm import compiled

    require_device("cuda")
    for layer in compiled(network, batch, dtype):
        say(make_console(), f"compiled {layer}")


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
    """Peak memory of one layer, forward and backward, beside an unfold formulation and a convolution.

    [bold]Examples[/]

      python -m benchmarks memory

      python -m benchmarks memory --channels 128 --size 28 --processes 3
    """
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
    """Training images a second: class folders, tar shards, and timm's reader of the same shards.

    [bold]Examples[/]

      python -m benchmarks data                        with 0, 1 and 2 workers

      python -m benchmarks data --workers 8 --images 50000 --batch 256
    """
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
    """Seconds and peak memory until convattn train has done its first step on many small images.

    [bold]Examples[/]

      python -m benchmarks start                       200,000 images in folders, shards and a table

      python -m benchmarks start --images 20000 --rounds 3
    """
    from benchmarks.starting import Starting, measure

    common: dict[str, Any] = {"rounds": rounds, "threads": choose_threads(threads), "allow_busy": allow_busy}
    run = Starting(images=images, workers=workers, **common)
    _run([("starting", partial(measure, run))], out, as_json)


def docs(
    records: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("docs"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if they are out of date.")] = False,
) -> None:
    """Write docs/benchmarks.md and its charts from the newest records.

    [bold]Examples[/]

      python -m benchmarks docs

      python -m benchmarks docs --check                says whether they are up to date
    """
    if not records.is_dir():
        raise UserError(f"no folder {records}: give the folder of the records with --records")
    found = read_records(records)
    console = make_console()
    if check:
        stale = page.stale(found, out)
        if stale:
            raise UserError(f"out of date: {', '.join(map(str, stale))}; write them with 'python -m benchmarks docs'")
        say(console, f"{out / page.PAGE} is what {len(found)} records say")
        return
    say(console, *map(str, page.write(found, out)))


VERBS = (op, model, runtime, exports, gpu_kernels, gpu_warm, memory, data, start, docs)
for _verb in (*VERBS, budget):
    app.command()(_verb)


def _batches(text: str) -> list[int]:
    """``"1,8"`` -> ``[1, 8]``."""
    return _numbers("--batch", text, 1)


def _numbers(option: str, text: str, least: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and least <= int(part) <= 4096 for part in parts):
        what = "a number of images" if option == "--batch" else "a number"
        raise UserError(f"{option} must be {what}, or several as in {least},8, got {text!r}")
    return list(dict.fromkeys(map(int, parts)))


def _place(threads: int | None, isa: str, device: str, dtype: str) -> dict[str, Any]:
    """Where measurements run; a UserError for what this machine has not."""
    threads = choose_threads(threads)
    require_device(device)
    return {"threads": threads, "isa": isa, "device": device, "dtype": dtype}


def _run(jobs: list[Job], out: Path, as_json: bool) -> None:
    """Measure one after the other, writing every record at once; then show them."""
    records, paths, failures = [], [], []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    errors = make_console(stderr=True)
    with Progress(
        *columns, console=errors, transient=True, disable=not errors.is_terminal, refresh_per_second=2
    ) as bar:
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
        show(records, paths)
    wrong = [
        f"{record.slug}: {name} is wrong: {check.note}"
        for record in records
        for name, check in record.checks.items()
        if check.state == "wrong"
    ]
    for problem in [*failures, *wrong]:
        errors.print(f"[bold red]failed:[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if failures or wrong:
        raise typer.Exit(1)
