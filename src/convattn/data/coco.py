"""Images with boxes and masks, read from COCO's JSON; targets as torchvision's detectors take them."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convattn.data.coco_file import CocoFile, CocoImage, Wanted, read_coco_file
from convattn.data.coco_layout import find_images, image_file, image_folders, similar_files
from convattn.data.files import decode_all, image_fault, in_threads, readable_size, upright_size
from convattn.data.folder import TRAINED_ON, Progress, file_key, shared_files
from convattn.data.formats import coco_parts
from convattn.data.forms import CocoContent
from convattn.data.images import MAX_PIXELS, open_image
from convattn.data.masks import decode_mask
from convattn.data.names import HeldOut, check_held_out, counted, name_some, shortened, validation_names
from convattn.data.packed import Folder
from convattn.data.problems import Problem, errors, refuse_or_skip
from convattn.data.types import DataSet, SkippedFile
from convattn.errors import UserError, user_path

Target = dict[str, Tensor]
"""An image's objects: boxes [N, 4] (x1, y1, x2, y2) float32, labels [N] int64 from 1, image_id, area [N], iscrowd [N];
with masks also masks [N, H, W] uint8."""

Annotations: TypeAlias = str | os.PathLike[str] | CocoContent

Checked = tuple[CocoFile, "DetectionImages"]
"""What an annotation file says, and the images that can be used."""

_REMEDY_MISSING = "put the image there, or remove its entry"


@dataclass(frozen=True)
class DetectionImages:
    """The images of an annotation file, in the file's order; each is opened when it is asked for.

    ``category_ids[label - 1]`` is the file's id of a label, ``annotations`` the file to compare results with.
    """

    root: Folder
    annotations: Path
    entries: tuple[CocoImage, ...]
    category_ids: tuple[int, ...]
    wanted: Wanted = "masks"

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as upright RGB."""
        return open_image(self.root / self.entries[index].file)

    def name(self, index: int) -> str:
        """Return the file of image ``index``, as the annotation file names it."""
        return self.entries[index].file

    def target(self, index: int) -> Target:
        """Return the objects of image ``index``, crowds included; an image without objects has empty tensors."""
        entry = self.entries[index]
        objects = entry.objects
        target: Target = {
            "boxes": torch.tensor([one.box for one in objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([one.label for one in objects], dtype=torch.int64),
            "image_id": torch.tensor(entry.id, dtype=torch.int64),
            "area": torch.tensor([one.area for one in objects], dtype=torch.float32),
            "iscrowd": torch.tensor([one.crowd for one in objects], dtype=torch.int64),
        }
        if self.wanted == "masks":
            shape = (entry.height, entry.width)
            masks = [decode_mask(one.segmentation, *shape) for one in objects]
            target["masks"] = torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *shape), np.uint8))
        return target

    def with_objects(self) -> "DetectionImages":
        """Return the images that have an object, crowds aside."""
        return replace(self, entries=tuple(entry for entry in self.entries if not all(o.crowd for o in entry.objects)))

    def coco_dataset(self) -> dict[str, Any]:
        """Return the objects of these images as the content of a COCO file, the categories numbered as the labels.

        What was left out of the file is not in it, nor are the images of the other split.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for entry in self.entries:
            images.append({"id": entry.id, "file_name": entry.file, "width": entry.width, "height": entry.height})
            for one in entry.objects:
                x1, y1, x2, y2 = one.box
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": entry.id,
                    "category_id": one.label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": one.area,
                    "iscrowd": int(one.crowd),
                }
                if self.wanted == "masks":
                    annotation["segmentation"] = one.segmentation
                annotations.append(annotation)
        categories = [{"id": label, "name": str(label)} for label in range(1, len(self.category_ids) + 1)]
        return {"images": images, "annotations": annotations, "categories": categories}


DetectionData: TypeAlias = DataSet[DetectionImages]
"""A data set for detection; label 1 is the first class."""


def open_coco(
    annotations: Annotations,
    *,
    images: str | os.PathLike[str] | None = None,
    wanted: Wanted = "masks",
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> tuple[list[str], DetectionImages, list[SkippedFile]]:
    """Open one annotation file with its images: the classes, the images and what was left out.

    Args:
        annotations: The JSON file: boxes, polygons, run lengths (compressed or not), crowds; or what
            :func:`~convattn.data.formats.coco_parts` made of another format.
        images: The folder of its images; without it the usual places are looked through.
        wanted: "boxes", or "masks" for both.
        skip_bad: Go on without what is wrong: a wrong annotation leaves its image in training without that object, a
            wrong image goes with its objects.
        progress: Called with (images checked, images in all).

    Raises:
        BadData: Something is wrong, and ``skip_bad`` is off; or nothing is left.
        UserError: The images are not found.
    """
    file, found, problems = check_coco(annotations, images=images, wanted=wanted, progress=progress)
    skipped = refuse_or_skip(problems, skip_bad=skip_bad)
    return [name for _, name in file.categories], found, skipped


def check_coco(
    annotations: Annotations,
    *,
    images: str | os.PathLike[str] | None = None,
    wanted: Wanted = "masks",
    progress: Progress | None = None,
) -> tuple[CocoFile, DetectionImages, list[Problem]]:
    """Return what an annotation file says, the images that can be used, and every problem of either.

    Raises:
        BadData: The file as a whole cannot be used.
        UserError: The images are not found.
    """
    source = annotations if isinstance(annotations, CocoContent) else user_path(annotations)
    path = source.path if isinstance(source, CocoContent) else source
    folders: list[Folder] = [source.images] if isinstance(source, CocoContent) else []
    if images is not None:
        folders = [_folder(user_path(images))]

    def size_of(name: str) -> tuple[int, int] | None:
        candidates = folders or image_folders(path)
        places = (folder / found for folder in candidates if (found := image_file(folder, name)) is not None)
        place = next(places, None)
        return None if place is None else readable_size(place)

    file = read_coco_file(source, wanted, size_of=size_of)
    root = folders[0] if folders else find_images(path, [image.file for image in file.images])
    found = [replace(image, file=image_file(root, image.file) or image.file) for image in file.images]
    faults = [*_listed_twice(path, root, found), *_file_faults(root, found, progress)]
    bad = {problem.id for problem in faults}
    entries = tuple(image for image in found if image.id not in bad)
    problems = [*file.problems, *faults, *_class_notes(file, entries)]
    if not entries:
        remedy = f"mend its problems, the first: {problems[0]}" if errors(problems) else "add images"
        problems.append(Problem(str(path), None, "images", "no image is left", remedy, level="fatal"))
    ids = tuple(id for id, _ in file.categories)
    return file, DetectionImages(root, path, entries, ids, wanted), problems


def check_parts(
    train: Checked, val: Checked | None, val_fraction: HeldOut = 0.2
) -> tuple[DetectionImages, DetectionImages, list[Problem]]:
    """Return the images to train and to validate on, and what is wrong between them.

    Args:
        train: What :func:`check_coco` says of the annotation file to train on.
        val: Of the one to validate on; None holds a part of the first one's images out.
        val_fraction: How large that part is.
    """
    (train_file, training), problems = train, []
    if val is None:
        if len(training) == 1:
            what = "one image cannot be split"
            problems.append(Problem(str(train_file.path), None, "", what, "add images to validate on", level="fatal"))
        training, validating = _split(training, val_fraction)
    else:
        val_file, validating = val
        if val_file.categories != train_file.categories:
            lists = f"{_listed(val_file.categories)} against {_listed(train_file.categories)}"
            what = f"its categories are not those of {train_file.path}: {lists}"
            remedy = "give both files the same list, with the same ids"
            problems.append(Problem(str(val_file.path), None, "", what, remedy, level="fatal"))
        validating, shared = _without_shared(training, validating)
        problems += shared
    if training.entries and not has_objects(training):
        what = f"no object on its {counted(len(training), 'training image')}, crowds aside"
        remedy = "annotate some: a detector learns from them"
        problems.append(Problem(str(training.annotations), None, "", what, remedy, level="fatal"))
    if validating.entries and not has_objects(validating):
        what, remedy = "the images to validate on have no object", "annotate some: nothing can be measured without"
        problems.append(Problem(str(validating.annotations), None, "", what, remedy, level="note"))
    return training, validating, problems


def open_detection(
    root: str | os.PathLike[str],
    *,
    wanted: Wanted = "masks",
    val_fraction: HeldOut = 0.2,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> DetectionData:
    """Open images with boxes, and masks where they are wanted, as training and validation images.

    COCO's annotations, YOLO's ``data.yaml``, Pascal VOC's folders and data sets of Hugging Face ``datasets`` are
    read. Data without a validation split is split by a hash of each image's name, the same everywhere.

    Raises:
        UserError: There is no such layout, or the two files name different classes.
        BadData: Something is wrong, and ``skip_bad`` is off.
    """
    sources = coco_parts(root)
    check_held_out(val_fraction, own_val="val" in sources, source=root)
    files = [sources["train"], *([sources["val"]] if "val" in sources else [])]
    found = [check_coco(file, wanted=wanted, progress=progress) for file in files]
    parts = [(file, images) for file, images, _ in found]
    train, val, problems = check_parts(parts[0], parts[1] if len(parts) > 1 else None, val_fraction)
    skipped = refuse_or_skip([problem for one in found for problem in one[2]] + problems, skip_bad=skip_bad)
    return DetectionData([name for _, name in parts[0][0].categories], train, val, skipped)


def has_objects(images: DetectionImages) -> bool:
    """Tell whether any image has an object, crowds aside."""
    return any(not one.crowd for image in images.entries for one in image.objects)


def _file_faults(root: Folder, images: Sequence[CocoImage], progress: Progress | None) -> list[Problem]:
    """Check the image files themselves: there, whole, of the size that the annotations say."""
    decode, similar = decode_all([root / image.file for image in images]), similar_files()

    def check(image: CocoImage) -> Problem | None:
        path = root / image.file
        fault = image_fault(path, decode=decode)
        if fault is None:
            size = upright_size(path)
            if size[0] * size[1] > MAX_PIXELS:
                what = f"the image is {size[0]}×{size[1]}, so large that it is read smaller, where its boxes do not fit"
                return Problem(str(path), image.id, "images.width", what, "save a smaller copy, and scale its boxes")
            if size == (image.width, image.height):
                return None
            what = f"the image is {size[0]}×{size[1]}, the annotations say {image.width}×{image.height}"
            return Problem(str(path), image.id, "images.width", what, "save the image at the size that was annotated")
        remedy = fault[1]
        if fault[0] == "no such file":
            near = similar(root, image.file)
            remedy = _REMEDY_MISSING if near is None else f"there is {near}: write its name as it is"
        return Problem(str(path), image.id, "images.file_name", fault[0], remedy)

    return [problem for problem in in_threads(check, images, progress) if problem is not None]


def _listed_twice(path: Path, root: Folder, images: Sequence[CocoImage]) -> list[Problem]:
    """Name the entries that lead to one file, however it is spelled or linked: each has a part of its objects."""
    entries: dict[tuple[int, int], list[CocoImage]] = defaultdict(list)
    for image in images:
        key = file_key(root / image.file)
        if key is not None:
            entries[key].append(image)
    problems = []
    for same in entries.values():
        ids = ", ".join(str(image.id) for image in same)
        what, remedy = f"is one file under the ids {ids}", "list the image once, with all its objects"
        if len(same) > 1:
            problems += [Problem(str(path), one.id, "images.file_name", f"{one.file} {what}", remedy) for one in same]
    return problems


def _class_notes(file: CocoFile, entries: Sequence[CocoImage]) -> list[Problem]:
    """Note the classes that nothing teaches, and those of one name."""
    labels = {one.label for image in entries for one in image.objects if not one.crowd}
    unused = [name for label, (_, name) in enumerate(file.categories, 1) if label not in labels]
    names = Counter(name for _, name in file.categories)
    twice = [name for name, count in names.items() if count > 1]
    notes = []
    if unused and labels:
        what = f"{len(unused)} of {counted(len(file.categories), 'class')} without an object: {name_some(unused)}"
        notes.append((what, "nothing to do, if that is meant: none is learned or measured"))
    if twice:
        what = f"{name_some(twice)} named twice, under different ids"
        notes.append((what, "nothing to do, if they are different: they are learned apart"))
    return [Problem(str(file.path), None, "categories", *note, level="note") for note in notes]


def _split(images: DetectionImages, val_fraction: HeldOut) -> tuple[DetectionImages, DetectionImages]:
    """Hold out the images whose names have the smallest hashes."""
    chosen = validation_names([_hashed(entry) for entry in images.entries], val_fraction)
    train = tuple(entry for entry in images.entries if _hashed(entry) not in chosen)
    val = tuple(entry for entry in images.entries if _hashed(entry) in chosen)
    return replace(images, entries=train), replace(images, entries=val)


def _hashed(entry: CocoImage) -> str:
    return entry.file.replace("\\", "/")


def _without_shared(train: DetectionImages, val: DetectionImages) -> tuple[DetectionImages, list[Problem]]:
    """Return the validation images that are not trained on, and a problem for each of the others."""
    places = {val.root / entry.file: entry for entry in val.entries}
    shared = shared_files((train.root / entry.file for entry in train.entries), places)
    entries = tuple(entry for place, entry in places.items() if place not in shared)
    if shared and not entries:
        what = f"no image is left to validate on: all are in {train.annotations} too"
        remedy = "remove the file, and a part of the images is held out; or annotate others"
        return replace(val, entries=()), [Problem(str(val.annotations), None, "images", what, remedy, level="fatal")]
    remedy = f"take it out of {train.annotations} or of {val.annotations}"
    problems = [
        Problem(str(place), entry.id, "images.file_name", TRAINED_ON, remedy)
        for place, entry in places.items()
        if place in shared
    ]
    return replace(val, entries=entries), problems


def _folder(path: Path) -> Path:
    if path.is_dir():
        return path
    raise UserError(f"{path}: no such folder of images")


def _listed(categories: Sequence[tuple[int, str]]) -> str:
    return shortened([f"{id} {name!r}" for id, name in categories], 5)
