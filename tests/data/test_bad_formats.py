"""Bad files of every format: check-data and training name the file and line, what is wrong there and what to do."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convattn.data.checks import check_data
from convattn.data.classes import open_classes
from convattn.data.coco import DetectionData, open_detection
from convattn.data.problems import BadData
from convattn.errors import UserError
from tests.data import same_data
from tests.data.same_data import Write

Change = Callable[[Path], Any]
"""What makes a right data set, in its folder, a bad one."""


def told(path: Path, opened: Callable[[Path], Any]) -> tuple[list[str], list[str]]:
    """Return what check-data says of the data, and what training says as it refuses it or leaves parts out."""
    try:
        checked = [str(problem) for part in check_data(path) for problem in part.problems]
    except UserError as error:
        checked = [str(error)]
    try:
        trained = [f"{one.path}: {one.reason}" for one in opened(path).skipped]
    except BadData as error:
        trained = [str(problem) for problem in error.problems]
    except UserError as error:
        trained = [str(error)]
    return checked, trained


def agree(root: Path, write: Write, change: Change, says: str, opened: Callable[[Path], Any]) -> None:
    data = write(root)
    change(root)
    checked, trained = told(data, opened)
    assert any(says in one for one in checked), checked
    assert any(says in one for one in trained), trained


def boxes(path: Path) -> DetectionData:
    return open_detection(path, wanted="boxes")


def file(name: str, old: str, new: str) -> Change:
    """Replace a text of a file."""

    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text, text
        (root / name).write_text(text.replace(old, new, 1))

    return change


def text(name: str, content: str | bytes) -> Change:
    def change(root: Path) -> None:
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def gone(name: str) -> Change:
    return lambda root: (root / name).unlink()


LABELS = "labels/train/002.txt"
ROWS = "0 0.5 0.5 0.2 0.2\n"
YAML = "data.yaml"
ONE = "images/train/002.png"

YOLO: dict[str, tuple[Change, str]] = {
    "a-word": (
        text(LABELS, ROWS + "cat 0.5 0.5 0.2 0.2"),
        f"{LABELS}:2: found 'cat 0.5 0.5 0.2 0.2'; expected a row of class x",
    ),
    "three-numbers": (
        text(LABELS, ROWS + "0 0.5 0.5"),
        f"{LABELS}:2: found 3 numbers; expected a row of class x y width height",
    ),
    "an-odd-polygon": (text(LABELS, "0 0.1 0.1 0.5 0.5 0.9 0.1 0.2"), f"{LABELS}:1: found 8 numbers"),
    "a-class-too-large": (
        text(LABELS, "\n3 0.5 0.5 0.2 0.2"),
        f"{LABELS}:2: class 3 is none: the 3 classes are 0 to 2",
    ),
    "a-broken-class": (text(LABELS, "0.5 0.5 0.5 0.2 0.2"), f"{LABELS}:1: class 0.5 is none"),
    "pixels": (text(LABELS, "0 20 20 10 10"), f"{LABELS}:1: the box reaches beyond the image: 15 in place of 0 to 1"),
    "beyond-the-border": (text(LABELS, "0 0.9 0.5 0.4 0.2"), f"{LABELS}:1: the box reaches beyond the image: 1.1"),
    "a-point-outside": (text(LABELS, "0 0.1 0.1 1.5 0.1 0.5 0.5"), f"{LABELS}:1: a point is outside the image: 1.5"),
    "no-width": (text(LABELS, "0 0.5 0.5 0 0.2"), f"{LABELS}:1: the box has a width of 0"),
    "not-finite": (text(LABELS, "0 nan 0.5 0.1 0.2"), f"{LABELS}:1: a number is not finite"),
    "a-row-twice": (text(LABELS, ROWS + ROWS), f"{LABELS}:2: the row stands twice"),
    "no-text": (text(LABELS, b"\xff\xfe\x00"), f"{LABELS}: cannot be read: 'utf-8' codec"),
    "no-yaml": (text(YAML, "names: [a"), f"{YAML}: is no YAML: "),
    "a-list": (text(YAML, "- a"), f"{YAML}: holds list at its top, not keys"),
    "no-names": (file(YAML, "names: [cat, dog, eel]", ""), f"{YAML}: names: found None, expected the classes"),
    "numbers-with-a-gap": (file(YAML, "[cat, dog, eel]", "{0: cat, 2: dog}"), f"{YAML}:5: names: the numbers are 0, 2"),
    "nc": (file(YAML, "names", "nc: 4\nnames"), f"{YAML}:5: nc: is 4, but names has 3 classes"),
    "key-points": (
        file(YAML, "names", "kpt_shape: [17, 3]\nnames"),
        f"{YAML}:5: kpt_shape: the labels are of key points",
    ),
    "no-train": (file(YAML, "train:", "training:"), f"{YAML}: train: names no images"),
    "no-such-folder": (
        file(YAML, "train: images/train", "train: pictures"),
        f"{YAML}:2: train: no folder, list or image",
    ),
    "a-folder-without-images": (
        file(YAML, "train: images/train", "train: labels/train"),
        f"{YAML}:2: train: no images in",
    ),
    "no-path": (file(YAML, "path: .", "path: 7"), f"{YAML}:1: path: found 7, expected a folder"),
    "a-bad-image": (text(ONE, "<html>"), f"{ONE}: images.file_name of id 3: not an image that Pillow can read"),
}


@pytest.mark.parametrize("case", YOLO)
def test_yolo(tmp_path: Path, case: str) -> None:
    agree(tmp_path, same_data.yolo, *YOLO[case], boxes)


XML = "train/002.xml"

VOC: dict[str, tuple[Change, str]] = {
    "no-xml": (text(XML, "<annotation>\n<object></annotation>"), f"{XML}:2: is no XML: mismatched tag"),
    "empty": (text(XML, ""), f"{XML}:1: is no XML: no element found"),
    "truncated": (file(XML, "</annotation>", ""), f"{XML}:7: is no XML: no element found"),
    "another-root": (text(XML, "<html/>"), f"{XML}:1: the file is of <html>, expected <annotation>"),
    "a-doctype": (text(XML, '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'), f"{XML}: cannot be read: has a DOCTYPE"),
    "no-name": (file(XML, "<name>eel</name>", ""), f"{XML}:3: name: the object has no <name>"),
    "an-empty-name": (file(XML, "<name>eel</name>", "<name> </name>"), f"{XML}:3: name: the object has no <name>"),
    "no-box": (file(XML, "<bndbox>", "<box>"), f"{XML}:4: is no XML"),
    "another-box": (
        lambda root: [file(XML, a, b)(root) for a, b in (("<bndbox>", "<robndbox>"), ("</bndbox>", "</robndbox>"))],
        f"{XML}:3: bndbox: eel: the object has a rotated box",
    ),
    "no-side": (file(XML, "<xmin>6</xmin>", ""), f"{XML}:4: bndbox: eel: xmin is '', expected a number"),
    "a-word": (file(XML, "<xmin>6</xmin>", "<xmin>six</xmin>"), f"{XML}:4: bndbox: eel: xmin is 'six'"),
    "not-finite": (file(XML, "<xmin>6</xmin>", "<xmin>inf</xmin>"), f"{XML}:4: bndbox: eel: xmin is 'inf'"),
    "turned-round": (
        file(XML, "<xmin>6</xmin>", "<xmin>60</xmin>"),
        f"{XML}:4: bndbox: eel: the box ends before it begins",
    ),
    "beyond-the-border": (
        file(XML, "<xmax>22</xmax>", "<xmax>99</xmax>"),
        f"{XML}:4: bbox: train/002.png: the box [5.0, 4.0, 94.0",
    ),
    "outside": (
        lambda root: [file(XML, a, b)(root) for a, b in (("<xmin>6<", "<xmin>80<"), ("<xmax>22<", "<xmax>90<"))],
        f"{XML}:4: bbox: train/002.png: the box [79.0",
    ),
    "difficult": (
        file(XML, "<difficult>0", "<difficult>no"),
        f"{XML}:3: difficult: eel: difficult is 'no', expected 0 or 1",
    ),
    "another-size": (file(XML, "<width>53", "<width>99"), "train/002.png: images.width of id 3: the image is 53×41"),
    "no-size": (file(XML, "<width>53", "<width>53.5"), f"{XML}:2: size: the size is not of whole numbers"),
    "no-image": (gone("train/002.png"), "train/002.png: images.file_name of id 3: no such file"),
    "a-bad-image": (text("train/002.png", b""), "train/002.png: images.file_name of id 3: the file is empty"),
    "no-class": (text("classes.txt", "cat\ndog\n"), f"{XML}:4: name: 'eel' is none of the 2 classes of classes.txt"),
}


@pytest.mark.parametrize("case", VOC)
def test_voc(tmp_path: Path, case: str) -> None:
    agree(tmp_path, same_data.voc_each_split, *VOC[case], boxes)


def test_a_voc_list_of_what_is_not_there(tmp_path: Path) -> None:
    home = "VOCdevkit/VOC2012"
    change = file(f"{home}/ImageSets/Main/train.txt", "train002", "train999")
    agree(tmp_path, same_data.voc, change, "Annotations/train999.xml: no such file", boxes)


CSV = "photos.csv"
LAST = 37
"""The line of the table's last row; the first of its rows has line 2."""


def row(number: int, content: str) -> Change:
    def change(root: Path) -> None:
        lines = (root / CSV).read_text().splitlines()
        lines[number - 1] = content
        (root / CSV).write_text("\n".join(lines))

    return change


PICTURE = "pictures/train/000.png"

TABLE: dict[str, tuple[Change, str]] = {
    "no-header": (
        row(1, "a.png,cat,train"),
        f"{CSV}: no column path and no column label, found 'a.png', 'cat', 'train'",
    ),
    "no-path-column": (row(1, "where,label,split"), f"{CSV}: no column path, found 'where', 'label', 'split'"),
    "no-label-column": (row(1, "path,what,split"), f"{CSV}: no column label, found"),
    "a-column-twice": (row(1, "path,label,label"), f"{CSV}: the column 'label' stands twice"),
    "boxes": (row(1, "path,label,xmin"), f"{CSV}: holds boxes, which are not read from a table"),
    "empty": (text(CSV, ""), f"{CSV}: no column path and no column label"),
    "no-rows": (text(CSV, "path,label\n"), f"{CSV}: no image to train on, found no row that can be used"),
    "no-text": (text(CSV, b"path,label\n\xff\xfe,cat"), f"{CSV}: cannot be read as a table: 'utf-8' codec"),
    "an-open-quote": (row(LAST, '"pictures/train/000.png,cat'), f"{CSV}: cannot be read as a table: unexpected end"),
    "too-few-cells": (row(LAST, f"{PICTURE},cat"), f"{CSV}:37: has 2 cells under 3 columns"),
    "too-many-cells": (row(LAST, f"{PICTURE},cat,dog,train"), f"{CSV}:37: has 4 cells under 3 columns: put a text"),
    "no-path": (row(LAST, ",cat,train"), f"{CSV}:37: no path: fill it in"),
    "no-label": (row(LAST, f"{PICTURE},,train"), f"{CSV}:37: no label: fill it in"),
    "no-file": (row(LAST, "pictures/none.png,cat,train"), f"{CSV}:37: no file "),
    "a-folder": (row(LAST, "pictures,cat,train"), f"{CSV}:37: no file "),
    "an-address": (row(LAST, "https://a.b/c.png,cat,train"), f"{CSV}:37: the path is an address: fetch the image"),
    "a-nul": (row(LAST, "a\0.png,cat,train"), f"{CSV}:37: the path has a character that no file name has"),
    "another-split": (row(LAST, f"{PICTURE},cat,fold1"), f"{CSV}:37: the split is 'fold1': write train, val or test"),
    "a-file-twice": (
        row(LAST, "pictures/train/001.png,cat,train"),
        f"{CSV}:37: pictures/train/001.png is listed already",
    ),
    "a-class-of-val-alone": (row(25, "pictures/val/000.png,zebra,val"), f"{CSV}: 'zebra' not among the 3 classes of"),
    "a-number-beyond-the-names": (
        lambda root: [
            text("classes.txt", "cat\ndog\neel\n")(root),
            text(CSV, f"path,label\n{PICTURE},7\npictures/train/001.png,0")(root),
        ],
        f"{CSV}: the label 7 counts no class: the 3 classes are 0 to 2",
    ),
    "a-bad-image": (text(PICTURE, b""), f"{PICTURE}: "),
    "no-image-of-a-class": (
        lambda root: [text(f"pictures/train/{10 + i:03}.png", b"")(root) for i in range(4)],
        f"{CSV}: no image of the class 'dog' can be read",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_table(tmp_path: Path, case: str) -> None:
    agree(tmp_path, same_data.table, *TABLE[case], open_classes)


def rewritten(*change: tuple[str, bytes | None], shard: str = "train-000.tar") -> Change:
    """Write a shard again with members changed, left out (None) or added."""

    def make(root: Path) -> None:
        content = dict(change)
        with tarfile.open(root / shard) as old:
            members = [(one.name, old.extractfile(one).read()) for one in old]  # type: ignore[union-attr]
        kept = [(name, content.pop(name, data)) for name, data in members]
        with tarfile.open(root / shard, "w") as new:
            for name, data in [*kept, *content.items()]:
                if data is not None:
                    same_data.add(new, name, data)

    return make


def cut(shard: str, size: int) -> Change:
    return lambda root: (root / shard).write_bytes((root / shard).read_bytes()[:size])


def doubled(root: Path) -> None:
    with tarfile.open(root / "train-000.tar", "a") as shard:
        same_data.add(shard, "000.cls", b"1")


SHARD = "train-000.tar"

SHARDS: dict[str, tuple[Change, str]] = {
    "no-tar": (text(SHARD, "hello"), f"{SHARD}: no tar file, packed, or damaged"),
    "empty": (text(SHARD, ""), f"{SHARD}: no tar file, packed, or damaged"),
    "packed": (
        lambda root: (root / SHARD).write_bytes(gzip.compress((root / SHARD).read_bytes())),
        f"{SHARD}: no tar file, packed, or damaged",
    ),
    "cut-in-a-header": (cut(SHARD, 100), f"{SHARD}: no tar file, packed, or damaged"),
    "cut-in-an-image": (cut(SHARD, 1000), f"{SHARD}: is truncated: 000.png ends at byte"),
    "no-label": (rewritten(("000.cls", None)), f"{SHARD}/000.png: the sample has no label: a file of the same name"),
    "no-image": (rewritten(("000.png", None)), f"{SHARD}/000.cls: the sample has no image"),
    "an-empty-label": (rewritten(("000.cls", b"")), f"{SHARD}/000.cls: the label is empty or has several lines"),
    "blanks": (rewritten(("000.cls", b" \n")), f"{SHARD}/000.cls: the label is empty"),
    "two-lines": (rewritten(("000.cls", b"1\n2")), f"{SHARD}/000.cls: the label is empty or has several lines"),
    "bytes": (rewritten(("000.cls", b"\xff\xfe")), f"{SHARD}/000.cls: the label cannot be read"),
    "a-long-label": (rewritten(("000.cls", b"7" * 200_000)), f"{SHARD}/000.cls: the label has 200,000 bytes"),
    "a-label-twice": (doubled, f"{SHARD}/000.cls: the sample 000 has another, 000.cls"),
    "two-images": (rewritten(("000.jpg", b"x")), f"{SHARD}/000.jpg: the sample 000 has another, 000.png"),
    "two-kinds-of-label": (rewritten(("000.json", b'{"label": 1}')), f"{SHARD}/000.json: the sample 000 has another"),
    "no-json": (rewritten(("000.cls", None), ("000.json", b"{")), f"{SHARD}/000.json: the label cannot be read"),
    "json-without-label": (rewritten(("000.cls", None), ("000.json", b"{}")), f"{SHARD}/000.json: the label is empty"),
    "a-list": (rewritten(("000.cls", None), ("000.json", b"[1]")), f"{SHARD}/000.json: the label is empty"),
    "a-number-beyond-the-names": (
        rewritten(("000.cls", b"7")),
        "the label 7 counts no class: the 3 classes are 0 to 2",
    ),
    "a-class-of-val-alone": (rewritten(("000.cls", b"7"), shard="val-000.tar"), "'7' not among the 3 classes of"),
    "a-bad-image": (rewritten(("000.png", b"<html>")), f"{SHARD}/000.png: "),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards(tmp_path: Path, case: str) -> None:
    agree(tmp_path, same_data.shards, *SHARDS[case], open_classes)
