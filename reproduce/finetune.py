"""A network trained on one task, converted, and fine-tuned on another: ``python -m reproduce.finetune``.

A plain ResNet-14 learns scikit-learn's digits. Then it is fine-tuned on few images of another task, as it is and with
its 3x3 convolutions converted to X-volution and to ACmix; the same networks also learn that task from random weights.
All rows of a task have the same images, epochs and recipe. The records are kept after every run, and the same command
goes on where it was stopped.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
import timm
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import update_bn

from benchmarks.machine import commit
from convattn.cli import main
from convattn.cli._tables import make_console
from convattn.convert import convert
from convattn.data.classes import open_classes
from convattn.data.digits import open_digits
from convattn.data.transforms import eval_transform
from convattn.data.types import ClassificationData
from convattn.data.writing import write_text
from convattn.layers import ACmix
from convattn.publishing import markdown_table
from convattn.tasks import train
from convattn.tasks.loaders import input_settings
from convattn.tasks.recipes import load_recipe
from reproduce.lines import signed
from reproduce.statistics import deviation, paired

Task: TypeAlias = Literal["rotated", "noisy"]

SIZE, IMAGES = 32, 240
"""Pixels of an image's side, and images that a network is fine-tuned on."""
SOURCE_EPOCHS, EPOCHS = 6, 8
SETTINGS: Mapping[str, Any] = {"batch_size": 16, "optimizer.lr": 2e-3, "ema.decay": None}
"""Of all runs on the other task: 15 steps an epoch, too few for a moving average of the weights."""
MODEL = "conv_resnet14"
ARGS: Mapping[str, Any] = {"attention_kernel_size": 5}
"""As the recipe for digits has it."""

Make: TypeAlias = Callable[[nn.Module], nn.Module]
OPERATORS: Mapping[str, tuple[Make, Make]] = {
    "plain": (lambda net: net, lambda net: net),
    "X-volution": (lambda net: convert(net, "xvolution"), lambda net: convert(net, "xvolution")),
    "ACmix": (
        lambda net: convert(net, "acmix", operator_args=ARGS),
        lambda net: convert(net, lambda conv: ACmix(conv.in_channels, conv.out_channels, stride=conv.stride, **ARGS)),
    ),
}
"""What becomes of a trained network, and of one with random weights."""
STARTS = ("fine-tuned", "from scratch")
BASELINE = ("plain", "fine-tuned")


@dataclass(frozen=True)
class Trained:
    """One run.

    Args:
        task: what it was fine-tuned on.
        network: a key of :data:`OPERATORS`.
        start: one of :data:`STARTS`.
        seed: of the weights, of the order of the images and of their augmentation.
        before: the accuracy before the first step, in per cent, batch norms re-estimated.
        accuracy: of the best epoch, in per cent.
        commit: of the code.
    """

    task: str
    network: str
    start: str
    seed: int
    before: float
    accuracy: float
    commit: str


def changed(image: Image.Image, task: Task, seed: int) -> Image.Image:
    """An image of the other task: turned by up to 60 degrees, or with noise and a covered corner.

    Example:
        >>> changed(Image.new("RGB", (32, 32)), "rotated", 0).size
        (32, 32)
    """
    noise = np.random.default_rng(seed)
    if task == "rotated":
        return image.rotate(float(noise.uniform(-60, 60)), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32) + noise.normal(0, 90, (image.height, image.width, 1))
    y, x = noise.integers(0, 2, 2) * SIZE // 2
    pixels[y : y + SIZE // 2, x : x + SIZE // 2] = 0
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_images(folder: Path, task: Task) -> Path:
    """Write a task as a folder of images: the first training digits, and all that are held out."""
    data = open_digits(SIZE)
    for split, images, count in (("train", data.train, IMAGES), ("val", data.val, len(data.val))):
        for index in range(count):
            target = folder / split / data.classes[images.label(index)] / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                changed(images.image(index), task, index + (10_000 if split == "val" else 0)).save(target)
    return folder


def fresh(seed: int) -> nn.Module:
    """A plain network with random weights."""
    torch.manual_seed(seed)
    return timm.create_model(MODEL, num_classes=10, **load_recipe("digits", {"model": MODEL}).model_args)


@torch.no_grad()
def settled(net: nn.Module, data: ClassificationData) -> float:
    """Re-estimate the batch norms on the training images, and return the accuracy on those held out, in per cent."""
    transform = eval_transform(*input_settings(load_recipe("digits", {"model": MODEL})))
    held, shown = (
        torch.stack([transform(images.image(index)) for index in range(len(images))])
        for images in (data.val, data.train)
    )
    update_bn(shown.split(100), net)
    labels = torch.tensor([data.val.label(index) for index in range(len(data.val))])
    return 100 * float((net.eval()(held).argmax(1) == labels).float().mean())


class Program:
    """The runs of one folder.

    Args:
        out: the folder.
        epochs: of the other task; the digits themselves are learned in :data:`SOURCE_EPOCHS`, or in so many at most.
    """

    def __init__(self, out: Path, epochs: int = EPOCHS) -> None:
        self.out, self.epochs, self.records = out, epochs, out / "finetune.csv"
        self.done = read_records(self.records) if self.records.is_file() else []
        self.commit = commit()

    def run(self, task: Task, seed: int, say: Callable[[str], object]) -> None:
        """Train all rows of a task and a seed that are not done."""
        folder = write_images(self.out / task, task)
        done = {(one.network, one.start) for one in self.done if (one.task, one.seed) == (task, seed)}
        for name, start in [(n, s) for n in OPERATORS for s in STARTS if (n, s) not in done]:
            trained, untrained = OPERATORS[name]
            net, before = fresh(seed), math.nan
            if start == STARTS[0]:
                net.load_state_dict(self._source(seed))
                net = trained(net)
                before = settled(net, open_classes(folder))
            else:
                net = untrained(net)
            accuracy = self._train(net, seed, self.epochs, folder)
            self.done.append(Trained(task, name, start, seed, before, accuracy, self.commit))
            write_records(self.records, self.done)
            say(f"{task}, {name} {start}, seed {seed}: {accuracy:.1f} %")

    def _source(self, seed: int) -> dict[str, torch.Tensor]:
        """The weights of a plain network that has learned the digits."""
        path = self.out / f"digits-{seed}.safetensors"
        if not path.is_file():
            net = fresh(seed)
            self._train(net, seed, min(self.epochs, SOURCE_EPOCHS), None)
            save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)
        return load_file(path)

    def _train(self, net: nn.Module, seed: int, epochs: int, folder: Path | None) -> float:
        """Train a network in place, by the recipe for digits; its best accuracy, in per cent."""
        settings = {"epochs": epochs, "seed": seed, "data.workers": 0, **({} if folder is None else SETTINGS)}
        result = train("digits", settings, model=net, data=folder, out=self.out / "runs")
        shutil.rmtree(self.out / "runs")
        return 100 * result.score if result is not None else math.nan


def read_records(path: Path) -> list[Trained]:
    """The runs that a file holds."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        row |= {"seed": int(row["seed"]), "before": float(row["before"]), "accuracy": float(row["accuracy"])}
    return [Trained(**row) for row in rows]


def write_records(path: Path, runs: Sequence[Trained]) -> None:
    """Write the runs, a line each."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [field.name for field in fields(Trained)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, runs))
    write_text(path, stream.getvalue())


def table(runs: Sequence[Trained], task: Task) -> list[str]:
    """A task's rows as Markdown: before and after, and the gain over the plain network that was fine-tuned."""
    values = {
        (name, start): {r.seed: r for r in runs if (r.task, r.network, r.start) == (task, name, start)}
        for start in STARTS
        for name in OPERATORS
    }
    rows = []
    for (name, start), of_seed in values.items():
        if of_seed:
            base = values[BASELINE]
            common = sorted(of_seed.keys() & base.keys())
            before = [r.before for r in of_seed.values() if not math.isnan(r.before)]
            accuracies = [r.accuracy for r in of_seed.values()]
            gain = paired([of_seed[s].accuracy for s in common], [base[s].accuracy for s in common]) if common else None
            is_base = (name, start) == BASELINE
            tests = [None if gain is None else gain.t_test, None if gain is None else gain.wilcoxon]
            rows.append(
                [
                    f"{name}, {start}",
                    f"{statistics.fmean(before):.1f}" if before else "",
                    f"{statistics.fmean(accuracies):.1f} ± {deviation(accuracies) or 0:.1f}",
                    "baseline" if is_base else signed(None if gain is None else gain.mean),
                    "" if is_base else " / ".join(map(_shown, tests)),
                    str(len(of_seed)),
                ]
            )
    head = ["network", "before, %", "accuracy, %", "gain", "p (t / Wilcoxon)", "seeds"]
    return markdown_table(head, rows, align="numbers")


def _shown(p: float | None) -> str:
    return "–" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def finetune(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every row.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Of every run on the other task.")] = EPOCHS,
    out: Annotated[Path, typer.Option(help="Folder of the records and the table.")] = Path("reproduced/finetune"),
) -> None:
    """Train a network on one task, convert it and fine-tune it on another."""
    console = make_console()
    out.mkdir(parents=True, exist_ok=True)
    program = Program(out, epochs)
    for task in get_args(Task):
        for seed in range(seeds):
            program.run(task, seed, lambda text: console.print(text, highlight=False))
    text = "\n\n".join(f"{task} digits\n\n" + "\n".join(table(program.done, task)) for task in get_args(Task))
    write_text(out / "finetune.md", text + "\n")
    console.print(text, highlight=False, markup=False)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(finetune)

if __name__ == "__main__":
    main(app)
