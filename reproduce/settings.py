"""Training runs as settings of recipes: their commands, and the backbones that detectors and segmenters start from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from convattn.tasks.recipes import load_recipe, recipe_names
from convattn.tasks.starting import network_options

DATA: dict[str, str] = {"imagenet": "imagenet/", "coco": "coco/", "ade20k": "ADEChallengeData2016/"}
"""The folder that a recipe's command names, by the first word of the recipe's name."""

DEVICES = 8
"""GPUs of the commands for the papers' own data sets."""

PRETRAINED = ("coco", "ade20k")
"""Data sets whose runs start from the backbone's weights on ImageNet, which do not come with the package."""

WEIGHTS = "weights"
"""The folder of the classifiers on ImageNet."""


@dataclass(frozen=True)
class Setting:
    """One training run without its seed: a recipe by name, and what it is given besides.

    Example:
        >>> Setting("digits", {"model": "san10", "epochs": 2}).command(seed=1)
        'convattn train --recipe digits --model san10 epochs=2 seed=1'
    """

    recipe: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """The first word of the recipe's name: its data set."""
        return self.recipe.partition("-")[0]

    @property
    def weights_folder(self) -> str:
        """Where the command of a classifier on ImageNet makes its run: by recipe, network and all of its options.

        Example:
            >>> options = {"attention": "global"}
            >>> Setting("imagenet-xvolution", {"model": "xvolution_resnet50", "model_args.operator_args": options}
            ... ).weights_folder
            'weights/imagenet-xvolution/xvolution_resnet50-attention=global'
        """
        own, chosen = _options(self.recipe, self.overrides["model"]), _options_of(self)
        options = {name: value for name, value in chosen.items() if own.get(name) != value}
        options |= {key: value for key, value in self.overrides.items() if key.partition(".")[0] not in OF_NETWORK}
        return "/".join((WEIGHTS, self.recipe, "-".join((self.overrides["model"], *_words(options)))))

    @property
    def backbone(self) -> Setting | None:
        """The run of the classifier whose weights this run starts from: the same network with the same options.

        Raises:
            ValueError: the recipe of the classifier sets an option that this one does not.

        Example:
            >>> Setting("coco-retinanet-resnet", {"model": "acmix_resnet50"}).backbone.overrides
            {'model': 'acmix_resnet50', 'model_args.stride_place': 'projection'}
        """
        if self.data not in PRETRAINED:
            return None
        model, chosen = self.overrides["model"], _options_of(self)
        recipe = next(name for word in self.recipe.split("-") if (name := f"imagenet-{word}") in recipe_names())
        own = _options(recipe, model)
        if left := own.keys() - chosen.keys():
            raise ValueError(f"{recipe} gives {model} {', '.join(sorted(left))}, {self.recipe} does not")
        options = {f"model_args.{name}": value for name, value in chosen.items() if own.get(name) != value}
        return Setting(recipe, {"model": model, **options})

    def words(self, seed: int | None = None) -> list[str]:
        """The settings as ``key=value``, the model left out."""
        chosen = {key: value for key, value in self.overrides.items() if key != "model"}
        if seed is not None:
            chosen["seed"] = seed
        return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in chosen.items()]

    def command(self, seed: int | None = None) -> str:
        """The command of this run alone; that of a detector or segmenter comes after its backbone's."""
        words = ["convattn", "train", "--recipe", self.recipe]
        folder, backbone = DATA.get(self.data), self.backbone
        if folder is not None:
            words += ["--data", folder]
        if "model" in self.overrides:
            words += ["--model", str(self.overrides["model"])]
        if folder is not None:
            words += ["--devices", str(DEVICES)]
        if self.data == "imagenet":
            words += ["--out", self.weights_folder]
        words += self.words(seed)
        if backbone is not None:
            words.append(f"backbone_weights={backbone.weights_folder}/latest")
        return shlex.join(words)


OF_NETWORK = ("model", "model_args")
"""The settings of a recipe that :attr:`Setting.weights_folder` takes from the resolved recipe."""


@cache
def _options(recipe: str, model: str) -> dict[str, Any]:
    """What a recipe gives a network."""
    return network_options(load_recipe(recipe, {"model": model}).model_args)


def _options_of(setting: Setting) -> dict[str, Any]:
    return network_options(load_recipe(setting.recipe, setting.overrides).model_args)


def _words(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in sorted(options.items()):
        if isinstance(value, Mapping):
            yield from _words(value)
        else:
            text = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{name.rpartition('.')[2]}={text}"
