"""The same small data set in every format gives the same loss curve, to the last digit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convattn.data.sampler import GlobalBatchSampler
from convattn.data.types import Split
from convattn.tasks.config import TaskName
from convattn.tasks.loaders import SkipLog
from convattn.tasks.recipes import load_recipe, parse_overrides
from convattn.tasks.task import task_of
from convattn.tasks.training import prepare
from tests.data import same_data
from tests.data.same_data import Write
from tests.tasks.dense_runs import BOXES, PIXELS, SMALL

CLASSIFIER = ["model=test_resnet", "model_args={}", "data.image_size=32", "mix.prob=0", "memory_format=contiguous"]
SETTINGS: dict[TaskName, tuple[str, list[str]]] = {
    "classification": ("folder", [*CLASSIFIER, "batch_size=4", "data.workers=0", "trainer.accelerator=cpu"]),
    "detection": ("folder-detection", [*SMALL[:2], *SMALL[5:], *BOXES]),
    "instances": ("folder-instances", [*SMALL[:2], *SMALL[5:], *BOXES]),
    "segmentation": ("folder-segmentation", [*SMALL[:2], *SMALL[5:], *PIXELS]),
}
FORMATS: dict[TaskName, dict[str, Write]] = {
    "classification": same_data.CLASS_FORMATS,
    "detection": same_data.BOX_FORMATS,
    "instances": same_data.POLYGON_FORMATS,
    "segmentation": same_data.MAP_FORMATS,
}


def curve(task_name: TaskName, data: Path, out: Path) -> list[float]:
    """Train for two epochs, with all that is random, and return the loss of every step and of the validation."""
    name, settings = SETTINGS[task_name]
    recipe = load_recipe(name, {**parse_overrides(settings), "data.folder": str(data)})
    job = prepare(recipe, out)
    recipe, task, skip_log = job.recipe, task_of(job.recipe), SkipLog()
    sampler = GlobalBatchSampler(len(job.data.train), recipe.batch_size, seed=recipe.seed)
    objective = task.objective(recipe, job.data)
    optimizer = torch.optim.AdamW(job.model.parameters(), 1e-3)
    losses = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        job.model.train()
        for batch in task.training_loader(recipe, job.data, sampler, skip_log):
            torch.manual_seed(len(losses))  # detectors draw their regions
            loss = objective.loss(job.model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    job.model.eval()
    with torch.inference_mode():
        for batch in task.evaluation_loader(recipe, job.data, skip_log):
            objective.update(job.model, batch)
    return [*losses, *objective.compute().values()]


@pytest.mark.parametrize("task", SETTINGS)
def test_the_same_data_gives_the_same_curve(tmp_path: Path, task: TaskName) -> None:
    first, *others = FORMATS[task]
    expected = curve(task, FORMATS[task][first](tmp_path / first), tmp_path)
    assert len({round(loss, 6) for loss in expected[:6]}) == 6
    for name in others:
        pytest.importorskip({"hub": "datasets", "parquet": "pyarrow"}.get(name, "torch"))
        found = curve(task, FORMATS[task][name](tmp_path / name), tmp_path)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=f"{name}: {found} {expected}")


@pytest.mark.parametrize("task", SETTINGS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_every_format_gives_its_splits_to_measure_on(tmp_path: Path, task: TaskName, split: Split) -> None:
    name, settings = SETTINGS[task]
    recipe = load_recipe(name, parse_overrides(settings))
    for form, write in FORMATS[task].items():
        data = write(tmp_path / form)
        classes, images, skipped = task_of(recipe).open_other(data, list(same_data.CLASSES), recipe, split=split)
        assert (classes, len(images), skipped) == (list(same_data.CLASSES), 12, [])
        assert images.image(5).tobytes() == same_data.image(split, 11).tobytes()
