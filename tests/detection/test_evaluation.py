"""Average precision against pycocotools' own reading of the same files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convattn.data.masks import decode_mask, encode_mask
from convattn.data.scenes import SceneSettings, open_scenes
from convattn.detection.evaluation import FIGURES, evaluate_detections


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory):
    return open_scenes(settings=SceneSettings(train=8, val=12), cache=tmp_path_factory.mktemp("scenes")).val


def shaken(truth: dict[str, Any], seed: int = 0) -> list[dict[str, Any]]:
    """The true objects, moved a little, some lost, some of another class, and false alarms."""
    rng = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found = []
    for one in truth["annotations"]:
        if rng.random() < 0.2:
            continue
        label = int(rng.integers(1, 11)) if rng.random() < 0.2 else one["category_id"]
        shift = rng.integers(-3, 4, 2)
        mask = np.roll(decode_mask(one["segmentation"], *sizes[one["image_id"]]), shift, (0, 1))
        x, y, width, height = one["bbox"]
        box = [x + float(shift[1]), y + float(shift[0]), width, height]
        found.append(
            {"image_id": one["image_id"], "category_id": label, "bbox": box, "score": float(rng.random())}
            | {"segmentation": encode_mask(mask)}
        )
    return found


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_all_twelve_figures_are_those_of_pycocotools(scenes: Any, kind: Any, tmp_path: Path) -> None:
    found = shaken(scenes.coco_dataset())
    # The file as it lies on the disk, read by pycocotools alone; its category ids are the labels.
    own = COCO(str(scenes.annotations))
    # Given both, pycocotools takes the box's area for the mask's, against which detectors' own evaluations drop it.
    taken = [{key: value for key, value in one.items() if kind == "box" or key != "bbox"} for one in found]
    (tmp_path / "found.json").write_text(json.dumps(taken))
    evaluation = COCOeval(own, own.loadRes(str(tmp_path / "found.json")), "bbox" if kind == "box" else "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    figures = evaluate_detections(scenes.coco_dataset(), found, kind).figures
    ours = [-1 if math.isnan(figures[name]) else figures[name] for name in FIGURES]
    assert ours == pytest.approx(list(evaluation.stats), abs=1e-12)
    assert 0.05 < figures["AP"] < 0.95


def test_classes_average_to_the_whole(scenes: Any) -> None:
    scores = evaluate_detections(scenes.coco_dataset(), shaken(scenes.coco_dataset()))
    measured = [one for one in scores.per_class if one.objects]
    assert np.mean([one.ap for one in measured]) == pytest.approx(scores.figures["AP"])
    assert np.mean([one.ap50 for one in measured]) == pytest.approx(scores.figures["AP50"])
    curve = scores.curves[0.5]
    assert curve.shape == (101, 10)
    assert curve[curve > -1].mean() == pytest.approx(scores.figures["AP50"])


def test_nothing_found_and_nothing_there(scenes: Any) -> None:
    truth = scenes.coco_dataset()
    for kind in ("box", "mask"):
        assert evaluate_detections(truth, [], kind).figures["AP"] == 0
    empty = {**truth, "annotations": []}
    scores = evaluate_detections(empty, shaken(truth))
    assert all(math.isnan(value) for value in scores.figures.values())


def test_many_masks(scenes: Any) -> None:
    truth = scenes.coco_dataset()
    found = [one for seed in range(12) for one in shaken(truth, seed)]
    assert len(found) > 255
    assert evaluate_detections(truth, found, "mask").figures["AP"] > 0


def test_a_detection_of_another_data_set_is_refused(scenes: Any) -> None:
    one = shaken(scenes.coco_dataset())[0]
    with pytest.raises(ValueError, match="image 99999, which the truth does not have"):
        evaluate_detections(scenes.coco_dataset(), [{**one, "image_id": 99999}])
    with pytest.raises(ValueError, match="category 11, the truth has"):
        evaluate_detections(scenes.coco_dataset(), [{**one, "category_id": 11}])
