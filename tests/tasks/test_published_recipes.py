"""The recipes of the papers: each builds its models, its optimizer, its schedule and its images, and takes steps."""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data.transforms import eval_transform, train_transform
from convattn.tasks.building import build_model, check_names
from convattn.tasks.classification import ClassificationObjective
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import input_settings
from convattn.tasks.module import TrainingModule
from convattn.tasks.recipes import load_recipe, parse_overrides, recipe_names
from convattn.tasks.training import prepare, train

OF_PAPERS = [name for name in recipe_names() if name.partition("-")[0] in ("imagenet", "coco", "ade20k")]
PAPERS = [name for name in OF_PAPERS if load_recipe(name).task == "classification"]
ROWS = [(name, row) for name in PAPERS for row in load_recipe(name).published]
IMAGENET = {"image_size": 224, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 10 small images of noise each, 4 of them held out."""
    root = tmp_path_factory.mktemp("few")
    noise = np.random.default_rng(0)
    for label in ("dark", "light"):
        (root / label).mkdir()
        for number in range(10):
            pixels = noise.integers(0, 128, (40, 36, 3), dtype=np.uint8) + (128 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / f"{number}.png")
    return root


def recipe_of(name: str, row: str) -> Recipe:
    """The recipe with what a row of its table sets: a model, then overrides."""
    model, *words = row.split()
    return load_recipe(name, {"model": model, **parse_overrides(words)})


def test_every_papers_recipe_names_its_accuracies() -> None:
    assert PAPERS == ["imagenet-pvt", "imagenet-resnet", "imagenet-san", "imagenet-swin", "imagenet-xvolution"]
    figure_4 = {
        "imagenet-resnet": {"conv_resnet26": 73.6, "conv_resnet38": 76.0, "conv_resnet50": 76.9}
        | {"acmix_resnet26": 76.1, "acmix_resnet38": 77.4, "acmix_resnet50": 77.8},
        "imagenet-san": {"san10": 77.1, "san15": 78.0, "san19": 78.2}
        | {"acmix_san10": 77.6, "acmix_san15": 78.4, "acmix_san19": 78.7},
        "imagenet-pvt": {"pvt_v1_tiny": 75.1, "pvt_v1_small": 79.8, "acmix_pvt_tiny": 78.0, "acmix_pvt_small": 81.7},
        "imagenet-swin": {"swin_tiny": 81.3, "swin_small": 83.0, "acmix_swin_tiny": 81.9, "acmix_swin_small": 83.5},
    }
    for name, rows in figure_4.items():
        assert rows.items() <= load_recipe(name).published.items()
    assert load_recipe("imagenet-swin").published["conv_swin_tiny"] == 80.5


def test_xvolutions_accuracies_are_those_of_its_table_1() -> None:
    table: dict[str, list[tuple[float, float]]] = {
        "34": [(73.8, 91.6), (73.2, 91.4), (73.6, 91.5), (75.0, 92.4), (74.3, 91.9), (74.2, 91.7)],
        "50": [(75.7, 92.5), (75.3, 92.2), (75.5, 92.5), (76.6, 93.3), (75.1, 92.4), (75.9, 92.8)],
    }
    rows = {}
    for depth, figures in table.items():
        xvolution = f"xvolution_resnet{depth}"
        stages = [f"{xvolution} model_args.stages=[2]", f"{xvolution} model_args.stages=[3]", xvolution]
        names = [f"{kind}_resnet{depth}" for kind in ("conv", "global", "pssa")] + stages
        rows |= {name: {"top1": one, "top5": five} for name, (one, five) in zip(names, figures, strict=True)}
    assert load_recipe("imagenet-xvolution").published == rows


def sections() -> dict[str, str]:
    """What the page says of each recipe."""
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    found = [part for part in re.split(r"^##+ ", page, flags=re.MULTILINE) if part.startswith("`")]
    return {part.split("`")[1]: part for part in found}


def table_of_rows(section: str) -> tuple[dict[str, float | dict[str, float]], set[str]]:
    """A section's figures by row and by the name in the column's head, and what stands in the column of our own."""
    head, *lines = re.findall(r"^\| (?:model|`.+?`) \| .+ \|$", section, re.MULTILINE)
    names = [cell.replace("-", "").replace(" ", "_") for cell in head.strip("| ").split(" | ")[1:-1]]
    rows, here = {}, set()
    for line in lines:
        row, *cells, own = line.strip("| ").split(" | ")
        figures = {name: float(cell) for name, cell in zip(names, cells, strict=True) if cell != "–"}
        rows[row.strip("`")] = figures["published"] if names == ["published"] else figures
        here.add(own)
    return rows, here


def test_the_page_has_a_section_for_every_recipe() -> None:
    assert sorted(sections()) == OF_PAPERS


@pytest.mark.parametrize("name", OF_PAPERS)
def test_the_page_of_recipes_shows_what_the_recipes_hold(name: str) -> None:
    section, recipe = sections()[name], load_recipe(name)
    rows, here = table_of_rows(section)
    assert rows == recipe.published
    assert here == {"not run"}
    shown = dict(re.findall(r"^\| (\w[\w ]*) \| (.+) \|$", section, re.MULTILINE))
    assert (int(shown["epochs"].split(",")[0]), int(shown["batch"])) == (recipe.epochs, recipe.batch_size)
    assert float(shown["learning rate"].split(",")[0]) == recipe.optimizer.lr
    assert float(shown["weight decay"].split(",")[0]) == recipe.optimizer.weight_decay
    *falls, last = [f"{fall:g}" for fall in recipe.schedule.milestones] or [""]
    assert (f"a tenth after epochs {', '.join(falls)} and {last}" in shown["learning rate"]) == bool(last)


SGD = {
    "name": "momentum", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "decayed": "all", "clip_grad": None,
    "layer_decay": None,
}  # fmt: skip
"""Without Nesterov's step, which is what timm's "sgd" takes."""


@pytest.mark.parametrize("name", ["imagenet-resnet", "imagenet-san"])
def test_resnet_and_san_train_as_supplement_b_says(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.epochs, recipe.batch_size, recipe.label_smoothing) == (100, 256, 0.1)
    assert asdict(recipe.optimizer) == SGD
    assert (recipe.schedule.name, recipe.schedule.warmup, recipe.schedule.min_lr) == ("cosine", 0, 0)
    assert (recipe.mix.on, recipe.augment.auto_augment, recipe.augment.random_erasing) == (False, None, 0)


def test_xvolution_trains_as_section_4_1_says() -> None:
    recipe = load_recipe("imagenet-xvolution")
    assert (recipe.epochs, recipe.batch_size, recipe.label_smoothing) == (100, 256, 0)
    assert asdict(recipe.optimizer) == SGD
    assert (recipe.schedule.milestones, recipe.schedule.decay_rate) == ((30, 60, 90), 0.1)
    assert (recipe.mix.on, recipe.augment.auto_augment, recipe.augment.random_erasing) == (False, None, 0)


@pytest.mark.parametrize(("row", "replaced"), [
    ("xvolution_resnet34", 4), ("xvolution_resnet50 model_args.stages=[3]", 3), ("aa_resnet50", 4),
    ("involution_resnet34", 4),
])  # fmt: skip
def test_xvolutions_operators_stand_in_one_stage(row: str, replaced: int) -> None:
    with torch.device("meta"):
        net = build_model(recipe_of("imagenet-xvolution", row), classes=1000)
    stages = {number: {type(block.conv2) for block in getattr(net, f"layer{number}")} for number in (1, 2, 3, 4)}
    assert {number for number, kinds in stages.items() if torch.nn.Conv2d not in kinds} == {replaced}


@pytest.mark.parametrize(("name", "warmup_epochs"), [("imagenet-pvt", 5), ("imagenet-swin", 20)])
def test_transformers_train_as_their_own_papers_say(name: str, warmup_epochs: int) -> None:
    recipe = load_recipe(name)
    assert (recipe.epochs, recipe.batch_size, recipe.label_smoothing) == (300, 1024, 0.1)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.weight_decay) == ("adamw", 1e-3, 0.05)
    assert recipe.schedule.warmup * recipe.epochs == pytest.approx(warmup_epochs, abs=1e-3)
    assert (recipe.schedule.name, recipe.schedule.warmup_lr, recipe.schedule.min_lr) == ("cosine", 1e-6, 1e-5)
    assert asdict(recipe.mix) == {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5}
    assert (recipe.augment.auto_augment, recipe.augment.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert recipe.ema.decay is None


@pytest.mark.parametrize(
    ("name", "model", "drop_path", "clip", "repeats"),
    [
        ("imagenet-pvt", "pvt_v1_tiny", 0.1, None, 3),
        ("imagenet-pvt", "acmix_pvt_small", 0.1, None, 3),
        ("imagenet-pvt", "pvt_v1_medium", 0.3, 1.0, 3),
        ("imagenet-pvt", "pvt_v1_large", 0.3, 1.0, 3),
        ("imagenet-swin", "acmix_swin_tiny", 0.2, 5.0, 1),
        ("imagenet-swin", "conv_swin_tiny", 0.2, 5.0, 1),
        ("imagenet-swin", "acmix_swin_small", 0.3, 5.0, 1),
        ("imagenet-swin", "swin_small_patch4_window7_224", 0.3, 5.0, 1),
    ],
)
def test_stochastic_depth_and_clipping_go_by_the_model(
    name: str, model: str, drop_path: float, clip: float | None, repeats: int
) -> None:
    recipe = load_recipe(name, {"model": model})
    assert recipe.model_args == {"drop_path_rate": drop_path}
    assert (recipe.optimizer.clip_grad, recipe.data.repeats) == (clip, repeats)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_builds_its_model_optimizer_and_schedule(name: str, row: str) -> None:
    recipe = recipe_of(name, row)
    check_names(recipe)
    with torch.device("meta"):
        net = build_model(recipe, classes=1000)
        size = recipe.data.image_size
        assert net.eval()(torch.empty(1, 3, size, size)).shape == (1, 1000)
        module = TrainingModule(net, recipe, ClassificationObjective(recipe, 1000), batches_per_epoch=10)
        optimizer = module.configure_optimizers()
    check_groups(optimizer, net, recipe)
    rates = []
    for step in range(10 * recipe.epochs):
        module.schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    # the rise is cut out of the cosine, so the peak lies a little below the nominal rate
    assert recipe.optimizer.lr * 0.98 <= max(rates) <= recipe.optimizer.lr
    assert rates.index(max(rates)) == round(10 * recipe.epochs * recipe.schedule.warmup)
    falls = [int(fall) for fall in recipe.schedule.milestones]
    end = recipe.optimizer.lr * recipe.schedule.decay_rate ** len(falls) if falls else recipe.schedule.min_lr
    assert rates[-1] == pytest.approx(end, abs=1e-5 * recipe.optimizer.lr)
    assert all(rates[10 * fall - 2] > 9 * rates[10 * fall] for fall in falls)


def check_groups(optimizer: torch.optim.Optimizer, net: torch.nn.Module, recipe: Recipe) -> None:
    """Every parameter is in one group; what decays is what the recipe says."""
    grouped = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(grouped)
    spared = net.no_weight_decay() if hasattr(net, "no_weight_decay") else set()
    for name, parameter in net.named_parameters():
        decays = name not in spared and (recipe.optimizer.decayed == "all" or parameter.ndim > 1)
        assert grouped[id(parameter)] == (recipe.optimizer.weight_decay if decays else 0), name


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipes_images_have_its_size_and_statistics(name: str) -> None:
    recipe = load_recipe(name)
    assert IMAGENET.items() <= asdict(recipe.data).items()
    photo = Image.new("RGB", (300, 260), (124, 116, 104))  # the mean, in bytes
    torch.manual_seed(0)
    train_image = train_transform(*input_settings(recipe), recipe.augment)(photo)
    eval_image = eval_transform(*input_settings(recipe))(photo)
    assert train_image.shape == eval_image.shape == (3, 224, 224)
    assert eval_image.abs().max() < 0.02


NARROW = {
    "imagenet-pvt": {"embed_dims": [16, 16, 40, 64]},
    "imagenet-resnet": {"channels": [16, 16, 16, 16]},
    "imagenet-san": {"widths": [32, 32, 32, 32, 32]},
    "imagenet-swin": {"embed_dim": 24},
    "imagenet-xvolution": {"channels": [16, 16, 16, 16]},
}


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_takes_steps(name: str, few: Path, tmp_path: Path) -> None:
    """Two steps with everything that the recipe turns on, on images of 32 px and with a narrow network."""
    small = {"epochs": 1, "batch_size": 8, "data.image_size": 32, "data.folder": str(few), "data.workers": 0}
    small |= {f"model_args.{key}": value for key, value in NARROW[name].items()}
    job = prepare(load_recipe(name, small), tmp_path)
    before = [parameter.clone() for parameter in job.model.parameters()]
    result = train(job)
    assert result is not None
    assert 0 <= result.accuracy <= 1
    after = list(job.model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    changed = sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert changed > len(after) / 2
