import csv
import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY
from lightning import Callback, Trainer
from PIL import Image
from safetensors import safe_open
from timm.optim import create_optimizer_v2

from convattn.data.types import ClassificationData, SkippedFile
from convattn.data.writing import write_table
from convattn.errors import UserError
from convattn.layers import ACmix
from convattn.tasks.building import build_model
from convattn.tasks.checkpoints import PROGRESS, read_checkpoint
from convattn.tasks.classification import ClassificationObjective, check_data
from convattn.tasks.config import Recipe
from convattn.tasks.inference import Prediction, evaluate, load_model, predict_images
from convattn.tasks.interrupt import RunInterrupted
from convattn.tasks.module import TrainingModule
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.run_folder import PATHS, RunFolder, append_rows, cut_table, metrics_columns, open_run
from convattn.tasks.training import prepare, prepare_resume, train

ACMIX = ["model=acmix_resnet14", "model_args={stem: small, channels: [8, 8, 8, 8]}", "epochs=1", "data.image_size=16"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny(photos: Path, *more: str) -> Recipe:
    words = [word for word in TINY if not word.startswith("--")]
    return load_recipe("digits", {"data.folder": str(photos), **parse_overrides([*words, *more])})


def only_run(out: Path) -> RunFolder:
    (path,) = [entry for entry in out.iterdir() if not entry.is_symlink()]
    return open_run(path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class StopInValidation(Callback):
    """Presses Ctrl-C as the first validation begins."""

    def on_validation_start(self, trainer: object, pl_module: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_of_the_digits_leaves_everything(tmp_path: Path) -> None:
    from convattn.tasks.inference import evaluate, load_model

    recipe = load_recipe("digits", parse_overrides(ACMIX))
    job = prepare(recipe, tmp_path)
    result = train(job)
    run = only_run(tmp_path)
    assert result is not None
    assert (tmp_path / "latest").resolve() == run.path
    (metrics,) = rows(run.metrics)
    assert tuple(metrics) == metrics_columns(("val_loss", "val_accuracy"))
    assert (metrics["epoch"], metrics["step"]) == ("1", "44")
    paths = rows(run.paths)
    assert tuple(paths[0]) == PATHS
    assert [row["layer"] for row in paths] == [name for name, m in job.model.named_modules() if isinstance(m, ACmix)]
    predictions = rows(run.predictions)
    assert [int(row["index"]) for row in predictions] == list(range(360))
    correct = sum(row["label"] == row["predicted"] for row in predictions)
    assert result.accuracy == correct / 360 == pytest.approx(float(metrics["val_accuracy"]), abs=1e-6)
    top5 = evaluate(load_model(run.path), job.data.val).figures["top5"]
    assert result.figures["top5"] == pytest.approx(top5)
    assert result.accuracy < top5 < 1
    assert json.loads(run.summary.read_text())["report"] == "report.html"
    assert run.report.stat().st_size > 10_000
    assert run.classes.read_text().split() == [str(digit) for digit in range(10)]
    assert list(run.tensorboard.glob("events.*"))
    with safe_open(run.weights, "pt") as weights:
        described = weights.metadata()
    assert described["format"] == "convattn"
    assert json.loads(described["input_size"]) == [3, 16, 16]
    assert json.loads(described["model_args"]) == recipe.model_args


def test_the_weights_of_a_run_and_its_checkpoints_load_and_agree(photos: Path, tmp_path: Path) -> None:
    from convattn.tasks.inference import evaluate, load_model

    job = prepare(tiny(photos), tmp_path)
    result = train(job)
    run = only_run(tmp_path)
    assert result is not None
    for source in (run.path, run.best):
        assert evaluate(load_model(source), job.data.val).figures["top1"] == pytest.approx(result.accuracy)
    assert read_checkpoint(run.last)[PROGRESS]["epoch"] == 12


def test_runs_never_share_a_folder(photos: Path, tmp_path: Path) -> None:
    folders = [prepare(tiny(photos), tmp_path).open_folder().path for _ in range(3)]
    assert len(set(folders)) == 3
    assert (tmp_path / "latest").resolve() == folders[-1].resolve()


def test_a_stop_inside_a_validation_loses_nothing(photos: Path, tmp_path: Path) -> None:
    train(prepare(tiny(photos, "epochs=2"), tmp_path / "whole"))
    with pytest.raises(RunInterrupted):
        train(prepare(tiny(photos, "epochs=2"), tmp_path / "stopped"), [StopInValidation()])
    whole, run = only_run(tmp_path / "whole"), only_run(tmp_path / "stopped")
    place = read_checkpoint(run.last)[PROGRESS]
    assert (place["epoch"], place["batch"]) == (0, 8)
    train(prepare_resume(run))
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    for ours, theirs in zip(rows(run.metrics), rows(whole.metrics), strict=True):
        assert {**ours, "seconds": ""} == {**theirs, "seconds": ""}


def decays(**settings: object) -> tuple[TrainingModule, dict[int, float]]:
    """Return what trains the digits' network, and the weight decay of each parameter by its id."""
    recipe = load_recipe("digits", {"optimizer.weight_decay": 0.3, **settings})
    model = build_model(recipe, classes=10)
    module = TrainingModule(model, recipe, ClassificationObjective(recipe, 10), batches_per_epoch=5)
    groups = module.configure_optimizers().param_groups
    return module, {id(p): group["weight_decay"] for group in groups for p in group["params"]}


def test_alpha_and_beta_never_decay() -> None:
    module, decay = decays()
    rates = [rate for m in module.trained.modules() if isinstance(m, ACmix) for rate in (m.mix.alpha, m.mix.beta)]
    assert len(rates) == 8
    assert {decay[id(rate)] for rate in rates} == {0.0}
    assert decay[id(module.trained.conv1.weight)] == 0.3


def test_weight_decay_reaches_biases_and_norms_where_the_recipe_says_so() -> None:
    module, decay = decays(**{"optimizer.decayed": "all"})
    spared = {name for name, parameter in module.trained.named_parameters() if decay[id(parameter)] == 0}
    assert spared == {f"layer{i}.0.conv2.mix.{rate}" for i in (1, 2, 3, 4) for rate in ("alpha", "beta")}
    assert set(decay.values()) == {0.0, 0.3}


def test_matrix_shaped_parameters_that_a_model_names_do_not_decay() -> None:
    model = build_model(Recipe(model="test_vit"), classes=3)
    optimizer = create_optimizer_v2(model, "sgd", lr=1.0, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.pos_embed)] == 0.0


def test_the_schedule_warms_up_and_falls_to_its_minimum() -> None:
    words = ["schedule={name: cosine, warmup: 0.1, warmup_lr: 0, min_lr: 0.001}", "optimizer.lr=0.1", "epochs=10"]
    recipe = load_recipe("digits", parse_overrides(words))
    module = TrainingModule(build_model(recipe, 10), recipe, ClassificationObjective(recipe, 10), batches_per_epoch=20)
    optimizer = module.configure_optimizers()
    lrs = []
    for step in range(200):
        module.schedule.step_update(step)
        lrs.append(optimizer.param_groups[0]["lr"])
    assert lrs[0] == 0
    assert lrs[10] == pytest.approx(0.05)
    assert max(lrs) == pytest.approx(0.1, rel=0.05)
    assert lrs[110] == pytest.approx(0.001 + 0.099 * (1 + math.cos(math.pi * 110 / 200)) / 2)
    assert lrs[199] == pytest.approx(0.001, rel=0.02)


def test_images_that_vanish_while_training_are_skipped_and_listed(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    job = prepare(tiny(root, "epochs=2"), tmp_path / "runs")
    lost = [job.data.train.name(0), job.data.val.name(0)]
    (root / lost[0]).unlink()
    (root / lost[1]).write_bytes(b"")
    result = train(job)
    run = only_run(tmp_path / "runs")
    assert result is not None
    assert sorted(row["file"] for row in rows(run.skipped)) == sorted(lost)
    assert [row["name"] for row in rows(run.predictions)] == [job.data.val.name(i) for i in range(1, len(job.data.val))]


class LargeWeights(Callback):
    """Makes the first weights so large that what is not black overflows."""

    def on_validation_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        torch.nn.init.constant_(next(pl_module.model.parameters()), 1e38)


def test_an_image_whose_output_is_not_finite_counts_as_wrong_and_is_named(tmp_path: Path) -> None:
    for place, colour in [("train/a/0", 0), ("train/b/0", 0), ("val/a/0", 0), ("val/a/1", 0), ("val/b/white", 255)]:
        file = tmp_path / "images" / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (colour,) * 3).save(file)
    words = ["data.mean=[0,0,0]", "data.std=[0.01,0.01,0.01]", "mix.prob=0", "epochs=2", "batch_size=2"]
    result = train(prepare(tiny(tmp_path / "images", *words), tmp_path / "runs"), [LargeWeights()])
    assert result is not None
    run = only_run(tmp_path / "runs")
    assert result.figures["accuracy"] in (0, 2 / 3)  # black images have one answer
    assert result.figures["top5"] == pytest.approx(2 / 3)
    assert [float(row["val_accuracy"]) for row in rows(run.metrics)][-1] in (0, pytest.approx(2 / 3))
    assert all(math.isfinite(float(row["val_loss"])) for row in rows(run.metrics))
    white = next(row for row in rows(run.predictions) if row["name"] == "val/b/white.png")
    assert (white["label"], white["predicted"], white["probability"]) == ("1", "", "")
    reason = "the model's output is not finite; it counts as wrong"
    assert [(row["file"], row["reason"]) for row in rows(run.skipped)] == [("val/b/white.png", reason)]
    loaded = load_model(run.path)
    scores = evaluate(loaded, prepare(tiny(tmp_path / "images", *words), tmp_path / "runs").data.val)
    assert (scores.images, scores.figures["top5"]) == (3, pytest.approx(2 / 3))
    assert [file.reason for file in scores.skipped] == [reason]
    found = list(predict_images(loaded, [tmp_path / "images/val/b/white.png", tmp_path / "images/val/a/0.png"]))
    assert [type(one) for one in found] == [SkippedFile, Prediction]


def test_divergence_is_told_and_leaves_the_last_sound_checkpoint(photos: Path, tmp_path: Path) -> None:
    job = prepare(tiny(photos, "optimizer={name: sgd, lr: 1.0e+30}", "schedule.warmup=0", "mix.prob=0"), tmp_path)
    with pytest.raises(UserError, match=r"training diverged: .*optimizer.lr=1e\+29"):
        train(job)
    last = only_run(tmp_path).last
    assert not last.exists() or read_checkpoint(last)[PROGRESS]["loss_sum"].isfinite()


class Labelled:
    """Three images with given labels."""

    def __init__(self, *labels: int) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (4, 4))

    def label(self, index: int) -> int:
        return self.labels[index]

    def name(self, index: int) -> str:
        return f"{index}.png"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ClassificationData(["cat"], Labelled(0), Labelled(0)), r"shop has one class only \(cat\)"),
        (ClassificationData(["a", "b"], Labelled(0, 1), Labelled()), "no validation images"),
        (ClassificationData(["a", "b"], Labelled(0, 1, 2), Labelled(0)), r"2.png has label 2, but the 2 classes"),
        (ClassificationData(["a", "b"], Labelled(0, 1), Labelled(-1)), r"0.png has label -1"),
    ],
)
def test_data_that_cannot_be_trained_on(data: ClassificationData, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_data(data, "shop")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model_args.num_classes=7"], "num_classes is 7, but .* has 4 classes"),
        (["model=vit_tiny_patch16_224"], r"cannot take images of 32x32 .*img_size"),
        (["trainer.accelerator=tpuu"], "Lightning cannot train with accelerator=tpuu"),
        (["trainer.devices=-5"], "Lightning cannot train with .*devices=-5"),
        (["trainer.precision=12"], "Lightning cannot train with .*precision=12"),
        (["data.folder=absent"], "absent"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_begins(
    words: list[str], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(prepare(tiny(photos, *words), tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_a_resume_needs_a_run_of_its_own(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such run: .*; give the folder"):
        open_run(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a run folder"):
        open_run(photos)
    run = prepare(tiny(photos), tmp_path).open_folder()
    with pytest.raises(UserError, match=f"the newest of the 1 runs .* is .*{run.path.name}"):
        open_run(tmp_path / "absent")
    with pytest.raises(UserError, match=r"a resumed run keeps its optimizer.lr; what may change: trainer"):
        prepare_resume(run, {"optimizer.lr": 1.0})
    assert prepare_resume(run, {"trainer.devices": 1}).checkpoint is None
    run.last.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"last.ckpt: not a checkpoint.*; delete it to start"):
        prepare_resume(run)
    torch.save({"state_dict": {}}, run.last)
    with pytest.raises(UserError, match=r"not a checkpoint that convattn train wrote"):
        prepare_resume(run)
    torch.save({"state_dict": torch.nn.Linear(1, 1)}, run.last)
    with pytest.raises(UserError, match=r"holds Python objects besides weights, which could run code"):
        prepare_resume(run)


def test_a_checkpoint_of_another_model_is_refused(photos: Path, tmp_path: Path) -> None:
    small = "checkpoint={every_steps: 1, every_seconds: null}"
    with pytest.raises(RunInterrupted):
        train(
            prepare(tiny(photos, small, "model=test_vit", "model_args={img_size: 32}"), tmp_path / "a"),
            [StopInValidation()],
        )
    theirs = only_run(tmp_path / "a").last
    run = prepare(tiny(photos), tmp_path / "b").open_folder()
    shutil.copy(theirs, run.last)
    with pytest.raises(UserError, match="was written for model test_vit, this run has test_resnet"):
        prepare_resume(run)


def test_a_run_whose_folders_changed_is_not_resumed(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    run = prepare(tiny(root), tmp_path / "runs").open_folder()
    (root / "class3").rename(root / "other")
    with pytest.raises(UserError, match=r"was trained on the classes .*class3, but the images now have .*other"):
        prepare_resume(run)


def test_tables_are_cut_where_a_resume_begins(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, ("epoch", "x"), [])
    append_rows(path, [[1, "a"], [2, "b"], [3, "c"]])
    with path.open("a") as file:
        file.write("4")
    cut_table(path, ("epoch", "x"), epochs=2)
    assert path.read_text().split() == ["epoch,x", "1,a", "2,b"]
