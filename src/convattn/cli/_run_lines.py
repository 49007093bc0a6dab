"""What ``convattn train`` says before a run, of its end and of how to go on."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from convattn.data.names import counted

if TYPE_CHECKING:
    from convattn.tasks.finishing import Result
    from convattn.tasks.lr_finder import FoundRate
    from convattn.tasks.run_folder import RunFolder
    from convattn.tasks.training import Job

EMBEDDED = {"digits": "scikit-learn's digits", "scenes": "scenes of scikit-learn's digits on its photos"}

FEW = 100
"""With fewer validation images than this, one of them is more than a point, and it is said."""


def job_lines(job: "Job", origin: str, why: str = "") -> list[str]:
    """Return what is trained on what, by which settings and where; ``why`` is said of the recipe."""
    from convattn.tasks.building import network_name
    from convattn.tasks.devices import device_name
    from convattn.tasks.task import task_of

    recipe, data, task = job.recipe, job.data, task_of(job.recipe)
    parameters = sum(parameter.numel() for parameter in job.model.parameters())
    source = recipe.data.folder or EMBEDDED.get(recipe.data.embedded or "", "")
    lines = [
        f"{network_name(recipe)} ({parameters / 1e6:.2f} M parameters) on {source}: {len(data.classes)} classes,"
        f" {len(data.train)} training and {len(data.val)} validation images",
        f"{origin}: {recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.optimizer.name},"
        f" {task.image_size(recipe, job.model)}, seed {recipe.seed}",
        f"on {device_name(recipe.trainer.accelerator)}{why}",
    ]
    file = recipe.weights or recipe.backbone_weights
    if job.checkpoint is None and (file is not None or recipe.pretrained):
        lines.append(f"starting from {file or _pretrained(recipe.model)}")
    if data.skipped:
        first = data.skipped[0]
        lines.append(
            f"skipped {len(data.skipped)} bad files or entries (listed in skipped.csv),"
            f" the first {first.path}: {first.reason}"
        )
    remark = task.remark(data)
    return [*lines, remark] if remark else lines


def _pretrained(model: str) -> str:
    import timm

    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    return f"the pretrained weights {(cfg.hf_hub_id or cfg.url) if cfg is not None else model}"


def faster(job: "Job", small: str = "") -> str:
    """Return what would make a run on a CPU faster; ``small`` is the recipe of a CPU's size, where there is one."""
    from convattn.tasks.devices import trains_on_cpu
    from convattn.tasks.task import task_of

    recipe = job.recipe
    if not trains_on_cpu(recipe.trainer.accelerator):
        return ""
    if job.checkpoint is not None:  # its recipe stays as it is
        return "a GPU"
    smaller = task_of(recipe).smaller(recipe)
    ways = [f"--recipe {small}"] if small else [f"smaller images ({smaller})", "a smaller network (--model)"]
    return ", ".join([*ways, "fewer epochs (--epochs)", "a GPU"])


def result_lines(run: "RunFolder", result: "Result", main: tuple[str, float]) -> list[str]:
    """Return what a run came to, where it lies and what it is good for."""
    from convattn.tasks.finishing import count_skipped

    folder = shown(run.path)
    lines = [
        f"{main[0]} {_percent(main[1])} (best epoch {result.best_epoch} of {result.epochs},"
        f" {result.seconds:.0f} s of training)",
        *_caution(result),
        f"run folder  {folder}",
        f"report      {folder / (result.report or '')}",
        f"weights     {folder / result.weights}",
    ]
    if result.last_weights is not None and result.best_epoch != result.epochs:
        lines.append(f"last epoch  {folder / result.last_weights}")
    skipped = count_skipped(run)
    if skipped:
        lines.append(f"skipped     {skipped} files, listed in {folder / run.skipped.name}")
    return [*lines, f"next        convattn predict --run {folder} IMAGE"]


def _caution(result: "Result") -> list[str]:
    if math.isnan(result.score):
        return []
    ends = result.figures.get("accuracy_low"), result.figures.get("accuracy_high")
    interval = None if None in ends else ends
    return [f"caution     {line}" for line in caution(result.validated, "validation image", interval)]


def caution(images: int, what: str, interval: tuple[float, float] | None) -> list[str]:
    """Say how little a figure of few images means, with the interval of an accuracy."""
    if not 0 < images < FEW:
        return []
    say = f"{counted(images, what)} {'says' if images == 1 else 'say'} little"
    if interval is None:
        return [f"{say}: on others the figure may be quite another"]
    low, high = interval
    return [f"{say}: one is {100 / images:.1f} points, the 95% interval {low:.0%} to {high:.0%}"]


def rate_lines(found: "FoundRate", picture: Path, own: float) -> list[str]:
    """Return the learning rate that a range test suggests, and how to train with it."""
    return [
        f"learning rate {found.rate:.2g}: there the loss falls fastest, of {len(found.rates)} steps from"
        f" {found.rates[0]:.2g} to {found.rates[-1]:.2g} (the recipe's is {own:g})",
        f"picture     {shown(picture)}",
        f"next        the same command with --lr {found.rate:.2g} in place of --find-lr",
    ]


def stop_lines(run: "RunFolder", report: str | None) -> list[str]:
    """Return how to go on with a run that was stopped."""
    so_far = [] if report is None else [f"report so far  {shown(run.path / report)}"]
    return ["Stopped.", *so_far, "Go on with:", f"  convattn train --resume {shown(run.path)}"]


def shown(path: Path) -> Path:
    """Return the path as a person would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _percent(value: float) -> str:
    return "could not be measured: no validation image has an object" if math.isnan(value) else f"{value:.2%}"
