"""Images with boxes and masks, read from COCO's JSON; targets as torchvision's detectors take them."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convattn.data.coco_file import CocoFile, CocoImage, Wanted, read_coco_file
from convattn.data.files import decode_all, image_fault, in_threads, upright_size
from convattn.data.folder import VAL_NAMES, Progress
from convattn.data.images import MAX_PIXELS, open_image
from convattn.data.masks import decode_mask
from convattn.data.problems import Problem, refuse_or_skip
from convattn.data.types import SkippedFile
from convattn.errors import UserError, user_path

Target = dict[str, Tensor]
"""An image's objects: boxes [N, 4] (x1, y1, x2, y2) float32, labels [N] int64 from 1, image_id, area [N], iscrowd [N];
with masks also masks [N, H, W] uint8."""

COCO_LAYOUT = """expected one of
  ROOT/annotations/instances_train*.json and instances_val*.json, with the images in ROOT/train*/ or ROOT/images/
  ROOT/train/*.json with ROOT/val/*.json (or valid/), the images beside them
  ROOT/train.json with ROOT/val.json, the images in ROOT/images/
  one annotations.json                     (a fixed part of its images is held out)"""

_REMEDY_MISSING = "put the image there, or remove its entry"


@dataclass(frozen=True)
class DetectionImages:
    """The images of an annotation file, in the file's order; each is opened when it is asked for.

    ``category_ids[label - 1]`` is the file's id of a label, ``annotations`` the file to compare results with.
    """

    root: Path
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

    def coco_dataset(self) -> dict[str, Any]:
        """Return the objects of these images as the content of a COCO file, the categories numbered as the labels.

        What was left out of the file is not in it, nor are the images of the other split.
        """
        images, annotations = [], []
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


@dataclass(frozen=True)
class DetectionData:
    """A data set for detection: its classes (label 1 is the first), the two splits and what was left out."""

    classes: list[str]
    train: DetectionImages
    val: DetectionImages
    skipped: list[SkippedFile] = field(default_factory=list)


def open_coco(
    annotations: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    wanted: Wanted = "masks",
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> tuple[list[str], DetectionImages, list[SkippedFile]]:
    """Open one annotation file with its images: the classes, the images and what was left out.

    Args:
        annotations: The JSON file: boxes, polygons, run lengths (compressed or not), crowds.
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
    if not found.entries:
        first = f"; the first problem: {problems[0]}" if problems else ": it lists none"
        raise UserError(f"{annotations}: no image is left{first}")
    return [name for _, name in file.categories], found, skipped


def check_coco(
    annotations: str | os.PathLike[str],
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
    path = user_path(annotations)
    folders: list[Path] = [] if images is None else [_folder(user_path(images))]

    def size_of(name: str) -> tuple[int, int] | None:
        candidates = folders or image_folders(path)
        place = next((folder / name for folder in candidates if _is_file(folder / name)), None)
        if place is None or image_fault(place, decode=False) is not None:
            return None
        return upright_size(place)

    file = read_coco_file(path, wanted, size_of=size_of)
    root = folders[0] if folders else find_images(path, [image.file for image in file.images])
    faults = _file_faults(root, file.images, progress)
    bad = {problem.id for problem in faults}
    entries = tuple(image for image in file.images if image.id not in bad)
    ids = tuple(id for id, _ in file.categories)
    return file, DetectionImages(root, path, entries, ids, wanted), [*file.problems, *faults]


def open_detection(
    root: str | os.PathLike[str],
    *,
    wanted: Wanted = "masks",
    val_fraction: float = 0.2,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> DetectionData:
    """Open a folder of images with COCO annotations, or one annotation file, as training and validation images.

    A single annotation file is split by a hash of each image's name, so that the split is the same everywhere.

    Raises:
        UserError: There is no such layout, or the two files name different classes.
        BadData: Something is wrong, and ``skip_bad`` is off.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction={val_fraction}: the held-out part of the images lies between 0 and 1, as in 0.2")
    train_file, val_file = find_annotations(root)
    classes, train, skipped = open_coco(train_file, wanted=wanted, skip_bad=skip_bad, progress=progress)
    if val_file is None:
        train, val = _split(train, val_fraction)
    else:
        val_classes, val, more = open_coco(val_file, wanted=wanted, skip_bad=skip_bad, progress=progress)
        skipped += more
        if (val_classes, val.category_ids) != (classes, train.category_ids):
            raise UserError(
                f"{val_file}: its categories are not those of {train_file}: {_listed(val, val_classes)} against "
                f"{_listed(train, classes)}; give both files the same list, with the same ids"
            )
    return DetectionData(classes, train, val, skipped)


def find_annotations(root: str | os.PathLike[str]) -> tuple[Path, Path | None]:
    """Return the annotation files to train and to validate on; the second is None where one file holds all.

    Raises:
        UserError: There are none, or it is not clear which are meant.
    """
    path = user_path(root)
    if path.is_file():
        return path, None
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; give a folder or an annotation file, {COCO_LAYOUT}")
    files = annotation_files(path)
    train = [file for file in files if _split_of(path, file) == "train"]
    val = [file for file in files if _split_of(path, file) == "val"]
    if len(train) == 1 and len(val) == 1:
        return train[0], val[0]
    if len(files) == 1 and not val:
        return files[0], None
    found = ", ".join(str(file.relative_to(path)) for file in files[:8]) or "no JSON file"
    raise UserError(f"{path}: found {found}; {COCO_LAYOUT}; or name one annotation file")


def annotation_files(root: Path) -> list[Path]:
    """Return the JSON files that can be annotations: in ``root``, its ``annotations/`` and its splits' folders.

    COCO's captions and key points beside the instances are passed over.
    """
    folders = [root, root / "annotations", *(root / name for name in ("train", *VAL_NAMES))]
    found = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))]
    found = [file for file in found if not file.name.startswith(".") and file.name != "scenes.json"]
    instances = [file for file in found if file.name.startswith("instances_")]
    return instances or found


def image_folders(annotations: Path) -> list[Path]:
    """Return the folders that may hold an annotation file's images, the likeliest first."""
    stem = annotations.stem
    names = dict.fromkeys([stem, stem.partition("_")[2], *re.findall(r"train\d*|val\d*|valid|validation", stem)])
    near = [annotations.parent, annotations.parent.parent]
    below = [base / folder / name for base in near for folder in ("images", "") for name in names if name]
    return [folder for folder in [*below, *(base / "images" for base in near), *near] if folder.is_dir()]


def find_images(annotations: Path, names: Sequence[str]) -> Path:
    """Return the folder that holds the most of a sample of an annotation file's images.

    Raises:
        UserError: None is found.
    """
    sample = names[:: max(1, len(names) // 50)]
    folders = image_folders(annotations)
    counts = [sum(_is_file(folder / name) for name in sample) for folder in folders]
    if max(counts, default=0) == 0 and names:
        looked = ", ".join(str(folder) for folder in folders)
        raise UserError(
            f"{annotations}: found none of its {len(names)} images, as {names[0]}, in {looked}; "
            "put them beside the file in images/, or name their folder"
        )
    return folders[counts.index(max(counts))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the disk, a folder that may not be looked into
        return False


def _file_faults(root: Path, images: Sequence[CocoImage], progress: Progress | None) -> list[Problem]:
    """Check the image files themselves: there, whole, of the size that the annotations say."""
    decode = decode_all([root / image.file for image in images])

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
        remedy = _REMEDY_MISSING if fault[0] == "no such file" else fault[1]
        return Problem(str(path), image.id, "images.file_name", fault[0], remedy)

    return [problem for problem in in_threads(check, images, progress) if problem is not None]


def _split(images: DetectionImages, val_fraction: float) -> tuple[DetectionImages, DetectionImages]:
    """Hold out the images whose names have the smallest hashes."""
    if len(images) < 2:
        raise UserError(f"{images.annotations}: one image cannot be split; add images to validate on")
    ranked = sorted(
        images.entries, key=lambda entry: hashlib.sha256(entry.file.encode(errors="surrogateescape")).digest()
    )
    count = min(max(int(len(ranked) * val_fraction + 0.5), 1), len(ranked) - 1)
    held_out = {entry.id for entry in ranked[:count]}
    train = tuple(entry for entry in images.entries if entry.id not in held_out)
    val = tuple(entry for entry in images.entries if entry.id in held_out)
    return replace(images, entries=train), replace(images, entries=val)


def _split_of(root: Path, file: Path) -> str | None:
    words = set(re.split(r"[^a-z]+", "/".join(file.relative_to(root).with_suffix("").parts).lower()))
    if words & set(VAL_NAMES):
        return "val"
    return "train" if "train" in words else None


def _folder(path: Path) -> Path:
    if path.is_dir():
        return path
    raise UserError(f"{path}: no such folder of images")


def _listed(images: DetectionImages, classes: Sequence[str]) -> str:
    pairs = [f"{id} {name!r}" for id, name in zip(images.category_ids, classes, strict=True)]
    return ", ".join(pairs[:5]) + (f" and {len(pairs) - 5} more" if len(pairs) > 5 else "")
