"""A run of detection, instances and segmentation on the embedded scenes: what it leaves, counted again by others."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_runs import TASKS, recipe, write_coco
from lightning import Callback
from PIL import Image
from safetensors.torch import load_file
from timm import list_models

from convattn.data.coco import DetectionData, open_coco
from convattn.data.segmentation import IGNORE
from convattn.detection.evaluation import FIGURES, Kind
from convattn.tasks.checkpoints import read_checkpoint, shipped_weights
from convattn.tasks.config import Recipe
from convattn.tasks.detection import DetectionTask, as_results, in_file_ids, measure
from convattn.tasks.finishing import read_result
from convattn.tasks.inference import load_model
from convattn.tasks.interrupt import RunInterrupted
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.run_folder import RunFolder, metrics_columns, open_run
from convattn.tasks.task import task_of
from convattn.tasks.training import Job, prepare, prepare_resume, train

EXPECTED = {
    "detection": {"detections.json", "per_class.csv", "curves.json"},
    "instances": {"detections.json", "per_class.csv", "curves.json"},
    "segmentation": {"predictions", "predictions.csv", "per_class.csv", "confusion.csv"},
}
ALWAYS = {"config.yaml", "classes.txt", "metrics.csv", "paths.csv", "skipped.csv", "summary.json", "report.html"}
ALWAYS |= {"weights.safetensors", "last.safetensors", "checkpoints", "tensorboard", ".lock"}


MANY = ["epochs=2", "data.scenes.val=6", "network.args.proposals=[100, 50]", "network.args.score_threshold=0.0"]
LEARNING = {"detection": MANY, "instances": MANY, "segmentation": ["epochs=2"]}


@dataclass(frozen=True)
class Done:
    """A finished run with what it was trained with."""

    job: Job
    run: RunFolder
    figures: dict[str, float]


@pytest.fixture(scope="module", autouse=True)
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded scenes in a cache of their own, on one thread."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def train_in(out: Path, wanted: Recipe) -> Done:
    job = prepare(wanted, out)
    result = train(job)
    assert result is not None
    return Done(job, open_run(out / "latest"), result.figures)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """A run of each task, long enough to find something."""
    return {task: train_in(tmp_path_factory.mktemp(task), recipe(task, *LEARNING[task])) for task in TASKS}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def number(cell: str) -> float:
    return float(cell) if cell else math.nan


@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_everything(task: str, runs: dict[str, Done]) -> None:
    done = runs[task]
    run, parts = done.run, task_of(done.job.recipe)
    assert {path.name for path in run.path.iterdir()} == ALWAYS | EXPECTED[task]
    metrics = rows(run.metrics)
    assert tuple(metrics[0]) == metrics_columns(parts.figures)
    assert [(row["epoch"], row["step"]) for row in metrics] == [("1", "2"), ("2", "4")]
    assert rows(run.paths)[0]["layer"].startswith("backbone.")
    assert rows(run.skipped) == []
    assert run.classes.read_text().split() == (["ground"] if task == "segmentation" else []) + [*"0123456789"]
    page = run.report.read_text()
    assert page.count("<img") + page.count("data:image/") >= 4
    assert list(run.tensorboard.glob("events.*"))


@pytest.mark.parametrize("task", TASKS)
def test_the_summary_is_the_best_epochs_row(task: str, runs: dict[str, Done]) -> None:
    done = runs[task]
    summary = json.loads(done.run.summary.read_text())
    best = rows(done.run.metrics)[summary["best_epoch"] - 1]
    measured = {name: value for name, value in done.figures.items() if math.isfinite(value)}
    assert {name: value for name, value in summary["figures"].items() if value is not None} == measured
    for name, value in done.figures.items():
        assert value == pytest.approx(number(best[name]), abs=1e-9, nan_ok=True), name
    score = task_of(done.job.recipe).score
    assert summary["score"] == pytest.approx(max(number(row[score]) for row in rows(done.run.metrics)))
    assert read_result(done.run) is not None


@pytest.mark.parametrize("task", TASKS)
def test_the_weights_and_checkpoints_load_and_agree(task: str, runs: dict[str, Done]) -> None:
    done = runs[task]
    stored = load_file(done.run.weights)
    kept = shipped_weights(read_checkpoint(done.run.best))
    assert stored.keys() == kept.keys()
    assert all(torch.equal(stored[name], kept[name]) for name in stored)
    image = done.job.data.val.image(0)
    outputs = []
    for source in (done.run.path, done.run.weights, done.run.best):
        loaded = load_model(source)
        assert (loaded.task, loaded.classes) == (task, done.job.data.classes)
        pixels = loaded.transform(image)
        with torch.inference_mode():
            outputs.append(loaded.model(pixels[None] if task == "segmentation" else [pixels]))
    ours = done.job.model.cpu().eval()
    with torch.inference_mode():
        expected = ours(pixels[None] if task == "segmentation" else [pixels])
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


def cocos_figures(truth: Path, results: Path, kind: str) -> dict[str, float]:
    """Score a file of results against an annotation file by pycocotools, as anyone would.

    COCO's results of masks have no boxes: where there are some, ``loadRes`` takes the objects' areas from them.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(str(truth))
        found = json.loads(results.read_text())
        if kind == "segm":
            found = [{key: value for key, value in one.items() if key != "bbox"} for one in found]
        evaluation = COCOeval(objects, objects.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: value if value > -1 else math.nan for name, value in zip(FIGURES, evaluation.stats, strict=True)}


@pytest.mark.parametrize(("task", "kind"), [("detection", "bbox"), ("instances", "bbox"), ("instances", "segm")])
def test_pycocotools_alone_finds_the_same_twelve_figures(task: str, kind: str, runs: dict[str, Done]) -> None:
    done = runs[task]
    images = done.job.data.val
    theirs = cocos_figures(images.annotations, done.run.detections, kind)
    best = rows(done.run.metrics)[json.loads(done.run.summary.read_text())["best_epoch"] - 1]
    prefix = "box" if kind == "bbox" else "mask"
    assert len(theirs) == 12
    for name, value in theirs.items():
        assert number(best[f"{prefix}_{name}"]) == pytest.approx(value, abs=1e-12, nan_ok=True), name
    assert len(json.loads(done.run.detections.read_text())) > len(images)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_nearly_right_results_are_scored_as_pycocotools_scores_their_file(kind: Kind, tmp_path: Path) -> None:
    """With categories that do not count from 1, a crowd and images without objects."""
    _, images, _ = open_coco(write_coco(tmp_path / "data") / "annotations.json")
    found, chance = [], torch.Generator().manual_seed(0)
    for index in range(len(images)):
        target = images.target(index)
        shift = int(torch.randint(0, 3, (), generator=chance))
        masks = target["masks"].roll(shift, -1)[:, None].float()
        scores = torch.rand(len(masks), generator=chance)
        result = {"boxes": target["boxes"] + shift, "labels": target["labels"], "scores": scores, "masks": masks}
        found += as_results(result, int(target["image_id"]), (kind,))
    seen = [image["id"] for image in images.coco_dataset()["images"]]
    ours = measure(images.coco_dataset(), found, (kind,), seen)[kind].figures
    file = tmp_path / "found.json"
    file.write_text(json.dumps(in_file_ids(found, images)))
    theirs = cocos_figures(images.annotations, file, "bbox" if kind == "box" else "segm")
    assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    assert 0.3 < ours["AP"] < 1


@pytest.mark.parametrize(
    ("scores", "best"), [((0.9, 0.8, 0.3), 0.8), ((0.2, 0.1, 0.9), 0.1), ((None, None, 0.9), None)]
)
def test_the_score_that_balances_hits_and_errors_is_kept(
    scores: tuple[float | None, ...], best: float | None, tmp_path: Path
) -> None:
    """Two objects and a false alarm of an image; without a hit nothing is to be chosen."""
    classes, images, _ = open_coco(write_coco(tmp_path / "data") / "annotations.json")
    data, run = DetectionData(classes, images, images), RunFolder(tmp_path)
    entry = next(entry for entry in images.entries if sum(not one.crowd for one in entry.objects) == 2)
    only = DetectionData(classes, images, replace(images, entries=(entry,)))
    boxes = [(one.label, one.box) for one in entry.objects] + [(1, (0.0, 0.0, 1.0, 1.0))]
    found = [
        {"image_id": entry.id, "category_id": images.category_ids[label - 1], "score": score}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1]}
        for (label, (x1, y1, x2, y2)), score in zip(boxes, scores, strict=True)
        if score is not None
    ]
    run.detections.write_text(json.dumps(found))
    task = DetectionTask()
    assert task.describe(data) == {"category_ids": [3, 7]}
    assert task.describe_results(run, only) == ({} if best is None else {"min_score": best})


@pytest.mark.parametrize("task", TASKS)
def test_weights_say_what_answers_need(task: str, runs: dict[str, Done]) -> None:
    done = runs[task]
    best, last = load_model(done.run.path), load_model(done.run.last_weights)
    parts = task_of(done.job.recipe)
    assert best.min_score == parts.describe_results(done.run, done.job.data).get("min_score")
    assert last.min_score is None
    ids = done.job.data.train.category_ids if task != "segmentation" else range(1, 12)
    assert best.category_ids == last.category_ids == list(ids)


def test_results_have_the_ids_of_the_annotation_file(runs: dict[str, Done]) -> None:
    done = runs["instances"]
    truth = json.loads(done.job.data.val.annotations.read_text())
    found = json.loads(done.run.detections.read_text())
    assert {one["category_id"] for one in found} <= {one["id"] for one in truth["categories"]}
    assert {one["image_id"] for one in found} <= {one["id"] for one in truth["images"]}
    sizes = {one["id"]: [one["height"], one["width"]] for one in truth["images"]}
    assert all(one["segmentation"]["size"] == sizes[one["image_id"]] for one in found)


def test_the_label_maps_give_the_miou_when_counted_again(runs: dict[str, Done]) -> None:
    done = runs["segmentation"]
    data, classes = done.job.data.val, len(done.job.data.classes)
    counts = np.zeros((classes, classes), np.int64)
    for index in range(len(data)):
        labels = data.label_map(index)
        found = np.array(Image.open(done.run.label_maps / f"{index:06}.png")).astype(np.int64)
        assert found.shape == labels.shape
        known = labels != IGNORE
        pairs = labels[known] * classes + found[known]
        counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    right, union = np.diag(counts), counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert done.figures["mean_iou"] == pytest.approx((right[union > 0] / union[union > 0]).mean(), abs=1e-6)
    assert done.figures["pixel_accuracy"] == pytest.approx(right.sum() / counts.sum(), abs=1e-6)
    confusion = [[int(row[name]) for name in done.job.data.classes] for row in rows(done.run.confusion)]
    assert np.array_equal(confusion, counts)
    assert [int(row["pixels"]) for row in rows(done.run.per_class)] == counts.sum(1).tolist()


class StopInValidation(Callback):
    """Presses Ctrl-C as the second validation begins."""

    seen = 0

    def on_validation_start(self, trainer: object, pl_module: object) -> None:
        self.seen += 1
        if self.seen == 2:
            os.kill(os.getpid(), signal.SIGINT)


class OneOverflows(Callback):
    """Makes what the network says of one validation image, the first that it sees, not finite."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.image: torch.Tensor | None = None
        pl_module.model.register_forward_hook(self.overflow)

    def overflow(self, model: torch.nn.Module, given: Any, said: Any) -> None:
        if not model.training:
            self.image = given[0][0].clone() if self.image is None else self.image
            for image, answer in zip(given[0], said, strict=True):
                if torch.equal(image, self.image):
                    (answer["boxes"] if isinstance(answer, dict) else answer).fill_(math.inf)


@pytest.mark.parametrize("task", TASKS)
def test_an_image_whose_output_is_not_finite_counts_as_wrong_and_is_named(task: str, tmp_path: Path) -> None:
    job = prepare(recipe(task, *LEARNING[task]), tmp_path)
    result = train(job, [OneOverflows()])
    assert result is not None
    run = open_run(tmp_path / "latest")
    name = job.data.val.name(0)
    reason = "the model's output is not finite; it counts as wrong"
    assert [(row["file"], row["reason"]) for row in rows(run.skipped)] == [(name, reason)]
    best = rows(run.metrics)[result.best_epoch - 1]
    assert number(best[task_of(job.recipe).score]) == pytest.approx(result.score)
    if task == "segmentation":
        assert [number(row["pixel_accuracy"]) == 0 for row in rows(run.predictions)] == [True, False, False, False]
        assert not (run.label_maps / "000000.png").exists()
        assert math.isfinite(number(best["val_loss"]))
    else:
        ids = [entry.id for entry in job.data.val.entries]
        assert {found["image_id"] for found in json.loads(run.detections.read_text())} == set(ids[1:])


@pytest.mark.parametrize("task", [pytest.param("detection", marks=pytest.mark.slow), "instances", "segmentation"])
def test_a_stop_inside_a_validation_loses_nothing_and_leaves_a_report(
    task: str, runs: dict[str, Done], tmp_path: Path
) -> None:
    job = prepare(recipe(task, *LEARNING[task]), tmp_path)
    with pytest.raises(RunInterrupted):
        train(job, [StopInValidation()])
    run = open_run(tmp_path / "latest")
    assert not run.weights.exists()
    assert task_of(job.recipe).write_report(run, job.recipe, job.data) == "report.html"
    page = run.report.read_text()
    measured = "IoU by class" if task == "segmentation" else "Precision over recall"
    assert "<svg" in page
    assert measured in page
    train(prepare_resume(run))
    assert run.weights.read_bytes() == runs[task].run.weights.read_bytes()
    for name in ("metrics.csv", "per_class.csv"):
        ours, theirs = (rows(path / name) for path in (run.path, runs[task].run.path))
        assert [{**row, "seconds": ""} for row in ours] == [{**row, "seconds": ""} for row in theirs]


HEADS = {
    "retinanet": "detection",
    "faster_rcnn": "detection",
    "cascade_rcnn": "detection",
    "mask_rcnn": "instances",
    "cascade_mask_rcnn": "instances",
    "semantic_fpn": "segmentation",
    "upernet": "segmentation",
}
BACKBONES = {
    "acmix_resnet14": {"channels": [8, 8, 16, 16]},
    "xvolution_resnet14": {"channels": [16, 16, 16, 16]},
    "acmix_pvt_tiny": {"embed_dims": [8, 16, 16, 32], "num_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1]},
    "acmix_swin_tiny": {"embed_dim": 12, "depths": [1, 1, 1, 1]},
    "san10": {"widths": [16, 16, 16, 32, 32], "layers": [1, 1, 1, 1, 1]},
    "resnet10t": {"channels": [8, 8, 16, 16]},
}
STEPS = [(head, "acmix_resnet14") for head in HEADS]
STEPS += [(head, name) for head in ("faster_rcnn", "semantic_fpn") for name in BACKBONES if name != "acmix_resnet14"]


@pytest.mark.parametrize(("head", "backbone"), STEPS)
def test_every_head_and_backbone_takes_a_step_from_a_recipe(head: str, backbone: str) -> None:
    task = HEADS[head]
    options = {"upernet": {"channels": 16, "auxiliary_channels": 16}}.get(head)
    wanted = recipe(task, f"model={backbone}", f"network.head={head}", "data.image_size=64")
    arguments = dict(wanted.network.args) if options is None else options
    if head == "retinanet":
        arguments = {key: arguments[key] for key in ("min_size", "max_size", "anchor_scale", "channels")}
    settings = {"model": backbone, "network": {"head": head, "args": arguments}, "model_args": BACKBONES[backbone]}
    words = ["data.scenes.train=8", "data.scenes.val=4", "batch_size=2", "data.workers=0"]
    words += ["segmentation_augment.crop=[64, 64]"] if task == "segmentation" else []
    wanted = load_recipe(f"scenes-{task}", {**parse_overrides(words), **settings})
    assert backbone in list_models(backbone)
    moved, score = one_step(wanted)
    assert moved > 20
    assert score == score or task != "segmentation"


def one_step(wanted: Recipe) -> tuple[int, float]:
    """Return how many parameters moved in one step of a recipe, and the score of a validation image."""
    from convattn.data.sampler import GlobalBatchSampler
    from convattn.tasks.loaders import SkipLog

    task = task_of(wanted)
    data = task.open_data(wanted)
    torch.manual_seed(0)
    model, wanted = task.build(wanted, data)
    sampler = GlobalBatchSampler(len(data.train), wanted.batch_size, seed=0)
    module = task.module(model, wanted, data, sampler.batches_per_epoch)
    optimizer = module.configure_optimizers()
    before = {name: value.detach().clone() for name, value in module.trained.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    loss = module.loss(next(iter(task.training_loader(wanted, data, sampler, SkipLog()))))
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    moved = sum(not torch.equal(value, before[name]) for name, value in module.trained.named_parameters())
    module.eval()
    batch = next(iter(task.evaluation_loader(wanted, data, SkipLog())))
    with torch.no_grad():
        module.validation_step(batch, 0)
    return moved, module.objective.compute()[task.score]
