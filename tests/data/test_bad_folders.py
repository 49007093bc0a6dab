"""Bad class folders, pairs of images and label maps, and Parquet tables, as in :mod:`tests.data.test_bad_formats`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convattn.data.classes import open_classes
from convattn.data.segmentation import open_segmentation, write_label_map
from tests.data import same_data
from tests.data.same_data import HEIGHT, WIDTH
from tests.data.test_bad_formats import Change, agree, gone, text

CAT = "train/cat/001.png"


def cut(name: str, size: int) -> Change:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:size])


def linked(name: str, to: str) -> Change:
    def change(root: Path) -> None:
        (root / name).unlink()
        (root / name).symlink_to(root / to)

    return change


def emptied(folder: str) -> Change:
    return lambda root: [file.unlink() for file in (root / folder).iterdir()]


def moved(old: str, new: str) -> Change:
    return lambda root: shutil.move(root / old, root / new)


def drawn(name: str, image: Image.Image, **options: Any) -> Change:
    return lambda root: image.save(root / name, **options)


def damaged(root: Path) -> None:
    content = bytearray((root / CAT).read_bytes())
    content[60:90] = bytes(30)
    (root / CAT).write_bytes(content)


FOLDERS: dict[str, tuple[Change, str]] = {
    "empty": (text(CAT, b""), f"{CAT}: "),
    "a-page": (text(CAT, "<html>"), f"{CAT}: "),
    "cut-in-the-header": (cut(CAT, 20), f"{CAT}: "),
    "cut-in-the-middle": (cut(CAT, 3000), f"{CAT}: "),
    "damaged": (damaged, f"{CAT}: "),
    "a-link-to-nothing": (linked(CAT, "nowhere.png"), f"{CAT}: a link to a missing file"),
    "a-pipe": (lambda root: os.mkfifo(root / "train/cat/pipe.png"), "train/cat/pipe.png: not a regular file"),
    "a-float-image": (
        lambda root: Image.fromarray(np.full((4, 4), 900.0, np.float32)).save(root / "train/cat/float.tif"),
        "train/cat/float.tif: ",
    ),
    "too-many-pixels": (drawn("train/cat/wide.png", Image.new("1", (20_000, 5_000))), "train/cat/wide.png: "),
    "a-camera's-format": (text("train/cat/a.heic", "ftypheic"), "train/cat/a.heic: "),
    "no-image-of-a-class": (emptied("train/cat"), "train: no images in the class folder 'cat'; add images or"),
    "no-good-image-of-a-class": (
        lambda root: [file.write_bytes(b"") for file in (root / "train/cat").iterdir()],
        "train: no image of the class 'cat' can be read; 4 skipped, the first train/cat/",
    ),
    "no-image-at-all": (
        lambda root: [emptied(f"train/{name}")(root) for name in same_data.CLASSES],
        "train: found 3 folders but no image in them; expected one of",
    ),
    "no-good-image-of-val": (
        lambda root: [file.write_bytes(b"") for file in (root / "val").glob("*/*")],
        "no readable image is left to validate on; add images; 12 skipped",
    ),
    "one-class": (
        lambda root: [shutil.rmtree(root / "train" / name) for name in ("dog", "eel")],
        "train: found only one class folder, 'cat', and a classifier needs two",
    ),
    "no-class-folder": (
        lambda root: [shutil.rmtree(root), root.mkdir(), Image.new("L", (4, 4)).save(root / "1.png")],
        "found 1 image but no class folders",
    ),
    "nothing": (lambda root: [shutil.rmtree(root), root.mkdir()], "found neither class folders nor images"),
    "val-alone": (lambda root: [shutil.rmtree(root / "train")], "found val/ but no train/"),
    "two-train-folders": (lambda root: shutil.copytree(root / "train", root / "Training"), "for one part"),
    "a-class-of-val-alone": (moved("val/cat", "val/zebra"), "'zebra' not among the 3 classes of train/"),
    "folders-above-the-classes": (
        lambda root: [moved(old, new)(root) for old, new in (("train", "one"), ("val", "two"), ("test", "three"))],
        "each with the same folders, 'cat', 'dog', 'eel': these look like the classes",
    ),
    "an-image-of-both-parts": (linked("val/cat/001.png", CAT), "val/cat/001.png: "),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(tmp_path: Path, case: str) -> None:
    agree(tmp_path / "data", same_data.class_folders, *FOLDERS[case], open_classes)


MAP = "labels/train/001.png"
PHOTO = "images/train/001.png"


def ids(labels: np.ndarray, name: str = MAP) -> Change:
    return lambda root: write_label_map(root / name, labels)


PAIRS: dict[str, tuple[Change, str]] = {
    "an-empty-image": (text(PHOTO, b""), f"{PHOTO}: image: the file is empty"),
    "a-page": (text(PHOTO, "<html>"), f"{PHOTO}: image: not an image that Pillow can read"),
    "a-cut-image": (cut(PHOTO, 3000), f"{PHOTO}: image: truncated or damaged"),
    "a-link-to-nothing": (linked(PHOTO, "nowhere.png"), f"{PHOTO}: image: a link to a missing file"),
    "an-empty-map": (text(MAP, b""), f"{MAP}: label map: the file is empty"),
    "a-map-of-text": (text(MAP, "0 0 1"), f"{MAP}: label map: not an image that Pillow can read"),
    "a-cut-map": (cut(MAP, 60), f"{MAP}: label map: truncated or damaged"),
    "no-map": (gone(MAP), f"{PHOTO}: pair: no label map of the name 001 in labels/train/"),
    "no-image": (gone(PHOTO), f"{MAP}: pair: no image of the name 001 in images/train/"),
    "two-images": (
        drawn("images/train/001.jpg", Image.new("RGB", (WIDTH, HEIGHT))),
        "images/train/001.png: pair: 2 files of the name 001, as 001.jpg",
    ),
    "two-maps": (
        drawn("labels/train/001.bmp", Image.new("L", (WIDTH, HEIGHT))),
        "labels/train/001.png: pair: 2 files of the name 001, as 001.bmp",
    ),
    "another-size": (ids(np.zeros((HEIGHT, WIDTH + 1))), f"{MAP}: size: the label map is 54×41, its image 001.png is"),
    "turned": (ids(np.zeros((WIDTH, HEIGHT))), f"{MAP}: size: the label map is 41×53, its image 001.png is 53×41"),
    "an-unknown-id": (ids(np.full((HEIGHT, WIDTH), 7)), f"{MAP}: ids: id 7 is no class: the 3 classes are 0 to 2"),
    "an-unknown-id-of-val": (
        ids(np.full((HEIGHT, WIDTH), 9), "labels/val/001.png"),
        "labels/val/001.png: ids: id 9 is no class",
    ),
    "an-id-beyond-a-byte": (
        drawn(MAP, Image.fromarray(np.full((HEIGHT, WIDTH), 300, np.uint16))),
        f"{MAP}: ids: id 300 is no class",
    ),
    "colours": (drawn(MAP, Image.new("RGB", (WIDTH, HEIGHT))), f"{MAP}: label map: a picture of mode RGB"),
    "a-jpeg": (
        lambda root: [gone(MAP)(root), Image.new("L", (WIDTH, HEIGHT)).save(root / "labels/train/001.jpg")],
        "labels/train/001.jpg: label map: ",
    ),
    "fractions": (
        lambda root: [
            gone(MAP)(root),
            Image.fromarray(np.full((HEIGHT, WIDTH), 0.5, np.float32)).save(root / "labels/train/001.tif"),
        ],
        "labels/train/001.tif: label map: ",
    ),
    "one-class": (
        lambda root: [
            gone("classes.txt")(root),
            *(ids(np.zeros((HEIGHT, WIDTH)), str(one.relative_to(root)))(root) for one in root.glob("labels/*/*")),
        ],
        "the labels hold one class only",
    ),
    "nothing-labelled": (
        lambda root: [
            ids(np.full((HEIGHT, WIDTH), 255), str(one.relative_to(root)))(root) for one in root.glob("labels/*/*")
        ],
        "no pixel of its label maps has a class",
    ),
    "an-image-of-both-parts": (linked("images/val/001.png", PHOTO), "images/val/001.png: image: it is among the"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs(tmp_path: Path, case: str) -> None:
    agree(tmp_path, same_data.pairs, *PAIRS[case], open_segmentation)


Rows = list[dict[str, Any]]
PARQUET_FILE = "photos.parquet"
FIRST = "pictures/train/000.png"


def rows(change: Callable[[Rows], Any]) -> Change:
    """Write a table again with its rows changed; the last one is that of ``FIRST``."""

    def make(root: Path) -> None:
        import pyarrow
        from pyarrow.parquet import read_table, write_table

        content = read_table(root / PARQUET_FILE).to_pylist()
        change(content)
        write_table(pyarrow.Table.from_pylist(content), root / PARQUET_FILE)

    return make


def last(**values: Any) -> Change:
    return rows(lambda content: content[-1].update(values))


def renamed(old: str, new: str) -> Change:
    return rows(lambda content: [row.update({new: row.pop(old)}) for row in content])


ROW = f"{PARQUET_FILE}: row 36: "
PARQUET: dict[str, tuple[Change, str]] = {
    "empty": (text(PARQUET_FILE, b""), f"{PARQUET_FILE}: no Parquet file, or damaged"),
    "text": (text(PARQUET_FILE, "path,label\n"), f"{PARQUET_FILE}: no Parquet file, or damaged"),
    "cut": (cut(PARQUET_FILE, 500), f"{PARQUET_FILE}: no Parquet file, or damaged"),
    "cut-at-the-begin": (
        lambda root: (root / PARQUET_FILE).write_bytes((root / PARQUET_FILE).read_bytes()[200:]),
        f"{PARQUET_FILE}: cannot be read as a table: ",
    ),
    "no-path-column": (renamed("path", "where"), f"{PARQUET_FILE}: no column path, found 'label', 'split', 'where'"),
    "no-label-column": (renamed("label", "what"), f"{PARQUET_FILE}: no column label, found"),
    "neither": (
        rows(lambda content: [(row.pop("path"), row.pop("label")) for row in content]),
        f"{PARQUET_FILE}: no column path and no column label",
    ),
    "boxes": (rows(lambda content: [row.update(xmin=1) for row in content]), "holds boxes, which are not read from"),
    "two-spellings": (rows(lambda content: [row.update(Label="cat") for row in content]), "'label' stands twice"),
    "no-path": (last(path=None), f"{ROW}no path: fill it in, or remove the row"),
    "an-empty-path": (last(path=""), f"{ROW}no path: fill it in"),
    "no-label": (last(label=None), f"{ROW}no label: fill it in"),
    "no-file": (last(path="pictures/none.png"), f"{ROW}no file "),
    "a-folder": (last(path="pictures"), f"{ROW}no file "),
    "an-address": (last(path="s3://bucket/a.png"), f"{ROW}the path is an address: fetch the image"),
    "a-nul": (last(path="a\0.png"), f"{ROW}the path has a character that no file name has"),
    "another-split": (last(split="fold1"), f"{ROW}the split is 'fold1': write train, val or test"),
    "no-split": (last(split=None), f"{ROW}the split is '': write train, val or test"),
    "a-file-twice": (last(path="pictures/train/001.png"), f"{ROW}pictures/train/001.png is listed already"),
    "a-class-of-val-alone": (
        rows(lambda content: next(row for row in content if row["split"] == "val").update(label="zebra")),
        f"{PARQUET_FILE}: 'zebra' not among the 3 classes of",
    ),
    "a-bad-image": (text(FIRST, b""), f"{FIRST}: "),
}


@pytest.mark.parametrize("case", PARQUET)
def test_parquet(tmp_path: Path, case: str) -> None:
    pytest.importorskip("pyarrow")
    agree(tmp_path, same_data.parquet, *PARQUET[case], open_classes)
