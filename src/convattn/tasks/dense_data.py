"""The data sets of detection and segmentation that a recipe names, or that a model is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from convattn.data.coco import DetectionData, DetectionImages, open_coco, open_detection
from convattn.data.coco_file import Wanted, read_coco_file
from convattn.data.coco_layout import (
    COCO_LAYOUT,
    annotation_files,
    find_annotations,
    find_images,
    image_file,
    image_folders,
)
from convattn.data.folder import Progress
from convattn.data.problems import refuse_or_skip
from convattn.data.scenes import SceneSettings, scenes_folder
from convattn.data.segmentation import (
    PairFolders,
    SegmentationData,
    SegmentationImages,
    check_pairs,
    find_pair_folders,
    open_segmentation,
    read_classes,
)
from convattn.data.types import SkippedFile
from convattn.errors import UserError, user_path
from convattn.tasks.config import Recipe

D = TypeVar("D", DetectionData, SegmentationData)


def open_detection_data(recipe: Recipe, wanted: Wanted, progress: Progress | None = None) -> DetectionData:
    """Return the recipe's images with boxes or masks: a folder in COCO's form, or the embedded scenes.

    Raises:
        BadData: Something is wrong in it, and ``data.bad`` is "refuse"; or there is no object to learn from.
        UserError: There is no such folder, or a split without images.
    """
    data = recipe.data
    found = open_detection(
        _folder(recipe, progress),
        wanted=wanted,
        val_fraction=data.val_fraction,
        skip_bad=data.bad == "skip",
        progress=progress,
    )
    return _checked(found, recipe)


def open_segmentation_data(recipe: Recipe, progress: Progress | None = None) -> SegmentationData:
    """Return the recipe's images with label maps: a folder of pairs, or the embedded scenes.

    Raises:
        BadData, UserError: as :func:`open_detection_data`.
    """
    data = recipe.data
    found = open_segmentation(
        _folder(recipe, progress),
        reduce_zero_label=data.reduce_zero_label,
        val_fraction=data.val_fraction,
        skip_bad=data.bad == "skip",
        progress=progress,
    )
    return _checked(found, recipe)


def open_held_out_detection(
    root: Path, wanted: Wanted, progress: Progress | None = None
) -> tuple[list[str], DetectionImages, list[SkippedFile]]:
    """Return the classes, the images to measure a detector on and what was left out.

    Those are the images of an annotation file; of a folder its validation images, all where it has no split.

    Raises:
        UserError: There is no such layout, or no image is left.
    """
    file = user_path(root)
    if file.is_dir():
        files = annotation_files(file)
        train, val = (files[0], None) if len(files) == 1 else find_annotations(file)
        file = val or train
    elif not file.is_file():
        raise UserError(f"{file}: no such file or folder; give a folder or an annotation file, {COCO_LAYOUT}")
    return open_coco(file, wanted=wanted, skip_bad=True, progress=progress)


def open_held_out_segmentation(
    root: Path, classes: list[str], recipe: Recipe, progress: Progress | None = None
) -> tuple[list[str], SegmentationImages, list[SkippedFile]]:
    """Return the classes, the images to measure a segmenter on and what was left out.

    Those are a folder's validation images, all where it has no split. Without a list of classes of its own the
    folder's ids are the model's ``classes``.

    Raises:
        UserError: There is no such layout, or no pair is left.
    """
    folders = find_pair_folders(root)
    part = folders.train if folders.val is None else folders.val
    names = read_classes(folders.root) or classes
    wanted = recipe.data.reduce_zero_label
    images, _, problems = check_pairs(
        PairFolders(folders.root, part, None, folders.ade20k),
        names,
        reduce_zero_label=folders.ade20k if wanted is None else wanted,
        progress=progress,
    )
    skipped = refuse_or_skip(problems, skip_bad=True)
    if not len(images):
        raise UserError(f"{folders.root}: no pair is left to measure on" + (f"; {problems[0]}" if problems else ""))
    return names, images, skipped


def image_ids(annotations: Path, files: Sequence[Path]) -> dict[Path, int]:
    """Return the ids of those files that COCO annotations, a file or a folder with some, list as their images.

    Annotation files are read only where a file lies in a folder that may hold their images.

    Raises:
        UserError: There are no annotations, not in COCO's form, or two files give one id to two of the images.
    """
    path = user_path(annotations)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a folder or an annotation file, {COCO_LAYOUT}")
    wanted = {file.resolve(): file for file in files}
    found: dict[Path, int] = {}
    for source in [path] if path.is_file() else annotation_files(path):
        homes = [folder.resolve() for folder in image_folders(source)]
        if any(file.is_relative_to(home) for file in wanted for home in homes):
            images = read_coco_file(source, "boxes").images
            root = find_images(source, [image.file for image in images])
            places = {(root / (image_file(root, image.file) or image.file)).resolve(): image.id for image in images}
            found |= {wanted[place]: id for place, id in places.items() if place in wanted}
    if len({*found.values()}) < len(found):
        raise UserError(f"{path}: two of the images have one id there, in two files; name one of these files")
    return found


def data_name(recipe: Recipe) -> str:
    """Return what a person knows the recipe's images by."""
    return recipe.data.folder or f"the embedded {recipe.data.embedded}"


def _folder(recipe: Recipe, progress: Progress | None) -> str:
    if recipe.data.folder is not None:
        return recipe.data.folder
    if recipe.data.embedded != "scenes":
        raise UserError(f"this recipe brings no images for {recipe.task}: give a folder of them with --data")
    scenes = recipe.data.scenes
    settings = SceneSettings(train=scenes.train, val=scenes.val, seed=scenes.seed)
    return str(scenes_folder(settings, progress=progress))


def _checked(data: D, recipe: Recipe) -> D:
    for split, images in (("training", data.train), ("validation", data.val)):
        if len(images) == 0:
            raise UserError(f"{data_name(recipe)} has no {split} images: add some, or change data.val_fraction")
    return data
