"""The reports of detection, instance and semantic segmentation runs: whole, interrupted and broken."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.data.coco import DetectionData, DetectionImages
from convattn.data.images import ImageError
from convattn.data.scenes import SceneSettings, open_scene_labels, open_scenes
from convattn.data.segmentation import SegmentationData, SegmentationImages
from convattn.report import write_report
from tests.report.dense_run_folder import (
    DetectionTask,
    Result,
    make_detection_run,
    make_segmentation_run,
    result,
    spoilt_labels,
    spoilt_objects,
)
from tests.report.reading import Page, read_page
from tests.report.run_folder import NoiseImages, write_csv

Images = DetectionImages | SegmentationImages

SETTINGS = SceneSettings(train=8, val=6)
SHARED = ["Attention or convolution?", "Use it", "Files left out", "Settings"]
DETECTION = ["How it learned", "How well it finds objects", "AP by class", "Worst cases first", *SHARED]
SEGMENTATION = ["How it learned", "IoU by class", "What it confuses", "Worst cases first", *SHARED]
ODD_NAMES = ["<b>raven</b> & co", 'a "tit"', "owl \u202e lwo", "犬", "'", "5", "6", "7", "8", "x" * 300]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def scenes(cache: Path) -> DetectionData:
    return open_scenes(settings=SETTINGS, cache=cache)


@pytest.fixture(scope="module")
def labels(cache: Path) -> SegmentationData:
    return open_scene_labels(SETTINGS, cache=cache)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "20260101-000000-acmix_resnet14"


def truth_as_results(val: DetectionImages) -> list[Result]:
    return [
        result(val, index, one.label, one.box, 0.9) for index, entry in enumerate(val.entries) for one in entry.objects
    ]


def figure_of(run: Path, name: str) -> str:
    """A figure of the summary as the page writes it."""
    return f"{100 * json.loads((run / 'summary.json').read_text())['figures'][name]:.1f}\u202f%"


def shown_images(page: Page) -> list[str]:
    """The names of the gallery's images, in its order."""
    return list(dict.fromkeys(re.split("[,:] ", picture["alt"] or "")[0] for picture in page.pictures))


def detection_run(run: Path, scenes: DetectionData, task: DetectionTask = "detection") -> None:
    results = spoilt_objects(scenes.val, with_masks=task == "instances")
    make_detection_run(run, scenes.classes, scenes.val, results, task=task)


def segmentation_run(run: Path, labels: SegmentationData) -> None:
    make_segmentation_run(run, labels.classes, labels.val, spoilt_labels(labels.val))


class TestDetection:
    def test_every_section_and_number_is_there(self, run: Path, scenes: DetectionData) -> None:
        detection_run(run, scenes)
        page = read_page(write_report(run, scenes.val))
        assert page.headings == DETECTION
        for name in ("box_AP", "box_AP50", "box_AP75", "box_APs", "box_APm", "box_AR1", "box_AR100", "box_ARm"):
            assert figure_of(run, name) in page.text
        assert "faster_rcnn with acmix_resnet14 on digit scenes" in page.text
        assert "2.346\u202fM" in page.text
        assert "scenes/broken <1>.png" in page.text
        assert sum("Precision over recall, boxes at IoU 0.5." in chart for chart in page.charts) == 1
        assert sum("Precision over recall, boxes at IoU 0.75." in chart for chart in page.charts) == 1
        assert len(page.pictures) == 2 * len(scenes.val)
        assert "mask" not in page.text

    def test_instances_measure_masks_first(self, run: Path, scenes: DetectionData) -> None:
        detection_run(run, scenes, "instances")
        page = read_page(write_report(run, scenes.val))
        assert page.headings == DETECTION
        assert page.text.index("AP of masks") < page.text.index("mask AP50") < page.text.index("box AP50")
        assert {figure_of(run, "mask_AP"), figure_of(run, "box_AP")} <= set(re.findall(r"[\d.]+\u202f%", page.text))
        assert sum("Precision over recall" in chart for chart in page.charts) == 4

    def test_classes_stand_weakest_first(self, run: Path, scenes: DetectionData) -> None:
        detection_run(run, scenes)
        text = write_report(run, scenes.val).read_text()
        parts = [float(part) for part in re.findall(r'class="track"><span style="width:([\d.]+)%"', text)]
        assert parts == sorted(parts)
        assert len(parts) > 3

    def test_the_image_with_most_errors_comes_first(self, run: Path, scenes: DetectionData) -> None:
        val = scenes.val
        full = max(range(len(val)), key=lambda index: len(val.entries[index].objects))
        results = [one for one in truth_as_results(val) if one["image_id"] != val.entries[full].id]
        other = 0 if full else 1
        results.append(result(val, other, 4, (1, 1, 9, 9), 0.92))
        make_detection_run(run, scenes.classes, val, results)
        page = read_page(write_report(run, val))
        order = [*(val.name(index) for index in (full, other))]
        order += [name for name in map(val.name, range(len(val))) if name not in order]
        assert shown_images(page) == order
        count = len(val.entries[full].objects)
        assert f"missed {count} of {count} (" in page.text
        assert "1 false alarm: 3 at 92\u202f%" in page.text
        assert f"{len(val) - 2} of {len(val)} images without an error" in page.text

    def test_the_truth_is_without_an_error(self, run: Path, scenes: DetectionData) -> None:
        make_detection_run(run, scenes.classes, scenes.val, truth_as_results(scenes.val))
        page = read_page(write_report(run, scenes.val))
        assert "(F1 100\u202f%)" in page.text
        assert "6 of 6 images without an error" in page.text

    def test_nothing_was_detected(self, run: Path, scenes: DetectionData) -> None:
        make_detection_run(run, scenes.classes, scenes.val, [])
        page = read_page(write_report(run, scenes.val))
        objects = sum(len(entry.objects) for entry in scenes.val.entries)
        assert f"no detection hits an object; {objects} of {objects} objects missed" in page.text.replace(
            "; one hits where its class is right and its IoU is 0.5 or more. ", "; "
        )
        assert page.headings == DETECTION

    def test_images_without_objects(self, run: Path, scenes: DetectionData) -> None:
        bare = replace(scenes.val, entries=tuple(replace(entry, objects=()) for entry in scenes.val.entries))
        make_detection_run(run, scenes.classes, scenes.val, [result(bare, 2, 1, (5, 5, 20, 20), 0.7)])
        page = read_page(write_report(run, bare))
        assert shown_images(page)[0] == bare.name(2)
        assert "1 false alarm: 0 at 70\u202f%" in page.text
        assert page.text.count("no objects, none reported") == len(bare) - 1

    def test_no_validation_images(self, run: Path, scenes: DetectionData) -> None:
        make_detection_run(run, scenes.classes, scenes.val, [])
        page = read_page(write_report(run, replace(scenes.val, entries=())))
        assert "Worst cases first" not in page.headings

    def test_ninety_classes(self, run: Path, scenes: DetectionData) -> None:
        detection_run(run, scenes)
        rng = np.random.default_rng(0)
        names = [f"class {index}" for index in range(90)]
        (run / "classes.txt").write_text("\n".join(names) + "\n")
        ap = rng.random(90)
        rows = [(name, 5, "" if place % 9 == 0 else ap[place], ap[place]) for place, name in enumerate(names)]
        write_csv(run / "per_class.csv", "class,objects,box_AP,box_AP50", rows)
        curve = {
            name: [-1] * 101 if place % 9 == 0 else sorted(rng.random(101))[::-1] for place, name in enumerate(names)
        }
        (run / "curves.json").write_text(json.dumps({"box": {"0.5": curve}}))
        page = read_page(write_report(run, scenes.val))
        assert "… and 56 more" in page.text
        assert "10 classes have no objects to measure." in page.text
        assert "shaded: the middle half of the classes" in page.text
        assert sum("Precision over recall" in chart for chart in page.charts) == 1
        # The quartiles are one area, not 80 lines.
        assert (run / "report.html").stat().st_size < 2_000_000

    def test_crowds_are_explained(self, run: Path, scenes: DetectionData) -> None:
        place = next(index for index, entry in enumerate(scenes.val.entries) if entry.objects)
        entries = list(scenes.val.entries)
        crowd, *others = entries[place].objects
        entries[place] = replace(entries[place], objects=(replace(crowd, crowd=True), *others))
        make_detection_run(run, scenes.classes, scenes.val, truth_as_results(scenes.val))
        assert "crowd, not counted" not in read_page(write_report(run, scenes.val)).text
        page = read_page(write_report(run, replace(scenes.val, entries=tuple(entries))))
        assert "crowd, not counted" in page.text
        assert "6 of 6 images without an error" in page.text


class TestSegmentation:
    def test_every_section_and_number_is_there(self, run: Path, labels: SegmentationData) -> None:
        segmentation_run(run, labels)
        page = read_page(write_report(run, labels.val))
        assert page.headings == SEGMENTATION
        for name in ("mean_iou", "pixel_accuracy", "mean_accuracy"):
            assert figure_of(run, name) in page.text
        assert len(page.pictures) == 4 * len(labels.val)
        assert "not labelled" in page.text
        assert all(picture["alt"] for picture in page.pictures)

    def test_the_lowest_mean_iou_comes_first(self, run: Path, labels: SegmentationData) -> None:
        segmentation_run(run, labels)
        page = read_page(write_report(run, labels.val))
        rows = [line.split(",") for line in (run / "predictions.csv").read_text().splitlines()[1:]]
        rows.sort(key=lambda row: float(row[2]))
        assert shown_images(page) == [row[1] for row in rows]
        assert f"mean IoU {100 * float(rows[0][2]):.1f}\u202f%" in page.text

    def test_the_most_confused_pair_is_named(self, run: Path, labels: SegmentationData) -> None:
        maps = [labels.val.label_map(index) for index in range(len(labels.val))]
        maps[3] = np.where(maps[3] == 0, 10, maps[3])
        make_segmentation_run(run, labels.classes, labels.val, maps)
        page = read_page(write_report(run, labels.val))
        assert shown_images(page)[0] == labels.val.name(3)
        assert "most: ground taken for 9, " in page.text
        assert page.text.count("no pixel wrong") == len(labels.val) - 1
        assert re.search(r"of class\s*ground\s*9", page.text)

    @pytest.mark.parametrize("form", ["bare", "head", "cut", "negative"])
    def test_any_form_of_the_confusion(self, run: Path, labels: SegmentationData, form: str) -> None:
        segmentation_run(run, labels)
        lines = [line.split(",")[1:] for line in (run / "confusion.csv").read_text().splitlines()]
        lines = {"bare": lines[1:], "head": lines, "cut": lines[:-2], "negative": [["-1"] * 11] * 11}[form]
        (run / "confusion.csv").write_text("\n".join(",".join(line) for line in lines))
        page = read_page(write_report(run, labels.val))
        assert ("What it confuses" in page.headings) == (form in ("bare", "head"))

    def test_unlabelled_pixels_are_no_errors(self, run: Path, labels: SegmentationData, tmp_path: Path) -> None:
        segmentation_run(run, labels)
        folder = tmp_path / "data"
        folder.mkdir()
        truth = labels.val.label_map(0)
        Image.fromarray(np.where(truth == 0, 255, truth).astype(np.uint8)).save(folder / "truth.png")
        labels.val.image(0).save(folder / "image.png")
        val = replace(labels.val, root=folder, pairs=(("image.png", "truth.png"),))
        Image.fromarray(truth.astype(np.uint8)).save(run / "predictions" / "000000.png")
        page = read_page(write_report(run, val))
        assert "no pixel wrong" in page.text
        assert len(page.pictures) == 4

    def test_a_prediction_of_another_size_costs_its_pictures(self, run: Path, labels: SegmentationData) -> None:
        segmentation_run(run, labels)
        Image.new("L", (5, 5)).save(run / "predictions" / "000002.png")
        (run / "predictions" / "000004.png").unlink()
        page = read_page(write_report(run, labels.val))
        assert len(page.pictures) == 4 * len(labels.val) - 4
        assert page.text.count("cannot be read") == 4

    def test_many_classes(self, run: Path, labels: SegmentationData) -> None:
        make_segmentation_run(run, labels.classes, labels.val, spoilt_labels(labels.val))
        names = [*labels.classes, *(f"absent {index}" for index in range(140))]
        (run / "classes.txt").write_text("\n".join(names))
        page = read_page(write_report(run, replace(labels.val, num_classes=151)))
        assert "absent" not in page.text

    def test_no_validation_images(self, run: Path, labels: SegmentationData) -> None:
        segmentation_run(run, labels)
        page = read_page(write_report(run, replace(labels.val, pairs=())))
        assert "Worst cases first" not in page.headings


class TestBoth:
    @pytest.fixture(scope="class", params=["instances", "segmentation"])
    def template(
        self,
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
        scenes: DetectionData,
        labels: SegmentationData,
    ) -> tuple[Path, Images]:
        """A run with its page, and the validation images."""
        folder, task = tmp_path_factory.mktemp("template") / "run", request.param
        if task == "segmentation":
            segmentation_run(folder, labels)
        else:
            detection_run(folder, scenes, task)
        val = labels.val if task == "segmentation" else scenes.val
        write_report(folder, val)
        return folder, val

    @pytest.fixture
    def again(self, run: Path, template: tuple[Path, Images]) -> Callable[[], Page]:
        """Writes and reads the page of ``run``, a copy of the template."""
        folder, val = template
        shutil.copytree(folder, run)
        return lambda: read_page(write_report(run, val))

    def test_a_missing_file_costs_its_section(self, run: Path, again: Callable[[], Page]) -> None:
        gallery = "detections.json" if (run / "detections.json").is_file() else "predictions.csv"
        headings = read_page(run / "report.html").headings
        for names, lost in (
            ([gallery, "paths.csv"], {"Worst cases first", SHARED[0]}),
            (["per_class.csv", "skipped.csv"], {"AP by class", "IoU by class", "Files left out"}),
            (["curves.json", "summary.json", "confusion.csv"], {"What it confuses"}),
            (["metrics.csv", "classes.txt"], {"What it confuses"}),
        ):
            kept = {name: (run / name).read_bytes() for name in names if (run / name).is_file()}
            for name in kept:
                (run / name).unlink()
            assert again().headings == [heading for heading in headings if heading not in lost]
            for name, content in kept.items():
                (run / name).write_bytes(content)

    def test_files_that_a_kill_cut_short(self, run: Path, again: Callable[[], Page]) -> None:
        for path in [path for path in run.rglob("*") if path.is_file()]:
            path.write_bytes(path.read_bytes()[:-9])
        assert "How it learned" in again().headings

    def test_files_that_hold_something_else(self, run: Path, again: Callable[[], Page]) -> None:
        for name in ("curves.json", "summary.json", "per_class.csv", "predictions.csv", "detections.json", "paths.csv"):
            (run / name).write_text('{"box": {"0.5": {"a": [1, "b"]}, "0.75": 3}, "figures": [1], "score": "x"}')
        assert "Worst cases first" not in again().headings

    def test_an_interrupted_run(self, run: Path, again: Callable[[], Page]) -> None:
        for path in [path for path in run.rglob("*") if path.name not in ("config.yaml", "metrics.csv", "classes.txt")]:
            if path.is_file():
                path.unlink()
        lines = (run / "metrics.csv").read_text().splitlines()
        (run / "metrics.csv").write_text("\n".join(lines[:4]))
        page = again()
        assert "interrupted" in page.text
        assert "3 of 6" in page.text
        assert f"convattn train --resume {run}" in page.text
        best = lines[3].split(",")[lines[0].split(",").index("mean_iou" if "mean_iou" in lines[0] else "box_AP")]
        assert f"{100 * float(best):.1f}\u202f%" in page.text

    def test_before_the_first_epoch(self, run: Path, again: Callable[[], Page]) -> None:
        for path in [path for path in run.rglob("*") if path.is_file() and path.name != "config.yaml"]:
            path.unlink()
        page = again()
        assert page.headings == ["How it learned", "Use it", "Settings"]
        assert "not measured yet" in page.text

    def test_names_are_text_not_markup(self, run: Path, again: Callable[[], Page]) -> None:
        (run / "classes.txt").write_text("\n".join(ODD_NAMES))
        rows = [line.split(",") for line in (run / "per_class.csv").read_text().splitlines()]
        named = [(name, *row[1:]) for name, row in zip(ODD_NAMES, rows[1:], strict=False)]
        write_csv(run / "per_class.csv", ",".join(rows[0]), named)
        page = again()
        assert "<b>raven</b> & co" in page.text
        assert "\u202e" not in page.text
        assert "<b>raven" not in (run / "report.html").read_text()

    @pytest.mark.usefixtures("again")
    def test_nothing_is_loaded_from_anywhere(self, run: Path) -> None:
        text = (run / "report.html").read_text(encoding="utf-8")
        assert not {"script", "link", "iframe"} & read_page(run / "report.html").tags
        assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
        addresses = re.findall(r'(?:src|href)="?([^"\s>]+)', text)
        assert {address[:10] if address[0] != "#" else "#" for address in addresses} == {"data:image", "#"}

    def test_the_same_run_gives_the_same_page(self, run: Path, again: Callable[[], Page]) -> None:
        again()
        first = (run / "report.html").read_bytes()
        again()
        assert (run / "report.html").read_bytes() == first


class TestTask:
    def test_without_settings_the_images_tell_the_task(
        self, run: Path, scenes: DetectionData, labels: SegmentationData, tmp_path: Path
    ) -> None:
        detection_run(run, scenes, "instances")
        (run / "config.yaml").write_text("task: [cut")
        assert "AP of masks" in read_page(write_report(run, scenes.val)).text
        bare = tmp_path / "bare"
        bare.mkdir()
        assert "mean IoU" in read_page(write_report(bare, labels.val)).text
        assert "AP of boxes" in read_page(write_report(bare, scenes.val)).text
        assert "validation accuracy" in read_page(write_report(bare, NoiseImages([]))).text

    def test_images_of_another_task_are_refused(
        self, run: Path, scenes: DetectionData, labels: SegmentationData
    ) -> None:
        detection_run(run, scenes)
        with pytest.raises(TypeError, match="a run of detection, its validation images came as SegmentationImages"):
            write_report(run, labels.val)
        with pytest.raises(TypeError, match="came as NoiseImages"):
            write_report(run, NoiseImages([]))
        (run / "config.yaml").write_text("task: poses")
        with pytest.raises(TypeError, match="the task 'poses' has no page"):
            write_report(run, scenes.val)

    def test_images_that_are_gone(self, run: Path, scenes: DetectionData) -> None:
        class Gone(DetectionImages):
            def image(self, index: int) -> Image.Image:
                raise ImageError(self.name(index), "no such file", "check the path")

        detection_run(run, scenes)
        val = scenes.val
        page = read_page(write_report(run, Gone(val.root, val.annotations, val.entries, val.category_ids)))
        assert page.pictures == []
        assert page.text.count("cannot be read") == 2 * len(val)
