"""The check of a whole data folder: all problems at once, by file and id."""

import json
import pickle
from pathlib import Path

import pytest

from convattn.data.checks import CheckOptions, check_data
from convattn.data.masks import encode_mask
from convattn.data.problems import SHOWN, BadData, Problem, errors
from convattn.data.segmentation import write_label_map
from convattn.errors import UserError
from tests.data import test_coco, test_segmentation


def test_every_problem_of_both_files_is_listed(tmp_path: Path) -> None:
    what = test_coco.content()
    what["annotations"][0]["bbox"] = [1, 1, 5, float("nan")]
    what["annotations"][1]["segmentation"] = encode_mask(test_coco.blob(9, 9))
    what["annotations"][2]["bbox"] = [1, 1, 0, 0]
    train = test_coco.write(tmp_path, what, "train.json")
    val = tmp_path / "val.json"
    val.write_text(train.read_text()[:300])
    (tmp_path / "images" / "3.png").unlink()
    first, second = check_data(tmp_path)
    found = [(one.file, one.id, one.field) for one in errors(first.problems)]
    image = str(tmp_path / "images" / "3.png")
    assert found == [
        (str(train), 1, "annotations.bbox"),
        (str(train), 2, "annotations.segmentation"),
        (str(train), 3, "annotations.bbox"),
        (image, 30, "images.file_name"),
    ]
    assert first.counts == {"images": 2, "objects": 0, "crowds": 0, "classes": 2}
    assert (second.counts, "truncated" in second.problems[0].what) == ({}, True)


def test_an_image_without_objects_is_a_note(tmp_path: Path) -> None:
    (part,) = check_data(test_coco.write(tmp_path, test_coco.content()))
    assert [(one.id, one.level) for one in part.problems if one.id] == [(30, "note")]
    assert errors(part.problems) == []
    assert part.counts == {"images": 3, "objects": 3, "crowds": 1, "classes": 2}


def test_boxes_without_any_mask_are_right(tmp_path: Path) -> None:
    what = test_coco.content()
    for row in what["annotations"]:
        row["segmentation"] = []
    path = test_coco.write(tmp_path, what)
    assert errors(check_data(path)[0].problems) == []
    for masks in ([], [[1, 2]]):  # a wrong one says that masks are meant
        what["annotations"][0]["segmentation"] = masks
        test_coco.write(tmp_path, what)
        (part,) = check_data(path, CheckOptions(wanted=None if masks else "masks"))
        assert [one.field for one in errors(part.problems) if one.level == "error"] == ["annotations.segmentation"] * 3
    assert errors(check_data(path, CheckOptions(wanted="boxes"))[0].problems) == []


def test_label_pngs(tmp_path: Path) -> None:
    test_segmentation.add(tmp_path, "images/train", "labels/train")
    write_label_map(tmp_path / "labels/train/1.png", test_segmentation.labels() * 0 + 255)
    (part,) = check_data(tmp_path)
    assert part.counts == {"training pairs": 1, "validation pairs": 1, "classes": 4}
    assert [one.level for one in part.problems] == ["note"]
    (part,) = check_data(tmp_path, CheckOptions(classes=("a", "b")))
    assert errors(part.problems)[0].what == "ids 2, 3 are no class: the 2 classes are 0 to 1, and 255 is not labelled"


def test_what_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        check_data(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no COCO annotations, no label PNGs and no class folders"):
        check_data(tmp_path)


def test_many_entries_take_seconds(tmp_path: Path) -> None:
    what = test_coco.content()
    row = what["annotations"][0]
    what["annotations"] = [{**row, "id": id, "bbox": [1, 1, id % 2, 2]} for id in range(20_000)]
    (part,) = check_data(test_coco.write(tmp_path, what))
    assert len(errors(part.problems)) == 10_000


def test_a_refusal_names_the_first_and_carries_all() -> None:
    problems = [Problem("a.json", id, "annotations.bbox", "no area", "remove it") for id in range(9)]
    error = pickle.loads(pickle.dumps(BadData(problems, "do this")))
    assert error.problems == problems
    lines = str(error).splitlines()
    assert lines[0] == "9 problems:"
    assert lines[1] == "  a.json: annotations.bbox of id 0: no area (remove it)"
    assert lines[SHOWN + 1 :] == ["  and 4 more", "  do this"]


def test_problems_are_plain_data(tmp_path: Path) -> None:
    (part,) = check_data(test_coco.write(tmp_path, test_coco.content()))
    assert json.loads(json.dumps([vars(one) for one in part.problems]))[0]["level"] == "note"
