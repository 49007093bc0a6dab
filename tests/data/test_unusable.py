"""What training cannot use, or would use wrongly: check-data says it, and training refuses it or leaves it out."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convattn.data.checks import check_data
from convattn.data.classes import open_classes
from convattn.data.coco import DetectionData, open_coco, open_detection
from convattn.data.folder import TRAINED_ON
from convattn.data.problems import BadData, errors
from convattn.data.segmentation import SegmentationData, open_segmentation, write_label_map
from convattn.errors import UserError
from tests.data.test_coco import HEIGHT, WIDTH, write

Content = dict[str, Any]


def content(count: int = 4) -> Content:
    """Images with an object of either class each."""
    images = [{"id": id, "file_name": f"{id}.png", "width": WIDTH, "height": HEIGHT} for id in range(1, count + 1)]
    common = {"bbox": [1, 1, 5, 4], "iscrowd": 0, "segmentation": [[1, 1, 6, 1, 6, 5]]}
    annotations = [{**common, "id": id, "image_id": id, "category_id": 1 + id % 2} for id in range(1, count + 1)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def pairs(root: Path, maps: list[np.ndarray], parts: tuple[str, ...] = ("train", "val")) -> None:
    for part in parts:
        for folder in ("images", "labels"):
            (root / folder / part).mkdir(parents=True)
        for place, labels in enumerate(maps):
            Image.new("RGB", labels.shape[::-1]).save(root / "images" / part / f"{place}.png")
            write_label_map(root / "labels" / part / f"{place}.png", labels)


@dataclass(frozen=True)
class Case:
    """A data set; ``left`` is how many images train and validate with ``skip_bad``, None where that is refused too."""

    name: str
    make: Callable[[Path], Any]
    says: str
    left: tuple[int, int] | None = None


def coco(name: str, change: Callable[[Content], Any], says: str, left: tuple[int, int] | None = None) -> Case:
    def make(root: Path) -> None:
        what = content()
        write(root, what)
        change(what)
        (root / "annotations.json").write_text(json.dumps(what))

    return Case(name, make, says, left)


def two_files(
    name: str, change: Callable[[Content, Content], Any], says: str, left: tuple[int, int] | None = None
) -> Case:
    def make(root: Path) -> None:
        train, val = content(), content()
        for image in val["images"]:
            image["file_name"] = f"v{image['file_name']}"
        write(root, train, "train.json")
        write(root, val, "val.json")
        change(train, val)
        (root / "train.json").write_text(json.dumps(train))
        (root / "val.json").write_text(json.dumps(val))

    return Case(name, make, says, left)


def again(name: str, id: int = 9) -> Callable[[Content], Any]:
    """List the first image once more."""
    return lambda what: what["images"].append({**what["images"][0], "id": id, "file_name": name})


def changed(**values: Any) -> Callable[[Content], Any]:
    """Change all annotations."""
    return lambda what: [entry.update(values) for entry in what["annotations"]]


def first(count: int) -> Callable[[Content], Any]:
    """Keep the first images and annotations."""
    return lambda what: what.update({key: what[key][:count] for key in ("images", "annotations")})


def clear(content: Content) -> None:
    content["annotations"].clear()


DETECTION = [
    coco("an-image-listed-twice", again("1.png"), "1.png is one file under the ids 1, 9", (2, 1)),
    coco("an-image-listed-in-two-spellings", again("./1.png"), "./1.png is one file under the ids 1, 9", (2, 1)),
    coco("every-object-a-crowd", changed(iscrowd=1), "no object on its 3 training images, crowds aside"),
    coco("every-box-degenerate", changed(bbox=[1, 1, 0, 4]), "no object on its 3 training images"),
    coco("no-object", clear, "no object on its 3 training images"),
    coco("no-image", first(0), "images: no image is left"),
    coco("one-image", first(1), "one image cannot be split"),
    coco("ids-beyond-64-bits", lambda what: what["images"][0].update(id=2**64), "at most 63 bits", (2, 1)),
    coco(
        "a-name-in-another-case",
        lambda what: what["images"][0].update(file_name="1.PNG"),
        "images/1.png: write",
        (2, 1),
    ),
    two_files("shared", lambda train, val: val["images"][0].update(file_name="1.png"), TRAINED_ON, (4, 3)),
    two_files("all-shared", lambda train, val: val.update(train), "no image is left to validate on: all are in"),
    two_files("other-classes", lambda train, val: val["categories"].pop(), "its categories are not those of"),
    two_files("nothing-to-train-on", lambda train, val: clear(train), "no object on its 4 training images"),
]


@pytest.mark.parametrize("case", DETECTION, ids=lambda case: case.name)
def test_annotations_that_training_cannot_use(tmp_path: Path, case: Case) -> None:
    case.make(tmp_path)
    agrees(tmp_path, case, open_detection)


ZERO, BOTH, NONE = np.zeros((4, 4)), np.eye(4), np.full((4, 4), 255)


def labelled(root: Path, *maps: np.ndarray, names: str = "") -> None:
    pairs(root, list(maps))
    if names:
        (root / "classes.txt").write_text(names)


def linked(root: Path) -> None:
    pairs(root, [BOTH, BOTH, BOTH])
    (root / "images/val/1.png").unlink()
    (root / "images/val/1.png").symlink_to(root / "images/train/2.png")


def without_val(root: Path) -> None:
    pairs(root, [BOTH, BOTH])
    for folder in ("images", "labels"):
        shutil.rmtree(root / folder / "val")
        (root / folder / "val").mkdir()


SEGMENTATION = [
    Case(
        "nothing-labelled",
        lambda root: labelled(root, NONE, NONE, names="a\nb\n"),
        "no pixel of its label maps has a class",
    ),
    Case("one-class", lambda root: labelled(root, ZERO, ZERO), "the labels hold one class only"),
    Case("one-pair", lambda root: pairs(root, [BOTH], ("",)), "no validation pair is left"),
    Case("no-validation-pair", without_val, "no validation pair is left"),
    Case("an-image-in-both-parts", linked, f"images/val/1.png: image: {TRAINED_ON}", (3, 2)),
]


@pytest.mark.parametrize("case", SEGMENTATION, ids=lambda case: case.name)
def test_label_maps_that_training_cannot_use(tmp_path: Path, case: Case) -> None:
    case.make(tmp_path)
    agrees(tmp_path, case, open_segmentation)


def agrees(root: Path, case: Case, opened: Callable[..., DetectionData | SegmentationData]) -> None:
    """Check that check-data and training say the same, and what training goes on with."""
    found = [problem for part in check_data(root) for problem in errors(part.problems)]
    assert any(case.says in str(problem) for problem in found), [str(problem) for problem in found]
    with pytest.raises(BadData) as refusal:
        opened(root)
    assert {*map(str, refusal.value.problems)} <= {*map(str, found)}
    assert any(case.says in str(problem) for problem in refusal.value.problems)
    if case.left is None:
        with pytest.raises(BadData, match=r"^1 problem: ") as refusal:
            opened(root, skip_bad=True)
        assert "--skip-bad" not in str(refusal.value)
    else:
        data = opened(root, skip_bad=True)
        assert (len(data.train), len(data.val)) == case.left
        assert data.skipped


CAFE = unicodedata.normalize("NFC", "café")


class TestNamesInAnotherSpelling:
    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    @pytest.mark.parametrize("slash", ["/", "\\"])
    def test_a_coco_file_finds_its_image(self, tmp_path: Path, form: Any, slash: str) -> None:
        what = content()
        write(tmp_path, what)
        (tmp_path / "images" / CAFE).mkdir()
        for image in what["images"]:
            shutil.move(tmp_path / "images" / image["file_name"], tmp_path / "images" / CAFE)
            image["file_name"] = unicodedata.normalize(form, f"{CAFE}{slash}{image['file_name']}")
        (tmp_path / "annotations.json").write_text(json.dumps(what))
        assert [problem for part in check_data(tmp_path) for problem in errors(part.problems)] == []
        data = open_detection(tmp_path)
        assert (len(data.train), len(data.val)) == (3, 1)
        assert data.train.image(0).size == (WIDTH, HEIGHT)

    def test_a_file_of_the_very_name_comes_first(self, tmp_path: Path) -> None:
        what = content()
        write(tmp_path, what)
        (tmp_path / "images" / "a").mkdir()
        Image.new("RGB", (WIDTH, HEIGHT), "lime").save(tmp_path / "images" / "a\\1.png")
        Image.new("RGB", (WIDTH, HEIGHT), "blue").save(tmp_path / "images" / "a" / "1.png")
        what["images"][0]["file_name"] = "a\\1.png"
        (tmp_path / "annotations.json").write_text(json.dumps(what))
        assert open_coco(tmp_path / "annotations.json")[1].image(0).getpixel((0, 0)) == (0, 255, 0)

    def test_names_of_another_folder_are_answered_with_what_is_there(self, tmp_path: Path) -> None:
        what = content()
        write(tmp_path, what)
        for image in what["images"]:
            image["file_name"] = f"C:\\data\\{image['file_name']}"
        (tmp_path / "annotations.json").write_text(json.dumps(what))
        with pytest.raises(
            UserError, match=r"found none of its 4 images.*there is .*images/1\.png: write in file_name"
        ):
            open_detection(tmp_path)

    def test_a_label_map_finds_its_image(self, tmp_path: Path) -> None:
        pairs(tmp_path, [BOTH, BOTH])
        for part in ("train", "val"):
            for folder, form in (("images", "NFC"), ("labels", "NFD")):
                name = unicodedata.normalize(form, f"{CAFE}.png")  # type: ignore[arg-type]
                os.rename(tmp_path / folder / part / "0.png", tmp_path / folder / part / name)
        data = open_segmentation(tmp_path)
        assert (len(data.train), len(data.val)) == (2, 2)

    def test_a_class_finds_its_images_to_validate_on(self, tmp_path: Path) -> None:
        for part, form in (("train", "NFC"), ("val", "NFD")):
            for name in (CAFE, "tea"):
                folder = tmp_path / part / unicodedata.normalize(form, name)  # type: ignore[arg-type]
                folder.mkdir(parents=True)
                Image.new("RGB", (4, 4)).save(folder / "1.png")
        data = open_classes(tmp_path)
        assert (data.classes, [data.val.label(index) for index in range(len(data.val))]) == ([CAFE, "tea"], [0, 1])
        (tmp_path / "train" / unicodedata.normalize("NFD", CAFE)).mkdir()
        with pytest.raises(UserError, match=r"two folders are called .*, in two Unicode forms"):
            open_classes(tmp_path)


class TestNotes:
    def notes(self, root: Path) -> list[str]:
        parts = check_data(root)
        assert [problem for part in parts for problem in errors(part.problems)] == []
        return [problem.what for part in parts for problem in part.problems]

    def test_classes_without_an_object_or_of_one_name(self, tmp_path: Path) -> None:
        what = content()
        what["categories"].append({"id": 3, "name": "dog"})
        write(tmp_path, what)
        assert self.notes(tmp_path) == [
            "1 of 3 classes without an object: 'dog'",
            "'dog' named twice, under different ids",
        ]

    def test_classes_without_a_pixel(self, tmp_path: Path) -> None:
        labelled(tmp_path, ZERO, BOTH * 2, names="a\nb\nc\nd\n")
        assert self.notes(tmp_path) == ["2 of 4 classes without a pixel: 'b', 'd'"]

    def test_a_class_without_an_image_to_validate_on(self, tmp_path: Path) -> None:
        for name in ("cat/1", "cat/2", "dog/1"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        assert self.notes(tmp_path) == ["1 class without an image to validate on: 'dog'"]

    def test_nothing_to_measure(self, tmp_path: Path) -> None:
        case = two_files("", lambda train, val: clear(val), "")
        case.make(tmp_path)
        assert "the images to validate on have no object" in self.notes(tmp_path)


def test_images_that_train_are_not_validated_on(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / part / name / "1.png")
    (tmp_path / "val/cat/2.png").symlink_to(tmp_path / "train/cat/1.png")
    data = open_classes(tmp_path)
    assert (len(data.train), len(data.val)) == (2, 2)
    assert [(one.path, one.reason) for one in data.skipped] == [("val/cat/2.png", TRAINED_ON)]
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").symlink_to("train")
    with pytest.raises(UserError, match=r"no readable image is left to validate on.*among the training images"):
        open_classes(tmp_path)


def test_json_files_of_which_training_would_not_know(tmp_path: Path) -> None:
    for name in ("first.json", "second.json"):
        write(tmp_path, content(), name)
    found = [str(problem) for part in check_data(tmp_path) for problem in errors(part.problems)]
    assert len(found) == 1
    assert f"{tmp_path}: found first.json, second.json; expected one of" in found[0]
