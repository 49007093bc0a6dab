"""Every setting of a recipe with every odd value; found in the dataclasses, so that a new one is covered."""

import dataclasses
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from annotated_types import Ge
from conftest import TINY
from lightning import Callback, Trainer
from PIL import Image

from convattn.data.transforms import Augmentation, train_transform
from convattn.errors import UserError
from convattn.tasks.config import Recipe
from convattn.tasks.module import TrainingModule
from convattn.tasks.recipes import load_recipe, parse_overrides, parse_recipe, read_recipe, to_mapping
from convattn.tasks.training import prepare, train

ODD = [
    *(math.nan, math.inf, -math.inf, -1, 0, 1e30, 10**20, "nan", "inf", "", " ", True, None),
    *([], [0, 0], [0, 0, 0], [math.nan] * 3, [-1, -1], [10**20, 10**20]),
    *({}, {"x": math.nan}, {"x": {"y": [math.inf]}}, {"drop_rate": 5}),
]
BOMB = "model_args: [" + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]" for i in range(12)) + "]"
MERGED = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


def settings(cls: type = Recipe, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every setting with its field and its type; ``per_model`` is for files, and holds the others."""
    hints = get_type_hints(cls, include_extras=True)
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from settings(hints[item.name], f"{prefix}{item.name}.")
        elif item.name != "per_model":
            yield prefix + item.name, item, hints[item.name]


def has_number_without_least(hint: Any) -> bool:
    """Whether a type, or one that it is made of, is a number that may be as low as it likes."""
    if get_origin(hint) is Annotated:
        bounds = [bound for mark in hint.__metadata__ for bound in getattr(mark, "metadata", ())]
        return not any(isinstance(bound, Ge) for bound in bounds) and has_number_without_least(hint.__origin__)
    return hint in (int, float) or any(map(has_number_without_least, get_args(hint)))


def numbers(value: Any) -> list[float]:
    """The numbers of a setting, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def outcome(key: str, value: Any) -> Recipe | str:
    """The recipe that a setting makes, or why it is refused."""
    try:
        return parse_recipe("model: test_resnet", "mine", {key: value})
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("key", [key for key, _, _ in settings()])
def test_an_odd_value_is_refused_by_name_in_one_line_or_makes_a_sound_recipe(key: str) -> None:
    for value in ODD:
        made = outcome(key, value)
        if isinstance(made, str):
            assert re.match(r"(command line|mine): ", made), made
            assert key in made
            assert re.search(r" must be .*, got ", made), made
            assert len(made.splitlines()) == 1
        else:
            assert all(math.isfinite(number) for number in numbers(to_mapping(made))), (key, value)
            assert value != "" or key == "about"


def test_every_number_has_a_least_value() -> None:
    free = {"trainer.devices", "trainer.precision", "published", "model_args", "network.args"}
    bare = [key for key, _, hint in settings() if has_number_without_least(hint)]
    assert {"trainer.devices", "published"} <= set(bare) <= free


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimizer.lr=.nan", "command line: optimizer.lr must be finite, got nan"),
        ("optimizer.lr=nan", "command line: optimizer.lr must be finite, got 'nan'"),
        ("ema.decay=.nan", "command line: ema.decay must be finite, got nan"),
        ("ema.decay=1", "command line: ema.decay must be at most 0.999999, got 1"),
        ("data.std=[0, 0, 0]", r"command line: data.std must be at least 0.001, got \[0, 0, 0\]"),
        ("data.std=[58.4, 57.1, 57.4]", "command line: data.std must be at most 1, got"),
        ("data.mean=[.nan, 0, 0]", r"command line: data.mean must be finite, got \[nan, 0, 0\]"),
        ("data.mean=[123.7, 116.3, 103.5]", "command line: data.mean must be at most 1, got"),
        ("data.folder=''", "command line: data.folder must be some text, got ''"),
        ("data.workers=1000000000000000000", "data.workers must be at most 1000, got 1000000000000000000"),
        ("model_args.drop_path_rate=5", "model_args.drop_path_rate must be at least 0 and less than 1, got 5"),
        ("model_args.drop_path_rate=.nan", "command line: model_args must be finite, got"),
        ("network.args.dropout=-1", "network.args.dropout must be at least 0 and less than 1, got -1"),
        ("model_args.operator_args.drop=[0, 2]", r"model_args.operator_args.drop must be .*, got \[0, 2\]"),
        ("published.x=.inf", "command line: published must be finite, got"),
        ("augment.auto_augment='{}'", "augment.auto_augment must be a text such as rand-m9-mstd0.5-inc1, got '{}'"),
        ("augment.auto_augment=rand-foo", "augment.auto_augment must be a text such as"),
        (
            "trainer.loggers=[comet]",
            r"trainer.loggers must be a list of tensorboard, csv, wandb, mlflow, got \['comet'\]",
        ),
        ("augment.crop_scale=[1, 5]", r"augment.crop_scale must be at most 1, got \[1, 5\]"),
        ("segmentation_augment.scale=[2, 0.5]", "segmentation_augment.scale must be"),
        (
            "detection_augment={short_sides: [900], max_size: 800}",
            "max_size must be at least 900, a short side, got 800",
        ),
        ("evaluation={window: 100, stride: 101}", "evaluation.stride must be at most the window, 100, got 101"),
        ("schedule={name: multistep}", r"schedule.milestones must be rising epochs, such as .*, got \[\]"),
        ("schedule={name: multistep, milestones: [6, 3]}", "schedule.milestones must be rising epochs"),
        ("schedule.min_lr=1", "schedule.min_lr must be at most optimizer.lr, 0.004, got 1"),
        ("schedule.warmup_lr=1", "schedule.warmup_lr must be at most optimizer.lr, 0.004, got 1"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("digits", parse_overrides([word]))


@pytest.mark.parametrize(
    "text", [BOMB, "model: x\n" + MERGED.replace("<<: [*a0", "<<: [{x: 1}").replace("*a0", "{x: 1}")]
)
def test_aliases_that_grow_without_end_are_refused_at_once(text: str, tmp_path: Path) -> None:
    assert len(text) < 2000
    start = time.monotonic()
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(
        UserError, match=r"config.yaml: not YAML: more than 200,000 characters with its aliases written"
    ):
        read_recipe(path)
    with pytest.raises(UserError, match=r"model_args.x: not YAML: more than 200,000 characters"):
        parse_overrides([f"model_args.x={text.partition(': ')[2]}" if text is BOMB else "model_args.x={y: &a [*a]}"])
    assert time.monotonic() - start < 2


def test_a_recipe_with_aliases_is_read() -> None:
    text = "model: x\nmodel_args: &args {depth: [1, 2]}\nper_model: {y: {model_args: {<<: *args, width: 3}}}"
    assert parse_recipe(text, "mine", {"model": "y"}).model_args == {"depth": [1, 2], "width": 3}


@pytest.mark.parametrize(
    "name",
    ["rand-m9-mstd0.5-inc1", "rand-m9-n3-p0.5-mmax10-t3a", "augmix-m5-w4-d2-a1.5-b1", "original-mstd0.5", "v0r", "3a"],
)
def test_the_augmentations_that_are_let_through_change_the_image(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    recipe = load_recipe("digits", {"augment.auto_augment": name})
    whole = dataclasses.replace(recipe.augment, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), horizontal_flip=0)
    change = train_transform((3, 24, 24), (0.5,) * 3, (0.5,) * 3, augmentation=whole)
    plain = train_transform(
        (3, 24, 24), (0.5,) * 3, (0.5,) * 3, augmentation=dataclasses.replace(whole, auto_augment=None)
    )
    torch.manual_seed(0)
    results = [change(Image.fromarray(pixels)) for _ in range(8)]
    assert any(not torch.equal(result, plain(Image.fromarray(pixels))) for result in results)
    assert Augmentation().auto_augment is None


def tiny(photos: Path, *more: str) -> Recipe:
    words = [word for word in TINY if not word.startswith("--")]
    quick = ["epochs=1", "schedule.warmup=0", "ema.decay=null", "model_args={}", "checkpoint.every_steps=null"]
    return load_recipe("digits", {"data.folder": str(photos), **parse_overrides([*words, *quick, *more])})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["optimizer.name=sgd", "optimizer.momentum=0"],
            "optimizer.name sgd cannot be made with .*: Nesterov momentum",
        ),
        (["optimizer.lr=1.0e+30", "optimizer.name=lion"], "training diverged: the (loss|weights)"),
    ],
)
def test_a_run_that_cannot_be_trained_is_one_message(
    words: list[str], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(prepare(tiny(photos, *words), tmp_path))


class Overflow(Callback):
    """Makes the weights too large for the next step, as a last step may."""

    def on_validation_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        torch.nn.init.constant_(next(pl_module.model.parameters()), math.inf)


@pytest.mark.parametrize(
    ("words", "callbacks", "message"),
    [
        (["optimizer={name: lion, lr: 1.0e+30}"], [], "the validation loss is not finite"),
        ([], [Overflow()], "the weights are not finite"),
    ],
)
def test_what_diverges_in_the_very_last_step_is_told(
    words: list[str], callbacks: list[Callback], message: str, photos: Path, tmp_path: Path
) -> None:
    # one step: its loss is that of the weights before it
    recipe = tiny(photos, "batch_size=128", "mix.prob=0", *words)
    with pytest.raises(UserError, match=f"training diverged: {message} in epoch 1; try a lower learning rate"):
        train(prepare(recipe, tmp_path), callbacks)
    assert not list(tmp_path.rglob("*.safetensors"))


OTHER_TASKS = ("network.", "detection_augment.", "segmentation_augment.", "evaluation.", "data.scenes.")


def ending(overrides: dict[str, Any], out: Path) -> str:
    """Train, and return why it was refused, or nothing."""
    try:
        result = train(prepare(load_recipe("digits", overrides), out))
    except UserError as error:
        return str(error)
    assert result is not None
    assert all(math.isfinite(figure) for figure in result.figures.values()), overrides
    return ""


@pytest.mark.slow
def test_an_odd_value_that_is_let_through_trains_or_ends_in_one_line(photos: Path, tmp_path: Path) -> None:
    endings = []
    for key, item, _ in settings():
        for number, value in enumerate(ODD):
            if key not in ("data.folder", "pretrained") and not key.startswith(OTHER_TASKS) and value != item.default:
                endings.append(ending({**given(tiny(photos)), key: value}, tmp_path / f"{key}{number}"))
                assert len(endings[-1].splitlines()) <= 1, (key, value)
    assert endings.count("") > 20


def given(recipe: Recipe) -> dict[str, Any]:
    """A recipe as overrides."""
    mapping = to_mapping(recipe)
    mapping.pop("per_model")
    return mapping


def test_a_number_that_is_not_finite_is_refused_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"model": "x", "optimizer": {"lr": math.nan}}))
    with pytest.raises(UserError, match=r"mine.yaml: optimizer.lr must be finite, got nan"):
        read_recipe(path)
