"""``convattn train``."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from convattn.cli._run_lines import faster, job_lines, rate_lines, result_lines, stop_lines
from convattn.cli._tables import counting, say
from convattn.cli._training_packages import training_packages
from convattn.data.remote import is_url
from convattn.errors import UserError, user_path
from convattn.tasks.interrupt import STOPPED, RunInterrupted, Stopped
from convattn.tasks.names import TaskName

if TYPE_CHECKING:
    from convattn.tasks.config import Recipe
    from convattn.tasks.training import Job

SMALL = "-small"
"""What follows the name of a folder's recipe in that of the one that a CPU gets: a network and images of its size."""

FOLDER, FINETUNE = "folder", "finetune"
"""The recipes for a folder of photos: from random weights, and from pretrained ones."""

SIZES = (
    *("model", "model_args", "pretrained", "weights", "backbone_weights", "network"),
    *("data.image_size", "segmentation_augment"),
)
"""The settings that say how large the network and its images are: who gives one gets the recipe for a GPU."""


Task = Annotated[TaskName | None, typer.Option(help="What is learned; else the recipe's.", show_default=False)]
Data = Annotated[str | None, typer.Option(help="Your images; else the embedded ones.", show_default=False)]
Head = Annotated[
    str | None,
    typer.Option(help="Detector or segmenter on the model: retinanet, mask_rcnn, upernet ...", show_default=False),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out what is wrong in the data, and list it.")]
Model = Annotated[str | None, typer.Option(help="Model name; see convattn list.", show_default=False)]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="Name or .yaml file; else the task's own.", show_default=False),
]
Out = Annotated[Path, typer.Option(help="Where the run's folder is made.")]
Resume = Annotated[Path | None, typer.Option(help="Run folder to continue.", show_default=False)]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.", show_default=False)]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate: optimizer.lr.", show_default=False)]
BatchSize = Annotated[int | None, typer.Option(help="Images per step, over all devices.", show_default=False)]
Devices = Annotated[str | None, typer.Option(help="Lightning: how many, which (0,1), or auto.", show_default=False)]
Accelerator = Annotated[str | None, typer.Option(help="Lightning: cpu, gpu, mps, auto.", show_default=False)]
Strategy = Annotated[str | None, typer.Option(help="Sharing of the work: auto, ddp, fsdp.", show_default=False)]
Precision = Annotated[str | None, typer.Option(help="Lightning: 32-true, bf16-mixed, ...", show_default=False)]
NumNodes = Annotated[int | None, typer.Option(help="Lightning: number of machines.", show_default=False)]
Accumulate = Annotated[int | None, typer.Option(help="Batches per step of the optimizer.", show_default=False)]
Patience = Annotated[
    int | None, typer.Option(help="End after so many epochs without a better score.", show_default=False)
]
Folds = Annotated[
    int | None,
    typer.Option(min=2, help="Train so many times, each time on other images; k-fold.", show_default=False),
]
Loggers = Annotated[
    str | None, typer.Option(help="tensorboard, csv, wandb, mlflow; several with commas.", show_default=False)
]
FindLr = Annotated[bool, typer.Option("--find-lr", help="Suggest a learning rate with a picture, do not train.")]
Trust = Annotated[bool, typer.Option("--trust", help="Let the recipe's file or the run fetch networks: hf-hub:...")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", show_default=False)]


def train(
    settings: Settings = None,
    task: Task = None,
    data: Data = None,
    skip_bad: SkipBad = False,
    model: Model = None,
    head: Head = None,
    recipe: RecipeName = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    find_lr: FindLr = False,
    devices: Devices = None,
    accelerator: Accelerator = None,
    strategy: Strategy = None,
    precision: Precision = None,
    num_nodes: NumNodes = None,
    accumulate: Accumulate = None,
    patience: Patience = None,
    folds: Folds = None,
    loggers: Loggers = None,
    trust: Trust = False,
) -> None:
    """Train a classifier, a detector or a segmenter and write a report with pictures.

    [bold]Examples[/]

      convattn train                                     real digits, no download

      convattn train --data photos/                      photos/<class>/*.jpg

      convattn train --data photos/ pretrained=false     from random weights

      convattn train --data photos/ weights=runs/latest  from an earlier run's

      convattn train --data photos/ --model resnet18 convert.to=xvolution

      convattn train --task detection                    boxes on embedded scenes

      convattn train --task detection --data coco/       your COCO annotations

      convattn train --task instances --data coco/       masks too

      convattn train --task segmentation --data pairs/   images/, labels/*.png

      convattn train --task detection --head retinanet --model conv_resnet14

      convattn train --data photos/ --epochs 50 --lr 0.0005

      convattn train --data photos/ --find-lr            which rate to take

      convattn train --recipe imagenet-resnet --data imagenet/ --devices 8

      convattn train --data photos/ --folds 5            k-fold

      convattn train --resume runs/latest                go on where it stopped

    Any setting of the recipe can be given as key=value; an unknown key is
    answered with the nearest one. convattn check-data looks through your data.
    """
    from convattn.tasks.recipes import parse_overrides

    options = {
        "data.folder": data,
        "data.bad": "skip" if skip_bad else None,
        "model": model,
        "network.head": head,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer.lr": lr,
        "trainer.devices": int(devices) if devices is not None and devices.lstrip("-").isdecimal() else devices,
        "trainer.accelerator": accelerator,
        "trainer.strategy": strategy,
        "trainer.precision": precision,
        "trainer.num_nodes": num_nodes,
        "accumulate": accumulate,
        "patience": patience,
        "trainer.loggers": None if loggers is None else [name.strip() for name in loggers.split(",")],
    }
    overrides = {key: value for key, value in options.items() if value is not None}
    overrides |= parse_overrides(settings or [])
    with training_packages():
        if find_lr and (resume is not None or folds is not None):
            raise UserError("--find-lr is for a new run: leave --resume and --folds out")
        if find_lr:
            _suggest_lr(recipe, task, overrides, out, trust)
        elif resume is None and folds is not None:
            _start_folds(folds, lambda fold: _start(recipe, task, overrides | fold, out, trust))
        elif resume is None:
            _start(recipe, task, overrides, out, trust)
        elif folds is not None:
            raise UserError("--resume goes on with one run: leave --folds out, the run knows its own")
        elif recipe is not None or task is not None:
            given = "--recipe" if recipe is not None else "--task"
            raise UserError(f"--resume goes on with the run's own recipe: leave {given} out")
        else:
            _resume(resume, overrides, trust)


def _start_folds(folds: int, start: Callable[[dict[str, Any]], tuple[str, float] | None]) -> None:
    """Train once for each fold, and print the mean of the main figure and its standard deviation."""
    from statistics import fmean, stdev

    found = [start({"data.folds": folds, "data.fold": fold}) for fold in range(1, folds + 1)]
    named = [one for one in found if one is not None]
    if named:
        figures = [figure for _, figure in named]
        each = ", ".join(f"{figure:.1%}" for figure in figures)
        line = f"{named[0][0]} over {folds} folds: {fmean(figures):.1%} ± {stdev(figures):.1%} ({each})"
        say(_console(), line)


def _start(
    recipe_name: str | None, task: TaskName | None, overrides: dict[str, Any], out: Path, trust: bool
) -> tuple[str, float] | None:
    job, origin, told = _prepare(recipe_name, task, overrides, out, trust)
    return _go(job, origin, _console(), **told)


def _suggest_lr(
    recipe_name: str | None, task: TaskName | None, overrides: dict[str, Any], out: Path, trust: bool
) -> None:
    from convattn.tasks.lr_finder import draw_rates, find_lr
    from convattn.tasks.training import run_name

    job, origin, told = _prepare(recipe_name, task, overrides, out, trust)
    console = _console()
    say(console, *job_lines(job, origin, told["why"]), *filter(None, [told["remark"]]))
    found = find_lr(job)
    if _is_main_process():
        out.mkdir(parents=True, exist_ok=True)
        picture = out / f"lr-{run_name(job.recipe)}.svg"
        draw_rates(picture, found)
        say(console, *rate_lines(found, picture, job.recipe.optimizer.lr))


def _prepare(
    recipe_name: str | None, task: TaskName | None, overrides: dict[str, Any], out: Path, trust: bool
) -> tuple["Job", str, dict[str, str]]:
    """Return the job, where it comes from, and what else is told of it."""
    from convattn.tasks.recipes import load_recipe, recipe_names

    if task is None and recipe_name is None and isinstance(overrides.get("weights"), str):
        task = load_recipe("digits", overrides, trust=trust).task  # that of the weights
    if task is None and recipe_name is None:
        _check_task_is_meant(overrides)
    name, remark = recipe_name or _own_recipe(task or "classification", overrides), ""
    if recipe_name is None and name == FOLDER:
        name, remark = _folder_recipe(overrides, trust)
    recipe = load_recipe(name, overrides, trust=trust)
    why, small = "", f"{name}{SMALL}" if f"{name}{SMALL}" in recipe_names() else ""
    if recipe_name is None and small and _is_for_cpu(recipe, overrides):
        why = f", so the recipe is {small}, of a size that it trains; --recipe {name} is the full size"
        name, small, recipe = small, "", load_recipe(small, overrides)
    if task is not None and recipe.task != task:
        raise UserError(f"recipe {name} is for {recipe.task}, not for {task}: leave --task or --recipe out")
    from convattn.tasks.training import prepare

    with _looking(_console()) as progress:
        job = prepare(recipe, out, progress)
    origin = f"recipe {name}" if job.checkpoint is None else "started again, goes on"
    return job, origin, {"why": why, "small": small, "remark": remark}


def _folder_recipe(overrides: dict[str, Any], trust: bool) -> tuple[str, str]:
    """Return the recipe for a folder of photos: from pretrained weights where they can be had, else what to say."""
    from convattn.tasks.hub import why_no_weights
    from convattn.tasks.recipes import load_recipe

    if overrides.get("weights") or overrides.get("pretrained"):
        return FINETUNE, ""
    if "pretrained" in overrides or any(key.partition(".")[0] == "model_args" for key in overrides):
        return FOLDER, ""  # a network of another form than the one that has weights
    recipe = load_recipe(FINETUNE, overrides, trust=trust)
    small = _is_for_cpu(recipe, overrides)
    model = load_recipe(f"{FINETUNE}{SMALL}", overrides).model if small else recipe.model
    why = why_no_weights(model)
    return (FOLDER, f"starting from random weights: {why}") if why else (FINETUNE, "")


def _is_for_cpu(recipe: "Recipe", overrides: dict[str, Any]) -> bool:
    """Tell whether a folder is to be trained on a CPU and nobody said how large the network and its images are."""
    from convattn.tasks.devices import trains_on_cpu

    sized = any(f"{key}.".startswith(f"{size}.") for key in overrides for size in SIZES)
    return trains_on_cpu(recipe.trainer.accelerator) and not sized


def _own_recipe(task: TaskName, overrides: dict[str, Any]) -> str:
    """Return the recipe of a task that is given none; some heads have one of their own for the embedded scenes."""
    from convattn.tasks.recipes import load_recipe, recipe_names
    from convattn.tasks.task import task_named

    embedded, folder = task_named(task).recipes
    if overrides.get("data.folder"):
        return folder
    of_head = f"scenes-{overrides.get('network.head')}"
    return of_head if of_head in recipe_names() and load_recipe(of_head).task == task else embedded


def _check_task_is_meant(overrides: dict[str, Any]) -> None:
    """Raise where no task is named but a head is, or a folder that is annotated for another task than classes."""
    from convattn.tasks.task import every_task

    head, folder = overrides.get("network.head"), overrides.get("data.folder")
    if head is not None:
        with_heads = _tasks(one.name for one in every_task() if one.heads)
        raise UserError(f"--head {head}: say what it is to learn: {with_heads}")
    if not folder or is_url(folder):
        return
    found = {one.name: one.recognises(user_path(folder)) for one in every_task()}
    for what in filter(None, found.values()):
        names = [name for name, other in found.items() if other == what]
        raise UserError(f"{folder} holds {what}: say what is to be learned: {_tasks([*names, 'classification'])}")


def _tasks(names: Iterable[str]) -> str:
    *first, last = names
    return f"--task {', '.join(first)} or {last}"


def _resume(path: Path, overrides: dict[str, Any], trust: bool) -> None:
    from convattn.tasks.alone import alone
    from convattn.tasks.finishing import read_result
    from convattn.tasks.recipes import read_recipe
    from convattn.tasks.run_folder import open_run
    from convattn.tasks.task import task_of
    from convattn.tasks.training import WORK, check_resume_overrides, prepare_resume

    check_resume_overrides(overrides, path)
    run, console = open_run(path), _console()
    result = read_result(run)
    if result is not None:
        recipe = read_recipe(run.config, trust=True)
        figure = task_of(recipe).main_figure(result.figures)
        say(console, f"{path} is finished already.", *result_lines(run, result, figure))
        return
    with alone(run.path, WORK) if _is_main_process() else nullcontext():
        with _looking(console) as progress:
            job = prepare_resume(run, overrides, progress, trust=trust)
        _go(job, "resumed" if job.checkpoint else "resumed from its beginning, it has no checkpoint yet", console)


def _go(
    job: "Job", origin: str, console: Console, *, why: str = "", small: str = "", remark: str = ""
) -> tuple[str, float] | None:
    """Train, tell of it, and return the main figure with its name, on the main process."""
    from convattn.tasks.progress import ProgressBar
    from convattn.tasks.task import task_of
    from convattn.tasks.training import train as run_training

    say(console, *job_lines(job, origin, why), *filter(None, [remark]))
    bar = ProgressBar(console, faster(job, small))
    try:
        result = run_training(job, [bar])
    except (RunInterrupted, Stopped) as error:
        if bar.run is None:
            raise Stopped from error
        report = None
        if isinstance(error, RunInterrupted) and not console.quiet:
            with suppress(Stopped):
                report = task_of(job.recipe).write_report(bar.run, job.recipe, job.data)
        say(console, *stop_lines(bar.run, report))
        raise typer.Exit(STOPPED) from error
    if result is None or bar.run is None:
        return None
    figure = task_of(job.recipe).main_figure(result.figures)
    say(console, *result_lines(bar.run, result, figure))
    return figure


@contextmanager
def _looking(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how many of the images have been looked at, while that takes place."""
    from convattn.tasks.pace import Heartbeat

    said = ["looking at the images"]
    heart = Heartbeat(lambda line: say(console, line), lambda: said[0])
    with counting(said[0], console) as move, nullcontext() if console.is_terminal else heart:

        def show(done: int, total: int) -> None:
            move(done, total)
            said[0] = f"looking at the images: {done} of {total}"

        yield show


def _console() -> Console:
    """Return the console of the main process; the others say nothing."""
    return Console(quiet=not _is_main_process())


def _is_main_process() -> bool:
    from lightning.pytorch.utilities import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0
