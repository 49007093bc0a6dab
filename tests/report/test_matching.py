"""Hits, misses and false alarms: pycocotools' own matching, and what follows from it."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from convattn.data.coco import DetectionImages
from convattn.data.coco_file import CocoImage, CocoObject
from convattn.data.masks import encode_mask
from convattn.report.detection_gallery import describe
from convattn.report.matching import (
    FALSE_ALARM,
    OF_CROWD,
    Detection,
    Match,
    Shape,
    best_threshold,
    match_image,
    read_detections,
    worst_first,
)

SIZE = 96
IDS = (3, 7)


def rectangle(box: np.ndarray) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    x1, y1, x2, y2 = box.round().astype(int)
    mask[y1:y2, x1:x2] = 1
    return mask


def random_image(rng: np.random.Generator, id: int) -> CocoImage:
    objects = []
    for place in range(int(rng.integers(0, 7))):
        corner, side = rng.integers(0, 60, 2), rng.integers(6, 36, 2)
        box = np.concatenate([corner, corner + side]).astype(float)
        crowd, label = bool(rng.random() < 0.2), int(rng.integers(1, 3))
        runs = encode_mask(rectangle(box))
        objects.append(CocoObject(100 * id + place + 1, label, tuple(box), float(side.prod()), crowd, runs))
    return CocoImage(id, f"{id}.png", SIZE, SIZE, tuple(objects))


def random_results(rng: np.random.Generator, image: CocoImage) -> list[dict[str, object]]:
    """Detections about the objects, some twice, some of the other class."""
    found = []
    for one in [*image.objects, *image.objects]:
        if rng.random() < 0.8:
            box = np.clip(np.array(one.box) + rng.normal(0, 3, 4), 0, SIZE)
            box[2:] = np.maximum(box[2:], box[:2] + 2)
            label = one.label if rng.random() < 0.8 else 3 - one.label
            sides = [*box[:2], *(box[2:] - box[:2])]
            found.append({"image_id": image.id, "category_id": IDS[label - 1], "bbox": [float(s) for s in sides],
                          "score": float(rng.random()), "segmentation": encode_mask(rectangle(box))})  # fmt: skip
    return found


def as_coco(images: list[CocoImage]) -> dict[str, object]:
    annotations = [
        {"id": one.id, "image_id": image.id, "category_id": IDS[one.label - 1], "area": one.area,
         "bbox": [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]],
         "iscrowd": int(one.crowd), "segmentation": one.segmentation}
        for image in images for one in image.objects
    ]  # fmt: skip
    sizes = [{"id": image.id, "file_name": image.file, "width": SIZE, "height": SIZE} for image in images]
    return {"images": sizes, "annotations": annotations, "categories": [{"id": id, "name": str(id)} for id in IDS]}


@pytest.mark.parametrize("shape", ["box", "mask"])
@pytest.mark.parametrize("seed", range(4))
def test_hits_are_those_of_pycocotools(tmp_path: Path, shape: Shape, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = [random_image(rng, id) for id in range(1, 21)]
    results = [one for image in images for one in random_results(rng, image)]
    file = tmp_path / "detections.json"
    file.write_text(json.dumps(results))
    detections = read_detections(file, DetectionImages(tmp_path, file, tuple(images), IDS))
    assert detections is not None
    matches = [match_image(index, image, detections[index], shape) for index, image in enumerate(images)]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = as_coco(images)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox" if shape == "box" else "segm")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.evaluate()
    expected = {}
    for one in filter(None, evaluation.evalImgs):
        for score, hit, ignored in zip(one["dtScores"], one["dtMatches"][0], one["dtIgnore"][0], strict=True):
            expected[one["image_id"], score] = OF_CROWD if ignored else int(hit) or FALSE_ALARM
    ours = {}
    for match in matches:
        for one, hit in zip(match.detections, match.hits, strict=True):
            ours[images[match.index].id, one.score] = match.objects[hit].id if hit >= 0 else hit
    assert ours == expected
    assert set(ours.values()) >= {FALSE_ALARM, OF_CROWD}


def thing(label: int, *, crowd: bool = False) -> CocoObject:
    return CocoObject(label, label, (10.0 * label, 0, 10.0 * label + 9, 9), 81, crowd)


def seen(label: int, score: float) -> Detection:
    return Detection(label, thing(label).box, score)


class TestOutcome:
    image = CocoImage(1, "a.png", 99, 9, (thing(1), thing(2), thing(3, crowd=True)))

    def match(self, *detections: Detection) -> Match:
        return match_image(0, self.image, detections, "box")

    def test_a_hit_below_the_threshold_is_a_miss(self) -> None:
        match = self.match(seen(1, 0.9), seen(2, 0.3))
        assert match.at(0.3).errors == 0
        assert [match.objects[place].label for place in match.at(0.5).missed] == [2]

    def test_crowds_are_neither_missed_nor_false(self) -> None:
        outcome = self.match(seen(1, 0.9), seen(2, 0.8), seen(3, 0.7), seen(3, 0.6)).at(0.5)
        assert (outcome.errors, outcome.objects, len(outcome.shown)) == (0, 2, 4)

    def test_an_object_is_hit_once(self) -> None:
        outcome = self.match(seen(1, 0.9), seen(1, 0.8), seen(2, 0.7)).at(0.5)
        assert [outcome.match.detections[place].score for place in outcome.false] == [0.8]

    @pytest.mark.parametrize(
        ("detections", "words"),
        [
            ([seen(1, 0.9), seen(2, 0.8)], "all 2 found"),
            ([], "missed 2 of 2 (ant, bee)"),
            ([seen(1, 0.9), seen(4, 0.92)], "missed 1 of 2 (bee), 1 false alarm: class 4 at 92 %"),
            (
                [seen(1, 1.0), seen(2, 0.9), *(seen(1, score) for score in (0.8, 0.7, 0.6, 0.55))],
                "4 false alarms: ant at 80 %, ant at 70 %, ant at 60 % and 1 more",
            ),
        ],
    )
    def test_the_caption_says_what_is_wrong(self, detections: list[Detection], words: str) -> None:
        said = describe(self.match(*detections).at(0.5), ["ant", "bee", "cat"])
        assert said.replace("\u202f", " ") == words

    def test_most_errors_first_then_the_surest_false_alarm(self) -> None:
        empty = CocoImage(2, "b.png", 99, 9)
        clean = match_image(0, empty, [], "box").at(0.5)
        unsure, sure = (
            match_image(index, empty, [seen(1, score)], "box").at(0.5) for index, score in [(1, 0.6), (2, 0.9)]
        )
        two = match_image(3, self.image, [], "box").at(0.5)
        assert [one.match.index for one in worst_first([clean, unsure, sure, two])] == [3, 2, 1, 0]
        assert describe(clean, []) == "no objects, none reported"


class TestThreshold:
    def test_it_balances_hits_and_errors(self) -> None:
        image = CocoImage(1, "a.png", 99, 9, (thing(1), thing(2)))
        match = match_image(0, image, [seen(1, 0.4), seen(2, 0.3), seen(1, 0.2), seen(2, 0.1)], "box")
        assert best_threshold([match]) == (0.3, 1.0)

    def test_detections_of_one_score_stand_together(self) -> None:
        image = CocoImage(1, "a.png", 99, 9, (thing(1),))
        match = match_image(0, image, [seen(1, 0.5), seen(2, 0.5), seen(2, 0.5)], "box")
        assert best_threshold([match]) == (0.5, pytest.approx(0.5))

    def test_without_an_object_it_is_a_half(self) -> None:
        image = CocoImage(1, "a.png", 99, 9)
        assert best_threshold([]) == best_threshold([match_image(0, image, [seen(1, 0.9)], "box")]) == (0.5, 0.0)

    def test_without_a_hit_as_much_is_shown_as_there_is(self) -> None:
        image = CocoImage(1, "a.png", 99, 9, (thing(1), thing(2)))
        false = [seen(3, 0.09), seen(4, 0.08), seen(3, 0.07), seen(4, 0.06)]
        assert best_threshold([match_image(0, image, false, "box")]) == (0.08, 0.0)

    def test_a_late_hit_does_not_bring_all_false_alarms_with_it(self) -> None:
        image = CocoImage(1, "a.png", 99, 9, (thing(1), thing(2)))
        late = [*(seen(3, 0.9 - place / 100) for place in range(40)), seen(1, 0.1)]
        assert best_threshold([match_image(0, image, late, "box")]) == (0.89, 0.0)


class TestFile:
    images = DetectionImages(Path(), Path(), (TestOutcome.image,), IDS)

    def read(self, folder: Path, text: str) -> list[list[Detection]] | None:
        (folder / "a.json").write_text(text)
        return read_detections(folder / "a.json", self.images)

    @pytest.mark.parametrize("text", ["", '[{"image_id": 1', "{}", "3"])
    def test_what_is_no_list_is_none(self, tmp_path: Path, text: str) -> None:
        assert self.read(tmp_path, text) is None
        assert read_detections(tmp_path / "missing.json", self.images) is None

    def test_broken_entries_are_passed_over(self, tmp_path: Path) -> None:
        right = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}
        wrong = [
            {"image_id": 9}, {"category_id": 1}, {"image_id": [1]}, {"bbox": [1, 2, 3]}, {"bbox": None},
            {"score": math.nan}, {"score": "high"},
        ]  # fmt: skip
        text = json.dumps([3, *({**right, **one} for one in wrong), right, {**right, "segmentation": "cut"}])
        assert self.read(tmp_path, text) == [[Detection(2, (1, 2, 4, 6), 0.5)] * 2]
