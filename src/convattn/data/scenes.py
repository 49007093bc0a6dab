"""The scenes that need no download: scikit-learn's real digits on crops of its two photos, as COCO JSON and PNG.

The label PNGs and the JSON are read by the loaders that read anyone's data.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from convattn.data.coco import DetectionData, open_detection
from convattn.data.coco_file import Wanted
from convattn.data.digits import Digits, open_digits
from convattn.data.masks import encode_mask, mask_tools
from convattn.data.scene_drawing import Scene, SceneStyle, Source, draw_scene
from convattn.data.segmentation import SegmentationData, open_segmentation, write_label_map
from convattn.errors import UserError, user_path

Split = Literal["train", "val"]

SPLITS: tuple[Split, Split] = ("train", "val")

VERSION = 1
"""Counted up when the same settings give other scenes, so that no cache serves the old ones."""

PHOTOS = ("china.jpg", "flower.jpg")
TRAIN_AREA = 0.7
"""The part of each photo's width, from the left, that training scenes are cropped from; the rest is held out."""

DIGIT_NAMES = [str(digit) for digit in range(10)]

RECORD = "scenes.json"
"""Written last: a folder that has it is whole."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SceneSettings:
    """Which scenes: how many, from which seed and how they look."""

    train: int = 1000
    val: int = 200
    seed: int = 0
    style: SceneStyle = field(default_factory=SceneStyle)

    def folder_name(self) -> str:
        """Return the name of these scenes' folder in the cache."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return f"scenes-{self.train}-{self.val}-{self.style.size}px-{sha256(text.encode()).hexdigest()[:12]}"


def open_scenes(
    wanted: Wanted = "masks",
    settings: SceneSettings | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> DetectionData:
    """Return the scenes with boxes or masks: ten classes, the digits; written first where they are not in the cache.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> data = open_scenes(settings=SceneSettings(train=4, val=2), cache=folder)
        >>> len(data.train), len(data.val), len(data.classes), data.train.image(0).size
        (4, 2, 10, (128, 128))
    """
    return open_detection(scenes_folder(settings, cache=cache, progress=progress), wanted=wanted)


def open_scene_labels(
    settings: SceneSettings | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SegmentationData:
    """Return the same scenes with a label map each: eleven classes, the ground and the digits.

    Example:
        >>> data = open_scene_labels(SceneSettings(train=4, val=2), cache=tempfile.mkdtemp())
        >>> data.classes[:3], data.train.label_map(0).shape
        (['ground', '0', '1'], (128, 128))
    """
    return open_segmentation(scenes_folder(settings, cache=cache, progress=progress))


def scenes_folder(
    settings: SceneSettings | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of the scenes, written when it is first asked for.

    The folder appears whole or not at all, whatever stops the process; of two processes that write it one wins.

    Args:
        settings: Which scenes.
        cache: The folder to keep them in; by default :func:`default_cache`.
        progress: Called with (scenes written, scenes in all) while they are written.

    Raises:
        UserError: The cache cannot be written, or scikit-learn or pycocotools is missing.
    """
    settings = settings or SceneSettings()
    root = default_cache() if cache is None else user_path(cache)
    folder = root / settings.folder_name()
    if (folder / RECORD).is_file():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".scenes-", dir=root, ignore_cleanup_errors=True) as place:
            draft = Path(place) / "scenes"
            write_scenes(draft, settings, progress)
            _move(draft, folder)
    except OSError as error:
        raise UserError(
            f"{root}: the scenes cannot be written: {error}; free the space or name another folder: cache=..., or set "
            "TORCH_HOME"
        ) from error
    return folder


def default_cache() -> Path:
    """Return the folder for generated data: beside torch's downloads, so ``TORCH_HOME`` moves it."""
    return Path(torch.hub.get_dir()).parent / "convattn"


def write_scenes(root: Path, settings: SceneSettings, progress: Progress | None = None) -> None:
    """Write both splits below ``root``: images/, labels/, annotations/instances_*.json, classes.txt.

    Scene ``i`` of a split depends on (seed, split, i) and the style alone: the same bytes of JSON and the same pixels.
    """
    mask_tools()
    total, done = settings.train + settings.val, 0
    for number, split in enumerate(SPLITS):
        source = scene_source(split)
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        file: dict[str, Any] = {"images": [], "annotations": [], "categories": _categories()}
        for index in range(getattr(settings, split)):
            scene = draw_scene(source, settings.style, np.random.default_rng([settings.seed, number, index]))
            name = f"{index + 1:05}.png"
            Image.fromarray(scene.pixels).save(root / "images" / split / name, "PNG", compress_level=1)
            write_label_map(root / "labels" / split / name, scene.label_map())
            _describe(scene, index + 1, name, file)
            done += 1
            if progress is not None:
                progress(done, total)
        _write_json(root / "annotations" / f"instances_{split}.json", file)
    (root / "classes.txt").write_text("\n".join(["ground", *DIGIT_NAMES]) + "\n", encoding="utf-8")
    _write_json(root / RECORD, {"version": VERSION, **asdict(settings)})


def scene_source(split: Split) -> Source:
    """Return what a split's scenes are made of: its digits are those of ``open_digits``, its photo area its own.

    Example:
        >>> {area for _, _, area in scene_source("val").areas}
        {(448, 0, 640, 427)}
    """
    data = open_digits()
    digits = data.train if split == "train" else data.val
    if not isinstance(digits, Digits):
        raise TypeError(f"the digits are {type(digits).__name__}, expected Digits")
    areas = []
    for name, photo in _photos():
        edge = int(photo.width * TRAIN_AREA)
        area = (0, 0, edge, photo.height) if split == "train" else (edge, 0, photo.width, photo.height)
        areas.append((name, photo, area))
    return Source(digits.scans, digits.labels, digits.numbers, tuple(areas))


def _photos() -> list[tuple[str, Image.Image]]:
    from sklearn.datasets import load_sample_image

    return [(name, Image.fromarray(load_sample_image(name))) for name in PHOTOS]


def _categories() -> list[dict[str, Any]]:
    return [{"id": digit + 1, "name": name, "supercategory": "digit"} for digit, name in enumerate(DIGIT_NAMES)]


def _describe(scene: Scene, image_id: int, name: str, file: dict[str, Any]) -> None:
    """Add a scene's entries: its image with the photo and crop behind it, its digits with the scan behind them."""
    height, width = scene.pixels.shape[:2]
    image = {"id": image_id, "file_name": name, "height": height, "width": width}
    file["images"].append({**image, "photo": scene.photo, "crop": list(scene.crop)})
    tools = mask_tools()
    for thing in scene.things:
        runs = encode_mask(thing.mask)
        file["annotations"].append(
            {
                "id": len(file["annotations"]) + 1,
                "image_id": image_id,
                "category_id": thing.digit + 1,
                "bbox": [float(side) for side in tools.toBbox(runs)],
                "area": int(tools.area(runs)),
                "iscrowd": 0,
                "segmentation": runs,
                "scan": thing.number,
            }
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n", encoding="utf-8")


def _move(draft: Path, folder: Path) -> None:
    """Put a whole draft in its place, unless another process was first."""
    try:
        draft.rename(folder)
    except OSError:
        if (folder / RECORD).is_file():
            return
        shutil.rmtree(folder)  # an unfinished folder by that name: a copy that someone interrupted
        draft.rename(folder)
