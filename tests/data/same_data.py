"""One small data set, written in every format that holds it."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convattn.data.segmentation import write_label_map

SPLITS = ("train", "val", "test")
CLASSES = ("cat", "dog", "eel")
WIDTH, HEIGHT = 53, 41
PER_CLASS = 4

Write = Callable[[Path], Path]
"""Writes the data set below a folder, and returns what a person gives as --data."""


def names() -> list[tuple[str, int, str]]:
    """The split, number and class of every image; numbers rise with the classes, as all formats order them."""
    return [
        (split, 10 * label + i, name)
        for split in SPLITS
        for label, name in enumerate(CLASSES)
        for i in range(PER_CLASS)
    ]


def image(split: str, number: int) -> Image.Image:
    seed = 100 * SPLITS.index(split) + number
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8))


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def save(root: Path, split: str, number: int, folder: str) -> Path:
    path = root / folder / f"{number:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image(split, number).save(path)
    return path


def objects(number: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Class and (x, y, width, height) of an image's objects; one image has none."""
    return [
        (CLASSES[(number + i) % 3], (3 + 5 * i + number % 4, 4 + 3 * i, 17 + i, 12 + number % 5))
        for i in range(number % 3)
    ]


def label_map(number: int) -> np.ndarray:
    labels = (np.add.outer(np.arange(HEIGHT) // 9, np.arange(WIDTH) // 7) + number) % 3
    labels[:4, :6] = 255
    return labels


def class_folders(root: Path) -> Path:
    for split, number, name in names():
        save(root, split, number, f"{split}/{name}")
    return root


def rows(root: Path) -> list[dict[str, str]]:
    found = []
    for split, number, name in names():
        path = save(root, split, number, f"pictures/{split}")
        found.append({"path": path.relative_to(root).as_posix(), "label": name, "split": split})
    return found[::-1]  # the order of the rows does not matter


def table(root: Path) -> Path:
    content = rows(root)
    with (root / "photos.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)
    return root / "photos.csv"


def parquet(root: Path) -> Path:
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows(root)), root / "photos.parquet")
    return root / "photos.parquet"


def table_each_split(root: Path) -> Path:
    content = rows(root)
    for split in SPLITS:
        lines = [f"{row['path']};{row['label']}" for row in content if row["split"] == split]
        (root / f"{split}.csv").write_text("\n".join(["file;class", *lines]))
    return root


def add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def shards(root: Path) -> Path:
    """Two shards a split, the classes by number."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for split in SPLITS:
        mine = [(number, name) for one, number, name in names() if one == split]
        for place, part in enumerate((mine[:7], mine[7:])):
            with tarfile.open(root / f"{split}-{place:03}.tar", "w") as shard:
                for number, name in part:
                    add(shard, f"{number:03}.png", png(image(split, number)))
                    add(shard, f"{number:03}.cls", str(CLASSES.index(name)).encode())
    return root


def hub(root: Path, columns: Callable[[int, str], dict[str, Any]], features: dict[str, Any]) -> Path:
    import datasets

    parts = {}
    for split in SPLITS:
        mine = [(number, name) for one, number, name in names() if one == split]
        content = [{"image": {"bytes": png(image(split, n)), "path": None}, **columns(n, name)} for n, name in mine]
        parts[split] = datasets.Dataset.from_list(
            content, features=datasets.Features({"image": datasets.Image(), **features})
        )
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
    return root / "saved"


def hub_classes(root: Path) -> Path:
    import datasets

    return hub(root, lambda _, name: {"label": name}, {"label": datasets.ClassLabel(names=list(CLASSES))})


def hub_boxes(root: Path, *, polygons: bool = False) -> Path:
    import datasets

    def columns(number: int, _: str) -> dict[str, Any]:
        found = objects(number)
        row: dict[str, Any] = {"bbox": [list(box) for _, box in found], "category": [name for name, _ in found]}
        if polygons:
            row["segmentation"] = [[polygon(box)] for _, box in found]
        return {"objects": row}

    numbers = datasets.List(datasets.Value("float32"))
    inner = {"bbox": datasets.List(numbers), "category": datasets.List(datasets.ClassLabel(names=list(CLASSES)))}
    if polygons:
        inner["segmentation"] = datasets.List(datasets.List(numbers))
    return hub(root, columns, {"objects": inner})


def hub_polygons(root: Path) -> Path:
    return hub_boxes(root, polygons=True)


def hub_maps(root: Path) -> Path:
    import datasets

    def columns(number: int, _: str) -> dict[str, Any]:
        content = png(Image.fromarray(label_map(number).astype(np.uint8)))
        return {"annotation": {"bytes": content, "path": None}}

    return hub(root, columns, {"annotation": datasets.Image()})


def polygon(box: tuple[int, int, int, int]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h - 3, x + w - 4, y + h, x, y + h]


def coco(root: Path) -> Path:
    for split in SPLITS:
        images, annotations = [], []
        for place, (one, number, _) in enumerate(names()):
            if one != split:
                continue
            path = save(root, split, number, split)
            images.append({"id": place + 1, "file_name": path.name, "width": WIDTH, "height": HEIGHT})
            for name, box in objects(number):
                entry = {"id": len(annotations) + 1, "image_id": place + 1, "category_id": CLASSES.index(name) + 1}
                annotations.append({**entry, "bbox": list(box), "segmentation": [polygon(box)]})
        categories = [{"id": id, "name": name} for id, name in enumerate(CLASSES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def yolo_rows(number: int, *, polygons: bool) -> str:
    lines = []
    for name, (x, y, w, h) in objects(number):
        numbers = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
        if polygons:
            sides = WIDTH, HEIGHT
            numbers = [one / sides[place % 2] for place, one in enumerate(polygon((x, y, w, h)))]
        lines.append(" ".join(map(str, [CLASSES.index(name), *numbers])))
    return "\n".join(lines)


def yolo(root: Path, *, polygons: bool = False) -> Path:
    for split, number, _ in names():
        path = save(root, split, number, f"images/{split}")
        labels = root / "labels" / split / f"{path.stem}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.write_text(yolo_rows(number, polygons=polygons))
    settings = [f"{split}: images/{split}" for split in SPLITS]
    (root / "data.yaml").write_text("\n".join(["path: .", *settings, f"names: [{', '.join(CLASSES)}]"]))
    return root / "data.yaml"


def yolo_polygons(root: Path) -> Path:
    return yolo(root, polygons=True)


def voc_xml(number: int, name: str) -> str:
    found = "".join(
        f"\n<object><name>{kind}</name><difficult>0</difficult>\n<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for kind, (x, y, w, h) in objects(number)
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{name}</filename>{size}{found}\n</annotation>"


def voc(root: Path) -> Path:
    home = root / "VOCdevkit" / "VOC2012"
    (home / "Annotations").mkdir(parents=True)
    (home / "ImageSets" / "Main").mkdir(parents=True)
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, number, _ in names():
        path = save(home, split, number, "JPEGImages")
        path = path.rename(path.with_name(f"{split}{path.name}"))
        (home / "Annotations" / f"{path.stem}.xml").write_text(voc_xml(number, path.name))
        lists[split].append(path.stem)
    for split, stems in lists.items():
        (home / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
    return root


def voc_each_split(root: Path) -> Path:
    """As exporters write it: the XML files beside the images."""
    for split, number, _ in names():
        path = save(root, split, number, split)
        path.with_suffix(".xml").write_text(voc_xml(number, path.name))
    return root


def pairs(root: Path) -> Path:
    for split, number, _ in names():
        path = save(root, split, number, f"images/{split}")
        labels = root / "labels" / split
        labels.mkdir(parents=True, exist_ok=True)
        write_label_map(labels / path.name, label_map(number))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def voc_maps(root: Path) -> Path:
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, number, _ in names():
        path = save(root, split, number, "JPEGImages")
        path = path.rename(path.with_name(f"{split}{path.name}"))
        write_label_map(root / "SegmentationClass" / path.name, label_map(number))
        lists[split].append(path.stem)
    for split, stems in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(stems))
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def table_maps(root: Path) -> Path:
    pairs(root)
    lines = [f"images/{split}/{n:03}.png,labels/{split}/{n:03}.png,{split}" for split, n, _ in names()]
    (root / "photos.csv").write_text("\n".join(["image,mask,split", *lines]))
    return root / "photos.csv"


CLASS_FORMATS: dict[str, Write] = {
    "folders": class_folders,
    "csv": table,
    "csv-each-split": table_each_split,
    "parquet": parquet,
    "shards": shards,
    "hub": hub_classes,
}
BOX_FORMATS: dict[str, Write] = {
    "coco": coco,
    "yolo": yolo,
    "voc": voc,
    "voc-each-split": voc_each_split,
    "hub": hub_boxes,
}
POLYGON_FORMATS: dict[str, Write] = {"coco": coco, "yolo": yolo_polygons, "hub": hub_polygons}
MAP_FORMATS: dict[str, Write] = {"folders": pairs, "voc": voc_maps, "csv": table_maps, "hub": hub_maps}
