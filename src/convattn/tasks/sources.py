"""Where a recipe's images come from."""

from __future__ import annotations

from typing import Any, TypeVar

from convattn.data.folder import Progress
from convattn.data.scenes import SceneSettings, scenes_folder
from convattn.data.types import DataSet
from convattn.errors import UserError
from convattn.tasks.config import Recipe

D = TypeVar("D", bound=DataSet[Any])


def data_name(recipe: Recipe) -> str:
    """Return what a person knows the recipe's images by."""
    return recipe.data.folder or f"the embedded {recipe.data.embedded}"


def data_folder(recipe: Recipe, progress: Progress | None) -> str:
    """Return the recipe's folder, or that of the embedded scenes."""
    if recipe.data.folder is not None:
        return recipe.data.folder
    if recipe.data.embedded != "scenes":
        raise UserError(f"this recipe brings no images for {recipe.task}: give a folder of them with --data")
    scenes = recipe.data.scenes
    settings = SceneSettings(train=scenes.train, val=scenes.val, seed=scenes.seed)
    return str(scenes_folder(settings, progress=progress))


def checked(data: D, where: str) -> D:
    """Return the data, which ``where`` names; raise where a split has no images."""
    for split, images in (("training", data.train), ("validation", data.val)):
        if len(images) == 0:
            raise UserError(f"{where} has no {split} images: add some, or change data.val_fraction")
    return data
