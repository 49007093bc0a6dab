"""Data sets of Hugging Face ``datasets`` with something wrong in them, and what no task takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convattn.data.checks import check_data
from convattn.data.classes import open_classes
from convattn.data.coco import open_detection
from convattn.data.segmentation import open_segmentation
from convattn.errors import UserError
from tests.data import same_data
from tests.data.same_data import Write
from tests.data.test_bad_formats import boxes, text, told


def saved(
    root: Path, content: list[dict[str, Any]], features: Callable[[Any], dict[str, Any]], keep: range | None = None
) -> Path:
    datasets = pytest.importorskip("datasets")
    parts = datasets.Dataset.from_list(content, features=datasets.Features(features(datasets)))
    parts = parts if keep is None else parts.select(keep)
    datasets.DatasetDict({"train": parts}).save_to_disk(str(root / "saved"))
    return root / "saved"


def picture(content: bytes | None = None) -> dict[str, Any]:
    stored = same_data.png(Image.new("RGB", (8, 6))) if content is None else content
    return {"image": {"bytes": stored, "path": None}}


def labelled(*labels: Any, kind: str = "int64", column: str = "label", image: bytes | None = None) -> Write:
    def write(root: Path) -> Path:
        rows = [{**picture(image), column: label} for label in labels]
        return saved(root, rows, lambda d: {"image": d.Image(), column: d.Value(kind)})

    return write


def columns(**kinds: str) -> Write:
    def write(root: Path) -> Path:
        row = {name: picture()["image"] if kind == "Image" else 1 for name, kind in kinds.items()}

        def features(d: Any) -> dict[str, Any]:
            return {name: d.Image() if kind == "Image" else d.Value(kind) for name, kind in kinds.items()}

        return saved(root, [row, row], features)

    return write


def without_image(root: Path) -> Path:
    rows = [{**picture(), "label": 0}, {"image": None, "label": 0}, {**picture(), "label": 1}]
    return saved(root, [*rows, rows[0], rows[2]], lambda d: {"image": d.Image(), "label": d.Value("int64")})


def no_rows(root: Path) -> Path:
    return saved(
        root, [{**picture(), "label": 0}], lambda d: {"image": d.Image(), "label": d.Value("int64")}, keep=range(0)
    )


def splits(*names: str) -> Write:
    """Two rows a split, each with classes of its own."""

    def write(root: Path) -> Path:
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        parts = {
            name: datasets.Dataset.from_list([{**picture(), "label": 2 * i + j} for j in (0, 1)], features=features)
            for i, name in enumerate(names)
        }
        datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
        return root / "saved"

    return write


def mapped(labels: np.ndarray | bytes) -> Write:
    """Four rows with label maps, one of them as given."""

    def stored(content: np.ndarray | bytes) -> dict[str, Any]:
        if isinstance(content, np.ndarray):
            kind = np.uint16 if content.max() > 255 else np.uint8
            content = same_data.png(Image.fromarray(content.astype(kind)))
        return {"bytes": content, "path": None}

    def write(root: Path) -> Path:
        right = np.eye(6, 8)
        rows = [{**picture(), "annotation": stored(one)} for one in (right, labels, right, right)]
        return saved(root, rows, lambda d: {"image": d.Image(), "annotation": d.Image()})

    return write


def boxed(*rows: dict[str, Any], names: tuple[str, ...] = ("cat", "dog")) -> Write:
    """Rows of objects in two right ones."""
    right = {"bbox": [[1.0, 1.0, 3.0, 3.0]], "category": [0]}

    def write(root: Path) -> Path:
        content = [{**picture(), "objects": row} for row in (right, *rows, right)]

        def features(d: Any) -> dict[str, Any]:
            inner = {"bbox": d.List(d.List(d.Value("float32"))), "category": d.List(d.Value("int64"))}
            return {"image": d.Image(), "objects": inner}

        return saved(root, content, features)

    return write


def one(box: list[float], category: int = 0) -> dict[str, Any]:
    return {"bbox": [box], "category": [category]}


HUB: dict[str, tuple[Write, Callable[[Path], Any], str]] = {
    "no-label": (labelled(0, None, 1, 0, 1), open_classes, "train/00000001/image: no label: fill it in"),
    "an-empty-label": (labelled("a", "", "b", "a", "b", kind="string"), open_classes, "train/00000001/image: no label"),
    "minus-one": (labelled(0, -1, 1, 0, 1), open_classes, "train/00000001/image: no label"),
    "no-class-column": (labelled(0.5, 1.5, kind="float32"), open_classes, "no column with a class for each image"),
    "a-bad-image": (labelled(0, 1, image=b"<html>"), open_classes, "train/00000000/image: not an image that Pillow"),
    "an-empty-image": (labelled(0, 1, image=b""), open_classes, "train/00000000/image: "),
    "no-boxes": (labelled(0, 1), open_detection, "no column with objects with bbox and category: its columns are"),
    "no-maps": (labelled(0, 1), open_segmentation, "no column with a label map for each"),
    "no-area": (boxed(one([1, 1, 0, 3])), boxes, "saved: train row 1: bbox: train/00000001/image: the box"),
    "beyond-the-border": (
        boxed(one([1, 1, 30, 3])),
        boxes,
        "saved: train row 1: bbox: train/00000001/image: the",
    ),
    "three-numbers": (
        boxed(one([1, 1, 3])),
        boxes,
        "saved: train row 1: bbox: train/00000001/image: the box is",
    ),
    "not-finite": (boxed(one([1, 1, 3, float("nan")])), boxes, "saved: train row 1: bbox: "),
    "more-boxes": (
        boxed({"bbox": [[1, 1, 3, 3]] * 2, "category": [0]}),
        boxes,
        "saved: train row 1: objects: 2 boxes and 1 categories",
    ),
    "no-category": (
        boxed({"bbox": [[1, 1, 3, 3]], "category": [None]}),
        boxes,
        "saved: train row 1: category: object 0: category None is none of the 1 classes",
    ),
    "no-image-column": (columns(label="int64"), open_classes, "no column with an image: its columns are 'label'"),
    "two-image-columns": (
        columns(left="Image", right="Image", label="int64"),
        open_classes,
        "no column with an image: 'left', 'right' could be it",
    ),
    "no-image": (without_image, open_classes, "train/00000001/image: no such file"),
    "another-split": (splits("fold1"), open_classes, "has no rows of a split called train; its splits are 'fold1'"),
    "no-rows": (no_rows, open_classes, "datasets cannot open it: list index out of range; write it again with save"),
    "a-class-of-val-alone": (splits("train", "val"), open_classes, "'2', '3' not among the 2 classes of the training"),
    "a-map-of-another-size": (
        mapped(np.eye(5, 8)),
        open_segmentation,
        "00000001/annotation: size: the label map is 8×5",
    ),
    "a-map-of-an-unknown-class": (mapped(np.full((6, 8), 300)), open_segmentation, "00000001/annotation: ids: id 300"),
    "an-empty-map": (mapped(b""), open_segmentation, "00000001/annotation: label map: not an image"),
    "a-map-of-colours": (
        mapped(np.zeros((6, 8, 3))),
        open_segmentation,
        "00000001/annotation: label map: a picture of",
    ),
}


@pytest.mark.parametrize("case", HUB)
def test_hub(tmp_path: Path, case: str) -> None:
    write, opened, says = HUB[case]
    data = write(tmp_path)
    checked, trained = told(data, opened)
    assert any(says in one for one in trained), trained
    if not case.startswith("no-boxes") and not case.startswith("no-maps"):  # check-data reads what is there
        assert any(says in one for one in checked), checked


def test_a_damaged_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    data = same_data.hub_classes(tmp_path)
    text("train/dataset_info.json", "{")(data)
    assert "datasets cannot open it: " in told(data, open_classes)[0][0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("photos.zip", "a packed file; unpack it, and give the folder"),
        ("photos.tar.gz", "a packed file; unpack it, and give the folder"),
        ("photos.jsonl", "JSON lines, which are not read; write a CSV file"),
        ("photos.tfrecord", "TFRecords, which are not read"),
        ("photos.xlsx", "a spreadsheet; save it as CSV"),
        ("1.xml", "one annotation; give the folder above Annotations/"),
        ("hfids/food101", "hfids/ is a stream, and training takes images in an order of its own: give hfds/NAME"),
    ],
)
def test_what_is_not_taken(name: str, says: str) -> None:
    for opened in (open_classes, open_detection, open_segmentation, check_data):
        with pytest.raises(UserError, match=says.replace(".", r"\.")):
            opened(Path(name))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("write", "opened", "says"),
    [
        (
            same_data.yolo,
            open_classes,
            "holds YOLO labels, which do not say a class for each image: they are for --task det",
        ),
        (same_data.yolo, open_segmentation, "holds YOLO labels, which do not say label maps"),
        (same_data.table, open_detection, "holds a table of images, which do not say boxes: they are for --task class"),
        (
            same_data.shards,
            open_detection,
            "holds tar shards, which do not say boxes: they are for --task classification",
        ),
    ],
)
def test_a_task_that_the_format_is_not_for(tmp_path: Path, write: Write, opened: Any, says: str) -> None:
    data = write(tmp_path)
    with pytest.raises(UserError, match=says):
        opened(data)


def test_json_that_is_no_coco_is_still_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"images": []}))
    assert told(tmp_path / "a.json", open_detection)[0][0].endswith('under "images", "annotations" and "categories")')
