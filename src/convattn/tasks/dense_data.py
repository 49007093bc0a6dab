"""The data sets of detection and segmentation that a recipe names."""

from __future__ import annotations

from typing import TypeVar

from convattn.data.coco import DetectionData, open_detection
from convattn.data.coco_file import Wanted
from convattn.data.scenes import SceneSettings, scenes_folder
from convattn.data.segmentation import SegmentationData, open_segmentation
from convattn.errors import UserError
from convattn.tasks.config import Recipe

D = TypeVar("D", DetectionData, SegmentationData)


def open_detection_data(recipe: Recipe, wanted: Wanted) -> DetectionData:
    """Return the recipe's images with boxes or masks: a folder in COCO's form, or the embedded scenes.

    Raises:
        BadData: Something is wrong in it, and ``data.bad`` is "refuse".
        UserError: There is no such folder, or a split without images.
    """
    data = recipe.data
    found = open_detection(_folder(recipe), wanted=wanted, val_fraction=data.val_fraction, skip_bad=data.bad == "skip")
    return _checked(found, recipe)


def open_segmentation_data(recipe: Recipe) -> SegmentationData:
    """Return the recipe's images with label maps: a folder of pairs, or the embedded scenes.

    Raises:
        BadData, UserError: as :func:`open_detection_data`.
    """
    data = recipe.data
    found = open_segmentation(
        _folder(recipe),
        reduce_zero_label=data.reduce_zero_label,
        val_fraction=data.val_fraction,
        skip_bad=data.bad == "skip",
    )
    return _checked(found, recipe)


def data_name(recipe: Recipe) -> str:
    """Return what a person knows the recipe's images by."""
    return recipe.data.folder or f"the embedded {recipe.data.embedded}"


def _folder(recipe: Recipe) -> str:
    if recipe.data.folder is not None:
        return recipe.data.folder
    if recipe.data.embedded != "scenes":
        raise UserError(f"this recipe brings no images for {recipe.task}: give a folder of them with --data")
    scenes = recipe.data.scenes
    return str(scenes_folder(SceneSettings(train=scenes.train, val=scenes.val, seed=scenes.seed)))


def _checked(data: D, recipe: Recipe) -> D:
    for split, images in (("training", data.train), ("validation", data.val)):
        if len(images) == 0:
            raise UserError(f"{data_name(recipe)} has no {split} images: add some, or change data.val_fraction")
    return data
