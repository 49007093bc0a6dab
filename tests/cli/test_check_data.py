"""``convattn check-data``."""

import json
from pathlib import Path

import pytest

from convattn.data.coco import open_detection
from tests.cli.conftest import Command
from tests.data import same_data, test_coco, test_segmentation


def test_a_right_data_set(command: Command, tmp_path: Path) -> None:
    path = test_coco.write(tmp_path, test_coco.content())
    result = command("check-data", path)
    assert result.code == 0
    assert "3 images, 3 objects, 1 crowd, 2 classes" in result.out
    assert "notes: 2" in result.out
    assert result.out.rstrip().endswith("nothing is wrong")


def test_problems_are_listed_and_the_exit_code_says_so(command: Command, tmp_path: Path) -> None:
    what = test_coco.content()
    what["annotations"][0]["bbox"] = [1, 1, 0, 5]
    what["annotations"][2]["category_id"] = 99
    path = test_coco.write(tmp_path, what)
    result = command("check-data", tmp_path)
    assert result.code == 1
    assert f"{path}: annotations.bbox of id 1: 1.png: the box [1, 1, 0, 5] has no area (mend or remove" in result.out
    assert "annotations.category_id of id 3: 2.png: no category has the id 99" in result.out
    assert "2 to mend; or train without them: --skip-bad" in result.out
    assert "and 1 more: --limit 0 shows all" in command("check-data", tmp_path, "--limit", 1).out
    assert "more" not in command("check-data", tmp_path, "--limit", 0).out


def test_json(command: Command, tmp_path: Path) -> None:
    what = test_coco.content()
    what["images"][1]["file_name"] = "gone.png"
    path = test_coco.write(tmp_path, what)
    (tmp_path / "images" / "gone.png").unlink()
    result = command("check-data", path, "--json")
    (part,) = json.loads(result.out)
    wrong = [one for one in part["problems"] if one["level"] == "error"]
    assert (result.code, [one["id"] for one in wrong], wrong[0]["what"]) == (1, [20], "no such file")


def test_options(command: Command, tmp_path: Path) -> None:
    what = test_coco.content()
    del what["annotations"][0]["segmentation"]
    path = test_coco.write(tmp_path / "a", what)
    path = path.rename(tmp_path / "annotations.json")
    assert "found none of its 3 images" in command("check-data", path).out
    assert command("check-data", path, "--images", tmp_path / "a" / "images").code == 1
    assert command("check-data", path, "--images", tmp_path / "a" / "images", "--boxes").code == 0


def test_label_pngs(command: Command, tmp_path: Path) -> None:
    test_segmentation.add(tmp_path, "images/train", "labels/train")
    assert "1 training pair, 1 validation pair, 4 classes" in command("check-data", tmp_path).out
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert command("check-data", tmp_path).code == 1
    assert command("check-data", tmp_path, "--reduce-zero-label").code == 0


def test_class_folders(command: Command, photos: Path) -> None:
    result = command("check-data", photos)
    assert (result.code, "3 classes" in result.out) == (1, True)
    assert "broken.png: image: the file is empty" in result.out


def test_no_data(command: Command, tmp_path: Path) -> None:
    result = command("check-data", tmp_path / "nowhere")
    assert result.code == 2
    assert "no such file or folder" in result.err


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "hub"])
def test_boxes_are_written_as_coco(command: Command, tmp_path: Path, form: str) -> None:
    data = same_data.BOX_FORMATS[form](tmp_path / "data")
    result = command("check-data", data, "--to", "coco", tmp_path / "out")
    assert (result.code, result.err.count("written: ")) == (0, 3)
    wanted = "masks" if form == "coco" else "boxes"
    before, after = open_detection(data, wanted=wanted), open_detection(tmp_path / "out", wanted=wanted)
    assert before.classes == after.classes
    for old, new in ((before.train, after.train), (before.val, after.val)):
        truth, written = old.coco_dataset(), new.coco_dataset()
        assert truth["annotations"] == written["annotations"]
        assert truth["categories"] == written["categories"]
        assert [old.image(i).tobytes() for i in range(len(old))] == [new.image(i).tobytes() for i in range(len(new))]


def test_polygons_are_written_as_coco(command: Command, tmp_path: Path) -> None:
    data = same_data.yolo_polygons(tmp_path / "data")
    assert command("check-data", data, "--to", "coco", tmp_path / "out").code == 0
    assert open_detection(tmp_path / "out").train.coco_dataset()["annotations"][0]["segmentation"]
    assert "holds other files; give --to a new" in command("check-data", data, "--to", "coco", tmp_path / "out").err
    classes = same_data.class_folders(tmp_path / "classes")
    assert command("check-data", classes, "--to", "coco", tmp_path / "more").code == 2
