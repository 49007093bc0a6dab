"""The report of runs whole and broken: parsed as HTML, with nothing outside the page and everything escaped."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from convattn.data.images import ImageError
from convattn.report import write_report
from convattn.report.charts import Series, line_chart
from convattn.report.classification import PICTURES_LIMIT, UNSURE_LIMIT, worst_first
from convattn.report.confusion import Confusion
from convattn.report.run import PathRow, PredictionRow, read_run
from tests.report.reading import read_page
from tests.report.run_folder import NoiseImages, make_run, write_csv

BIRDS = ["crow", "<b>raven</b> & co", 'a "tit"', "owl \u202e lwo"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "20260101-000000-acmix_resnet14"


class TestWholeRun:
    @pytest.mark.parametrize("classes", [2, 10, 40, 130])
    def test_every_section_is_there(self, run: Path, classes: int) -> None:
        val = make_run(run, [f"class {index}" for index in range(classes)], images=300, layers=4)
        assert write_report(run, val) == run / "report.html"
        page = read_page(run / "report.html")
        assert page.headings == [
            "How it learned",
            "What it confuses",
            "Accuracy by class",
            "How sure it is",
            "What it got wrong",
            "Attention or convolution?",
            "Use it",
            "Files left out",
            "Settings",
        ]
        assert "finished" in page.text
        assert f"convattn predict --run {run} photo.jpg" in page.text
        assert list(run.glob("*.tmp")) == []

    def test_nothing_is_loaded_from_anywhere(self, run: Path) -> None:
        write_report(run, make_run(run, BIRDS))
        text = (run / "report.html").read_text(encoding="utf-8")
        assert "default-src 'none'" in text
        assert not {"script", "link", "iframe"} & read_page(run / "report.html").tags
        outside = [url for url in re.findall(r'(?:src|href)="?([^"\s>]+)|url\(([^)]+)\)', text) for url in url if url]
        assert {url.split(":")[0] if url.startswith("data:image/") else url[0] for url in outside} <= {"data", "#"}
        assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)

    def test_names_are_text_not_markup(self, run: Path) -> None:
        write_report(run, make_run(run, BIRDS, hits=0.5))
        page = read_page(run / "report.html")
        assert "<b>raven</b> & co" in page.text
        assert "crow/broken <1>.jpg" in page.text
        assert "\u202e" not in page.text
        assert all(picture["alt"] for picture in page.pictures)

    def test_wrong_images_are_shown_the_most_confident_first(self, run: Path) -> None:
        val = make_run(run, BIRDS, images=400, hits=0.6)
        write_report(run, val)
        pictures = read_page(run / "report.html").pictures
        wrong = worst_first(read_run(run).predictions)
        assert len(wrong) > PICTURES_LIMIT == len(pictures)
        assert [row.probability for row in wrong] == sorted((row.probability for row in wrong), reverse=True)
        assert pictures[0]["alt"].startswith(f"{wrong[0].name}: ")
        assert pictures[0]["src"].startswith("data:image/png;base64,")
        assert pictures[0]["class"] == "pixels"

    def test_the_page_stays_small_with_large_pictures(self, run: Path) -> None:
        labels = make_run(run, BIRDS, images=200, hits=0.3).labels
        write_report(run, NoiseImages(labels, size=(1600, 1200)))
        assert (run / "report.html").stat().st_size < 1_500_000

    def test_the_same_run_gives_the_same_page(self, run: Path) -> None:
        val = make_run(run, BIRDS)
        first = write_report(run, val).read_bytes()
        assert write_report(run, val).read_bytes() == first


class TestPartsMissing:
    def test_an_empty_folder(self, run: Path) -> None:
        run.mkdir()
        page = read_page(write_report(run, NoiseImages([])))
        assert page.headings == ["How it learned", "Use it"]
        assert "No epoch has ended yet." in page.text
        assert f"convattn train --resume {run}" in page.text

    def test_interrupted_after_some_epochs(self, run: Path) -> None:
        val = make_run(run, BIRDS, epochs=3)
        for name in ("summary.json", "predictions.csv"):
            (run / name).unlink()
        (run / "config.yaml").write_text("model: resnet10t\nepochs: 90\n")
        page = read_page(write_report(run, val))
        assert "interrupted" in page.text
        assert "3 of 90" in page.text
        assert "not measured yet" in page.text
        assert page.pictures == []

    def test_without_acmix_layers(self, run: Path) -> None:
        page = read_page(write_report(run, make_run(run, BIRDS, layers=0)))
        assert "Attention or convolution?" not in page.headings
        assert len(page.charts) == 4

    def test_without_a_wrong_answer(self, run: Path) -> None:
        page = read_page(write_report(run, make_run(run, BIRDS, hits=1.0)))
        assert "What it got wrong" not in page.headings
        assert "What it was least sure of" in page.headings
        assert "Every validation image was recognised." in page.text
        rows = read_run(run).predictions
        lowest = sorted(rows, key=lambda row: row.probability)[:UNSURE_LIMIT]
        assert [picture["alt"].partition(":")[0] for picture in page.pictures] == [row.name for row in lowest]

    def test_a_run_that_diverged(self, run: Path) -> None:
        val = make_run(run, BIRDS, epochs=1)
        write_csv(
            run / "metrics.csv",
            "epoch,step,train_loss,val_loss,val_accuracy,lr,seconds",
            [(1, 9, "nan", "inf", 0.25, 0.1, 3), (2, 18, "", "nan", "nan", 0.1, 6)],
        )
        write_csv(run / "paths.csv", "epoch,depth,layer,alpha,beta", [(1, 0, "x", "nan", 1), (1, 1, "y", 0, 0)])
        (run / "summary.json").write_text(json.dumps({"finished": False, "accuracy": math.nan}))
        page = read_page(write_report(run, val))
        assert "nan" not in page.text.lower()
        assert page.charts[0] == "Training was not measured. Validation was not measured."

    def test_files_that_a_kill_cut_short(self, run: Path) -> None:
        val = make_run(run, BIRDS, epochs=4)
        for path in run.iterdir():
            path.write_bytes(path.read_bytes()[:-7])
        read_page(write_report(run, val))
        assert len(read_run(run).epochs) == 4

    def test_images_that_are_gone(self, run: Path) -> None:
        class Gone(NoiseImages):
            def image(self, index: int) -> None:
                raise ImageError(self.name(index), "no such file", "check the path")

        labels = make_run(run, BIRDS, hits=0.5).labels
        page = read_page(write_report(run, Gone(labels)))
        assert page.pictures == []
        assert page.text.count("cannot be read") == PICTURES_LIMIT
        assert read_page(write_report(run, NoiseImages(labels[:1]))).headings


class TestNumbers:
    def test_confusion_counts_rows_by_truth(self) -> None:
        rows = [PredictionRow(0, "", 0, 1, 0.9), PredictionRow(1, "", 0, 0, 0.9), PredictionRow(2, "", 2, 1, 0.9)]
        confusion = Confusion.of(["a", "b", "c"], [*rows, PredictionRow(3, "", 2, 1, 0.4)])
        assert confusion.counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 2, 0]]
        assert confusion.wrong == 3
        assert confusion.pairs() == [(2, 2, 1), (1, 0, 1)]
        assert np.allclose(confusion.rates, [[0.5, 0.5, 0], [0, 0, 0], [0, 1, 0]])

    @pytest.mark.parametrize(
        ("alpha", "beta", "ratio"),
        [(-2.0, 1.0, math.log(2)), (1.0, 1.0, 0.0), (0.0, 1.0, None), (1.0, 0.0, None), (math.inf, 1.0, None)],
    )
    def test_log_ratio(self, alpha: float, beta: float, ratio: float | None) -> None:
        found = PathRow(1, 0, "layer", alpha, beta).log_ratio
        assert math.isnan(found) if ratio is None else found == pytest.approx(ratio)

    def test_a_resumed_run_counts_an_epoch_once(self, run: Path) -> None:
        make_run(run, BIRDS, epochs=2)
        with (run / "metrics.csv").open("a") as file:
            file.write("2,100,0.5,0.5,0.75,0.001,15\n3,150,0.4")
        epochs = read_run(run).epochs
        assert [row.epoch for row in epochs] == [1, 2, 3]
        assert epochs[1].figure("val_accuracy") == 0.75
        assert math.isnan(epochs[2].figure("val_accuracy"))

    def test_predictions_of_unknown_classes_are_left_out(self, run: Path) -> None:
        make_run(run, BIRDS)
        write_csv(
            run / "predictions.csv",
            "index,name,label,predicted,probability",
            [(0, "a", 0, 3, 0.5), (1, "b", 0, 4, 0.5), (2, "c", -1, 0, 0.5), ("x", "d", 0, 0, 0.5)],
        )
        assert [row.name for row in read_run(run).predictions] == ["a"]


class TestCharts:
    def test_svg_is_well_formed_and_takes_the_pages_colours(self) -> None:
        svg = line_chart([Series("a & b", [1, 2], [3.0, math.nan])], alt='says "hello" & <bye>')
        root = ElementTree.fromstring(re.sub(r"^<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', svg))
        assert root.attrib["aria-label"] == 'says "hello" & <bye>'
        assert "var(--c1)" in svg
        assert not re.search(r"#0a0b0\d", svg)

    @pytest.mark.parametrize("values", [[math.nan], [0.0, 0.0], [math.inf, 1.0], [-1.0, 2.0], [5.0]])
    @pytest.mark.parametrize("scale", ["linear", "log"])
    def test_any_numbers_can_be_drawn(self, values: list[float], scale: str) -> None:
        svg = line_chart([Series("loss", range(len(values)), values)], alt="loss", y_scale=scale)
        assert svg.endswith("</svg>")
