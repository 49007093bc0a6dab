"""COCO annotations: what pycocotools says of the same file, every kind of bad entry, the layouts and the transforms."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO

from convattn.data.coco import DetectionImages, open_coco, open_detection
from convattn.data.coco_layout import find_annotations
from convattn.data.dense_transforms import (
    DetectionAugmentation,
    collate_detection,
    detection_eval_transform,
    detection_train_transform,
)
from convattn.data.masks import decode_mask, encode_mask, run_lengths, segmentation_fault
from convattn.data.problems import BadData
from convattn.errors import UserError

TRIANGLE = [1.0, 1.0, 9.0, 1.0, 1.0, 6.0]
HEIGHT, WIDTH = 7, 11  # odd, and not square


def blob(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[2:5, 3:9] = 1
    mask[3, 5] = 0
    return mask


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": run_lengths(encode_mask(mask)["counts"]).tolist()}


def content() -> dict[str, Any]:
    """Three images: polygons and both forms of run lengths, a crowd, and no objects."""
    images = [{"id": 10 * i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)]
    common = {"image_id": 10, "iscrowd": 0}
    annotations = [
        {**common, "id": 1, "category_id": 7, "bbox": [1, 1, 8, 5], "area": 20, "segmentation": [TRIANGLE]},
        {**common, "id": 2, "category_id": 3, "bbox": [3, 2, 6, 3], "area": 17, "segmentation": encode_mask(blob())},
        {**common, "id": 3, "category_id": 7, "bbox": [3, 2, 6, 3], "area": 17, "segmentation": uncompressed(blob())},
    ]
    annotations[2] |= {"image_id": 20, "iscrowd": 1}
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root: Path, what: dict[str, Any], name: str = "annotations.json") -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for image in what["images"]:
        place = root / "images" / image.get("file_name", "none.png")
        if not place.exists():
            Image.new("RGB", (WIDTH, HEIGHT), "red").save(place)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what))
    return path


def everything(images: DetectionImages) -> list[int]:
    return [int(images.target(index)["image_id"]) for index in range(len(images))]


class TestReading:
    def test_targets_are_those_of_pycocotools(self, tmp_path: Path) -> None:
        path = write(tmp_path, content())
        classes, images, skipped = open_coco(path)
        assert (classes, images.category_ids, skipped) == (["cat", "dog"], (3, 7), [])
        coco = COCO(str(path))
        for index in range(len(images)):
            target = images.target(index)
            rows = coco.imgToAnns[int(target["image_id"])]
            assert target["labels"].tolist() == [images.category_ids.index(row["category_id"]) + 1 for row in rows]
            boxes = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
            assert target["boxes"].tolist() == boxes
            assert target["iscrowd"].tolist() == [row["iscrowd"] for row in rows]
            assert target["area"].tolist() == [row["area"] for row in rows]
            assert target["masks"].shape == (len(rows), HEIGHT, WIDTH)
            for mask, row in zip(target["masks"], rows, strict=True):
                np.testing.assert_array_equal(mask.numpy(), coco.annToMask(row))

    def test_an_image_without_objects_stays(self, tmp_path: Path) -> None:
        _, images, _ = open_coco(write(tmp_path, content()))
        assert everything(images) == [10, 20, 30]
        target = images.target(2)
        assert target["boxes"].shape == (0, 4)
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == target["iscrowd"].dtype == torch.int64
        assert target["masks"].shape == (0, HEIGHT, WIDTH)

    def test_boxes_alone_need_no_mask(self, tmp_path: Path) -> None:
        what = content()
        for row in what["annotations"]:
            del row["segmentation"], row["area"], row["iscrowd"]
        path = write(tmp_path, what)
        target = open_coco(path, wanted="boxes")[1].target(0)
        assert "masks" not in target
        assert target["area"].tolist() == [40.0, 18.0]
        with pytest.raises(BadData, match="no segmentation, and masks are wanted"):
            open_coco(path)

    def test_size_is_read_from_the_image_where_it_is_missing(self, tmp_path: Path) -> None:
        what = content()
        for image in what["images"]:
            del image["width"], image["height"]
        assert open_coco(write(tmp_path, what))[1].target(0)["masks"].shape == (2, HEIGHT, WIDTH)

    def test_a_box_beyond_the_border_by_rounding_is_cut(self, tmp_path: Path) -> None:
        what = content()
        what["annotations"][0]["bbox"] = [-0.4, 0, WIDTH + 0.9, HEIGHT]
        assert open_coco(write(tmp_path, what))[1].target(0)["boxes"][0].tolist() == [0, 0, WIDTH, HEIGHT]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_run_lengths_are_those_of_pycocotools(height: int, width: int, share: float, seed: int) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    for value in (encode_mask(mask), uncompressed(mask)):
        assert segmentation_fault(value, height, width) is None
        np.testing.assert_array_equal(decode_mask(value, height, width), mask)
    assert sum(run_lengths(encode_mask(mask)["counts"])[1::2]) == reference.area(encode_mask(mask)) == mask.sum()


def test_run_lengths_of_large_masks() -> None:
    mask = np.zeros((3000, 2000), np.uint8)
    mask[1234:, 777:1500] = 1
    mask[5, 5] = 1
    np.testing.assert_array_equal(decode_mask(uncompressed(mask), 3000, 2000), mask)


BAD_ENTRIES = [
    ("annotations.bbox", 1, {"bbox": [1, 1, 0, 5]}, r"\[1, 1, 0, 5\] has no area"),
    ("annotations.bbox", 1, {"bbox": [1, 1, float("nan"), 5]}, "not finite"),
    ("annotations.bbox", 1, {"bbox": [5, 1, 9, 5]}, "reaches 3 pixels beyond the image of 11×7"),
    ("annotations.bbox", 1, {"bbox": [-30, 1, 4, 5]}, "beyond the image"),
    ("annotations.bbox", 1, {"bbox": [1, 1, 4]}, "expected \\[x, y, width, height\\]"),
    ("annotations.bbox", 1, {"bbox": None}, "the box is None"),
    ("annotations.area", 1, {"area": float("inf")}, "found inf, expected a number"),
    ("annotations.iscrowd", 1, {"iscrowd": "no"}, "expected 0 or 1"),
    ("annotations.image_id", 1, {"image_id": 99}, "no right image has the id 99"),
    ("annotations.category_id", 1, {"category_id": 99}, "no category has the id 99"),
    ("annotations.id", 2, {"id": 2}, "the id stands twice"),
    ("annotations.id", None, {"id": "one"}, "expected a whole number"),
    ("annotations.segmentation", 1, {"segmentation": [[1, 2, 3, 4]]}, "4 numbers, expected x and y of three points"),
    ("annotations.segmentation", 1, {"segmentation": []}, "empty"),
    ("annotations.segmentation", 1, {"segmentation": [[1, 2, 30, 4, 5, 6]]}, "reaches 19 pixels beyond"),
    (
        "annotations.segmentation",
        1,
        {"segmentation": encode_mask(blob(9, 9))},
        r"of size \[9, 9\], the image is \[7, 11\]",
    ),
    ("annotations.segmentation", 1, {"segmentation": {"size": [7, 11], "counts": [5, 5]}}, "cover 10 pixels"),
    ("annotations.segmentation", 1, {"segmentation": {"size": [7, 11], "counts": [-3, 80]}}, "negative"),
    ("annotations.segmentation", 1, {"segmentation": {"size": [7, 11], "counts": "~~"}}, "cannot be read"),
    ("annotations.segmentation", 1, {"segmentation": "mask"}, "found 'mask'"),
]


@pytest.mark.parametrize(("place", "id", "change", "message"), BAD_ENTRIES)
def test_a_bad_annotation_is_refused_or_left_out(
    tmp_path: Path, place: str, id: int | None, change: dict[str, Any], message: str
) -> None:
    what = content()
    what["annotations"][0] |= change
    path = write(tmp_path, what)
    with pytest.raises(BadData, match=message) as refusal:
        open_coco(path)
    (problem,) = refusal.value.problems
    assert (problem.file, problem.field, problem.id) == (str(path), place, id)
    assert problem.remedy
    assert "--skip-bad" in str(refusal.value)
    _, images, skipped = open_coco(path, skip_bad=True)
    assert len(skipped) == 1
    assert (len(images), len(images.target(0)["boxes"])) == (3, 1)


def test_bad_images(tmp_path: Path) -> None:
    what = content()
    what["images"] += [{**what["images"][0]}, {"id": 40}, {"id": 50, "file_name": "5.png", "width": 0, "height": 3}]
    what["images"].append({"id": 60, "file_name": "6.png", "width": 12, "height": HEIGHT})
    path = write(tmp_path, what)
    (tmp_path / "images" / "2.png").unlink()
    (tmp_path / "images" / "3.png").write_bytes((tmp_path / "images" / "1.png").read_bytes()[:50])
    with pytest.raises(BadData, match="6 problems") as refusal:
        open_coco(path)
    found = {(one.id, one.field): one.what for one in refusal.value.problems}
    assert found[10, "images.id"] == "the id stands twice"
    assert "expected the image's file" in found[40, "images.file_name"]
    assert "found 0" in found[50, "images.width"]
    assert found[20, "images.file_name"] == "no such file"
    assert "truncated" in found[30, "images.file_name"]
    assert "the image is 11×7, the annotations say 12×7" in found[60, "images.width"]
    _, images, skipped = open_coco(path, skip_bad=True)
    assert (everything(images), len(skipped)) == ([10], 6)


def test_a_jpeg_that_is_read_smaller_than_its_boxes_is_refused(tmp_path: Path) -> None:
    what = content()
    what["images"][0] |= {"file_name": "large.jpg", "width": 10_000, "height": 9_000}
    (tmp_path / "images").mkdir()
    Image.new("L", (10_000, 9_000)).save(tmp_path / "images" / "large.jpg")
    with pytest.raises(BadData, match=r"large\.jpg: images\.width of id 10: the image is 10000×9000, so large"):
        open_coco(write(tmp_path, what), wanted="boxes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(content())[:200], "is truncated: it ends at line 1"),
        (json.dumps(content())[:-1], "is truncated"),
        ("", "is empty"),
        ("hello", "is no JSON"),
        ("[1]", "holds a list at its top"),
        ('{"images": [], "annotations": []}', "categories: is missing"),
        ('{"images": [], "annotations": [], "categories": []}', "no category"),
        ('{"images": 3, "annotations": [], "categories": []}', "images: is int, expected a list"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    for skip_bad in (False, True):
        with pytest.raises(BadData, match=message):
            open_coco(path, skip_bad=skip_bad)


class TestLayouts:
    @pytest.mark.parametrize(
        ("train", "val", "images"),
        [
            ("annotations/instances_train2017.json", "annotations/instances_val2017.json", ("train2017", "val2017")),
            ("train.json", "val.json", ("images", "images")),
            ("train/_annotations.coco.json", "valid/_annotations.coco.json", ("train", "valid")),
        ],
    )
    def test_two_files(self, tmp_path: Path, train: str, val: str, images: tuple[str, str]) -> None:
        for part, name, folder in zip("tv", (train, val), images, strict=True):
            what = content()
            for image in what["images"]:
                image["file_name"] = part + image["file_name"]
            path = write(tmp_path / "draft", what, "a.json")
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / name)
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for file in (tmp_path / "draft" / "images").iterdir():
                file.rename(tmp_path / folder / file.name)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        data = open_detection(tmp_path)
        assert (data.train.annotations, data.val.annotations) == (tmp_path / train, tmp_path / val)
        assert data.train.image(0).size == (WIDTH, HEIGHT)
        assert (data.train.root, data.val.root) == (tmp_path / images[0], tmp_path / images[1])

    def test_one_file_is_split_the_same_way_always(self, tmp_path: Path) -> None:
        what = content()
        what["images"] += [{**what["images"][0], "id": 100 + i, "file_name": f"n{i}.png"} for i in range(7)]
        data = open_detection(write(tmp_path, what))
        what["images"].reverse()
        again = open_detection(write(tmp_path, what).parent)
        assert (len(data.train), len(data.val)) == (8, 2)
        assert set(everything(data.val)) == set(everything(again.val))
        assert not set(everything(data.train)) & set(everything(data.val))

    def test_other_categories_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path, content(), "train.json")
        other = copy.deepcopy(content())
        other["categories"][0]["name"] = "wolf"
        write(tmp_path, other, "val.json")
        with pytest.raises(UserError, match="its categories are not those of"):
            open_detection(tmp_path)

    def test_what_cannot_be_used(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no such file or folder"):
            open_detection(tmp_path / "nowhere")
        with pytest.raises(UserError, match="found no JSON file; expected one of"):
            find_annotations(tmp_path)
        path = write(tmp_path, content())
        for image in (tmp_path / "images").iterdir():
            image.unlink()
        with pytest.raises(UserError, match="found none of its 3 images"):
            open_coco(path)


class TestTransforms:
    def sample(self, tmp_path: Path) -> tuple[Image.Image, dict[str, torch.Tensor]]:
        images = open_coco(write(tmp_path, content()))[1]
        return images.image(0), images.target(0)

    def test_evaluation_changes_nothing(self, tmp_path: Path) -> None:
        image, target = self.sample(tmp_path)
        pixels, same = detection_eval_transform()(image, target)
        assert (pixels.dtype, pixels.shape, float(pixels.max())) == (torch.float32, (3, HEIGHT, WIDTH), 1.0)
        assert all(torch.equal(same[name], target[name]) for name in target)

    @pytest.mark.parametrize("flip", [0.0, 1.0])
    @pytest.mark.parametrize("sides", [(), (HEIGHT * 3,)])
    def test_boxes_masks_and_areas_follow_the_image(self, tmp_path: Path, flip: float, sides: tuple[int, ...]) -> None:
        image, target = self.sample(tmp_path)
        transform = detection_train_transform(DetectionAugmentation(flip, sides, photometric="distort"))
        pixels, changed = transform(image, target)
        scale = 3 if sides else 1
        assert pixels.shape == (3, HEIGHT * scale, WIDTH * scale)
        assert type(changed["boxes"]) is type(changed["masks"]) is torch.Tensor
        boxes = target["boxes"].clone()
        if flip:
            boxes[:, [0, 2]] = WIDTH - boxes[:, [2, 0]]
        torch.testing.assert_close(changed["boxes"], boxes * scale)
        masks = target["masks"].flip(-1) if flip else target["masks"]
        torch.testing.assert_close(changed["masks"], masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2))
        torch.testing.assert_close(changed["area"], target["area"] * scale**2)

    def test_multi_scale_keeps_within_its_limits(self, tmp_path: Path) -> None:
        image, target = self.sample(tmp_path)
        transform = detection_train_transform(DetectionAugmentation(short_sides=(14, 21, 28), max_size=34))
        torch.manual_seed(0)
        shapes = {tuple(transform(image, target)[0].shape[1:]) for _ in range(30)}
        assert {min(shape) for shape in shapes} == {14, 21}
        assert max(max(shape) for shape in shapes) <= 34

    def test_crowds_go_and_empty_images_stay(self, tmp_path: Path) -> None:
        images = open_coco(write(tmp_path, content()))[1]
        transform = detection_train_transform(DetectionAugmentation(1.0, (20,), photometric="distort"))
        batch = [transform(images.image(index), images.target(index)) for index in range(3)]
        tensors, targets = collate_detection(batch)
        assert [len(target["boxes"]) for target in targets] == [2, 0, 0]
        assert targets[2]["boxes"].shape == (0, 4)
        assert targets[2]["masks"].shape == (0, *tensors[2].shape[1:])

    def test_the_seed_fixes_the_result(self, tmp_path: Path) -> None:
        image, target = self.sample(tmp_path)
        transform = detection_train_transform(DetectionAugmentation(0.5, (9, 14, 21), photometric="distort"))
        results = []
        for _ in range(2):
            torch.manual_seed(3)
            results.append(transform(image, target))
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
