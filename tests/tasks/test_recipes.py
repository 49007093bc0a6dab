from pathlib import Path

import pytest
import torch
import yaml

from convattn.errors import UserError
from convattn.tasks.building import build_model, check_names
from convattn.tasks.config import Recipe
from convattn.tasks.recipes import load_recipe, parse_overrides, parse_recipe, read_recipe, recipe_names, to_mapping


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_parses_and_its_model_builds(name: str) -> None:
    recipe = load_recipe(name, {"pretrained": False})
    check_names(recipe)
    with torch.device("meta"):
        size = recipe.data.image_size
        assert build_model(recipe, classes=7)(torch.empty(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_reads_back_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, {"optimizer.clip_grad": 0.5, "data.workers": 3, "trainer.devices": 2})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_mapping(recipe)))
    assert read_recipe(path, trust=recipe.pretrained) == recipe


def test_overrides_reach_every_kind_of_key() -> None:
    words = [
        "optimizer.lr=1e-2",
        "ema.decay=null",
        "model_args.stem=small",
        "model_args.channels=[8, 8, 8, 8]",
        "epochs=3",
    ]
    words += ["trainer.devices=2", "trainer.precision=16", "mix={mixup: 0.5, prob: 0.3}", "data.mean=[0, 0, 0.5]"]
    recipe = load_recipe("folder", parse_overrides(words))
    assert recipe.optimizer.lr == 0.01
    assert recipe.ema.decay is None
    assert recipe.model_args == {"stem": "small", "channels": [8, 8, 8, 8]}
    assert (recipe.epochs, recipe.trainer.devices, recipe.trainer.precision) == (3, 2, 16)
    assert (recipe.mix.mixup, recipe.mix.prob) == (0.5, 0.3)
    assert recipe.data.mean == (0.0, 0.0, 0.5)


def test_an_override_reaches_into_nested_arguments() -> None:
    words = ["model_args.operator_args.attention=global", "model_args.operator_args.num_heads=2", "network.args.p6=P5"]
    recipe = load_recipe("digits", parse_overrides(words))
    assert recipe.model_args["operator_args"] == {"attention_kernel_size": 5, "attention": "global", "num_heads": 2}
    assert recipe.network.args == {"p6": "P5"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("epoch=3", r"unknown key 'epoch': did you mean epochs\? keys: .*batch_size"),
        (
            "optimizer.learning_rate=3",
            r"unknown key 'optimizer.learning_rate': .*keys: clip_grad, decayed, layer_decay, lr",
        ),
        ("optimizer.lrr=3", r"did you mean lr\?"),
        ("optimizer=adam", r"optimizer is a section; its keys: optimizer.name"),
        ("epochs.x=3", "epochs is one value"),
        ("epochs=many", "command line: epochs must be a whole number, got 'many'"),
        ("epochs=2.5", "epochs must be a whole number, got 2.5"),
        ("epochs=true", "epochs must be a whole number, got True"),
        ("epochs=0", "epochs must be at least 1, got 0"),
        ("ema.decay=2", "ema.decay must be at most 0.999999, got 2"),
        ("ema.decay=x", "ema.decay must be a number or null, got 'x'"),
        ("ema.warmup=1", "ema.warmup must be true or false, got 1"),
        ("schedule.name=step", "schedule.name must be one of cosine, poly, tanh, constant, multistep, got 'step'"),
        ("data.mean=[1, 2]", "data.mean must be a list of 3 numbers or null"),
        ("model_args=small", "model_args must be keys with values, got 'small'"),
        ("optimizer.decayed=none", "optimizer.decayed must be one of matrices, all, got 'none'"),
        ("data.repeats=0", "data.repeats must be at least 1, got 0"),
        ("per_model={x: {epochs: 3}}", "command line: per_model is for recipe files"),
        ("epochs", "'epochs' is no setting: write key=value"),
        ("=3", "no setting"),
        ("epochs=[1", "epochs: not YAML"),
        ("batch_size=7", "batch_size 7 is odd, but mix pairs the images"),
        ("schedule.warmup=5", "schedule.warmup must be at most 0.9, got 5"),
        ("augment.crop_scale=[1, 0.5]", "augment.crop_scale must be"),
    ],
)
def test_a_wrong_override_says_what_would_do(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("folder", parse_overrides([word]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: x\noptimizer: {lrr: 1}", r"mine.yaml: unknown key optimizer.lrr: did you mean lr\?"),
        ("model: x\nepochs: soon", "mine.yaml: epochs must be a whole number, got 'soon'"),
        ("epochs: 3", "mine.yaml: the key model is missing"),
        ("model: x\nema: 3", "mine.yaml: ema must be keys with values, got 3"),
        ("- model", "mine.yaml: the file must be keys with values"),
        ("model: [", "mine.yaml: not YAML"),
        ("", "the key model is missing"),
        ("model: x\nper_model: {y*: {epoch: 3}}", r"mine.yaml: per_model 'y\*': unknown key 'epoch': did you mean"),
        ("model: x\nper_model: {y: {optimizer.lr: fast}}", "mine.yaml: per_model 'y': optimizer.lr must be a number"),
        ("model: x\nper_model: {y: {optimizer: 3}}", "mine.yaml: per_model 'y': optimizer is a section"),
        ("model: x\nper_model: {y: {model: z}}", "mine.yaml: per_model 'y': model cannot be set for one model"),
        ("model: x\nper_model: {y: 3}", "mine.yaml: per_model must be keys with values"),
        ("extends: folderr", r"mine.yaml: extends must be recipes .* got 'folderr': did you mean folder\?"),
        ("extends: [folder, {}]", r"mine.yaml: extends must be recipes .* got {}"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(str(path))


TABLE = """
model: small_a
epochs: 9
model_args: {width: 1}
per_model:
  "small_*": {optimizer: {lr: 0.5}, model_args: {depth: 2}}
  "*_b": {epochs: 3, optimizer.lr: 0.25, model_args: {depth: 4}}
"""


@pytest.mark.parametrize(
    ("overrides", "epochs", "lr", "model_args"),
    [
        ({}, 9, 0.5, {"width": 1, "depth": 2}),
        ({"model": "small_b"}, 3, 0.25, {"width": 1, "depth": 4}),
        ({"model": "large_b"}, 3, 0.25, {"width": 1, "depth": 4}),
        ({"model": "large_c"}, 9, 1e-3, {"width": 1}),
        ({"model": "small_b", "epochs": 5, "model_args.depth": 1}, 5, 0.25, {"width": 1, "depth": 1}),
        ({"optimizer.lr": 0.1, "model_args": {"bias": True}}, 9, 0.1, {"bias": True}),
    ],
)
def test_settings_go_by_the_model_and_the_command_line_goes_last(
    overrides: dict[str, object], epochs: int, lr: float, model_args: dict[str, object], tmp_path: Path
) -> None:
    recipe = parse_recipe(TABLE, "mine", overrides)
    assert (recipe.epochs, recipe.optimizer.lr, recipe.model_args, recipe.per_model) == (epochs, lr, model_args, {})
    # what a run writes down is not subject to the table again
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_mapping(recipe)))
    assert read_recipe(path) == recipe


def test_a_recipe_extends_others_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: [folder, _small]\noptimizer: {lr: 0.5}\nmodel_args: {depth: 2}\nepochs: 3\n")
    recipe, base = read_recipe(path), load_recipe("folder", {"model": "acmix_resnet18"})
    assert (recipe.model, recipe.epochs, recipe.optimizer.lr) == ("acmix_resnet18", 3, 0.5)
    assert recipe.optimizer.clip_grad == base.optimizer.clip_grad == 1.0
    assert recipe.mix == base.mix
    # a row of the table for models that the last of the two has
    assert recipe.model_args == {"depth": 2, **load_recipe("folder-small").model_args}
    assert recipe.about == ""
    path.write_text("extends: imagenet-pvt")
    assert read_recipe(path).published == {}


def test_every_wrong_key_of_a_file_is_a_line() -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe("model: x\nepoch: 3\noptimizer: {lr: fast, nam: sgd}\n3: 4", "mine")
    assert [line.partition(" keys: ")[0] for line in str(refused.value).splitlines()] == [
        "mine: optimizer.lr must be a number, got 'fast'",
        "mine: unknown key optimizer.nam: did you mean name?",
        "mine: unknown key epoch: did you mean epochs?",
        "mine: unknown key 3:",
    ]


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no recipe 'digit': did you mean digits\?"):
        load_recipe("digit")
    with pytest.raises(UserError, match="cannot be read as a recipe"):
        load_recipe("absent.yaml")
    with pytest.raises(UserError, match=r"no model 'acmix_resnet51': did you mean acmix_resnet"):
        build_model(Recipe(model="acmix_resnet51"), classes=2)
    with pytest.raises(UserError, match=r"model acmix_resnet14 with model_args .*kernel"):
        build_model(Recipe(model="acmix_resnet14", model_args={"operator_args": {"kernel": 3}}), classes=2)
    with pytest.raises(UserError, match=r"no optimizer 'adamww': did you mean adamw\?"):
        check_names(load_recipe("digits", {"optimizer.name": "adamww"}))
