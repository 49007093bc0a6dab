"""Rectangular images, weights of classes and balanced sampling."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from convattn.errors import UserError
from convattn.tasks.classification import ClassificationObjective, ClassificationTask, class_weights
from convattn.tasks.config import Recipe
from convattn.tasks.inference import load_model, predict_images
from convattn.tasks.recipes import load_recipe
from convattn.tasks.training import prepare, train

TINY = {"model": "test_resnet", "model_args": {}, "data.workers": 0, "trainer.accelerator": "cpu", "epochs": 1}


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Six images of one class and two of the other."""
    for name, count in (("cat", 6), ("dog", 2)):
        for index in range(count):
            for part in ("train", "val"):
                path = tmp_path / "data" / part / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.effect_noise((40, 20), 50 + index).convert("RGB").save(path)
    return tmp_path / "data"


def test_weights_and_draws_are_the_inverse_of_the_counts(uneven: Path) -> None:
    recipe = load_recipe("folder-small", {**TINY, "data.folder": str(uneven), "class_weights": "balanced"})
    data = ClassificationTask().open_data(recipe)
    weights = class_weights(recipe, data)
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([8 / 12, 8 / 4]))
    balanced = load_recipe("folder-small", {**TINY, "data.folder": str(uneven), "data.sampling": "balanced"})
    drawn = ClassificationTask().sampling_weights(balanced, data)
    assert drawn is not None
    assert drawn.tolist() == [1 / 6] * 6 + [1 / 2] * 2
    assert ClassificationTask().sampling_weights(recipe, data) is None


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_weighed(mixed: bool) -> None:
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 0.5])
    recipe = Recipe("test_resnet")
    objective = ClassificationObjective(recipe, 3, weights)
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none") * weights[labels]
    if mixed:
        found = objective.mix_loss(logits, torch.nn.functional.one_hot(labels, 3).float())
        expected = each.mean()
    else:
        found = objective.loss(lambda _: logits, (torch.zeros(6, 3, 2, 2), labels))  # type: ignore[arg-type]
        expected = each.sum() / weights[labels].sum()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"class_weights": [1, 2, 3]}, "class_weights has 3 numbers, the data has 2 classes: give one for each"),
        ({"class_weights": [0, 0]}, r"class_weights must be numbers, one of them above 0, got \[0.0, 0.0\]"),
        ({"class_weights": "even"}, "class_weights must be one of balanced or a list of numbers or null, got 'even'"),
        ({"data.image_size": [32, 64, 3]}, "data.image_size must be a whole number or a list of 2 numbers"),
        ({"data.image_size": 0}, "data.image_size must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit(uneven: Path, settings: dict[str, object], says: str) -> None:
    def objective() -> ClassificationObjective:
        recipe = load_recipe("folder-small", {**TINY, "data.folder": str(uneven), **settings})
        return ClassificationTask().objective(recipe, ClassificationTask().open_data(recipe))

    with pytest.raises(UserError, match=says):
        objective()


@pytest.mark.parametrize("key", ["class_weights", "data.sampling"])
def test_other_tasks_have_no_balance(key: str) -> None:
    with pytest.raises(UserError, match=f"{key} is for classification, not for segmentation: leave it out"):
        load_recipe("folder-segmentation", {key: "balanced"})


def test_rectangular_images_are_trained_shipped_and_loaded(uneven: Path, tmp_path: Path) -> None:
    settings = {**TINY, "data.folder": str(uneven), "data.image_size": [24, 48], "data.sampling": "balanced"}
    settings |= {"batch_size": 4, "class_weights": "balanced", "trainer.loggers": ["csv"]}
    job = prepare(load_recipe("folder-small", settings), tmp_path / "runs")
    task = ClassificationTask()
    assert task.image_size(job.recipe, job.model) == "images of 24x48 px"
    assert task.smaller(job.recipe) == "data.image_size=[12,24]"
    shown = task.training_sample(job.recipe, job.data.train)
    assert shown.transform(job.data.train.image(0), 0)[0].shape == (3, 24, 48)
    train(job)
    loaded = load_model(tmp_path / "runs" / "latest")
    assert loaded.input_size == (3, 24, 48)
    assert loaded.transform(Image.new("RGB", (640, 100))).shape == (3, 24, 48)
    (answer,) = predict_images(loaded, [uneven / "val/cat/0.png"])
    assert sum(answer.probabilities) == pytest.approx(1)
