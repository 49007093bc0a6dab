"""What a network looks at and what it is trained on, as pictures; how far its probabilities can be trusted."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_calibration_error

from convattn.errors import UserError
from convattn.publishing import wilson_interval
from convattn.report import write_report
from convattn.report.heat import ATTENTION, CONVOLUTION, Heat, heat_over, marked, share_over
from convattn.report.looks import Look, LookPage, PathHeats, look_gallery, write_look
from convattn.report.reliability import calibration_error, confidence_bins, reliability
from convattn.report.run import PredictionRow
from convattn.report.seen import SeenImage, seen_gallery
from convattn.report.task import Table
from tests.report.reading import read_page
from tests.report.run_folder import make_run

CLASSES = ["ground", "cat", "dog"]
WHITE = Image.new("RGB", (40, 20), "white")


def rows(confidences: np.ndarray, right: np.ndarray) -> list[PredictionRow]:
    return [PredictionRow(i, f"{i}.png", int(r), 1, float(c)) for i, (c, r) in enumerate(zip(confidences, right))]  # noqa: B905


class TestHeat:
    def test_padding_is_cut_off(self) -> None:
        values = np.array([[1.0, 0.0], [0.0, 0.0]])
        whole = np.asarray(heat_over(WHITE, Heat("x", values, (0.5, 0.5), blocks=True), 40))
        assert (whole == whole[0, 0]).all()  # the image fills the first cell alone
        half = np.asarray(heat_over(WHITE, Heat("x", values, (1.0, 0.5), blocks=True), 40))
        assert (half[:10] == half[0, 0]).all()
        assert half[15, 0].sum() < half[0, 0].sum()

    def test_shares_have_the_colours_of_the_legend(self) -> None:
        drawn = share_over(Image.new("RGB", (30, 10), "white"), Heat("x", np.array([[0.0, 0.5, 1.0]]), blocks=True), 30)
        left, middle, right = (np.array(drawn.getpixel((x, 5)), dtype=float) for x in (5, 15, 25))
        for found, color in ((left, CONVOLUTION), (middle, (255, 255, 255)), (right, ATTENTION)):
            assert np.abs(found - (255 + 0.6 * (np.array(color) - 255))).max() <= 1

    def test_a_mark_is_around_its_pixel(self) -> None:
        drawn = np.asarray(marked(Image.new("RGB", (200, 100)), 0.25, 0.5)).sum(-1)
        ys, xs = np.nonzero(drawn)
        assert (xs.mean(), ys.mean()) == pytest.approx((50, 50), abs=1)
        assert drawn[50, 50] == 0


def a_look(**changes: object) -> Look:
    heat = Heat("layer4.attention", np.eye(8))
    fields = {"name": "<photo>.jpg", "answer": WHITE, "said": "cat, 90.0%", "seen": WHITE}
    fields |= {"cam": Heat("layer4", np.eye(2)), "cam_of": "cat", "pixel": (3, 4), "mark": (0.1, 0.2)}
    fields |= {"attention": [heat], "paths": [PathHeats(heat, heat, heat)]}
    return Look(**(fields | changes))


class TestLooks:
    def test_the_page_of_one_image(self, tmp_path: Path) -> None:
        table = Table("The answer", ("class", "probability"), [("cat", 0.9)])
        write_look(tmp_path / "look.html", LookPage(a_look(), "acmix_resnet14", table, [("Again", "convattn explain")]))
        page = read_page(tmp_path / "look.html")
        assert page.headings == [
            "The answer in numbers",
            "What one pixel attends to",
            "Attention and convolution",
            "Go on",
        ]
        alts = [picture["alt"] for picture in page.pictures]
        assert alts[:2] == ["<photo>.jpg: cat, 90.0%", "<photo>.jpg: Grad-CAM of cat, layer layer4"]
        assert "<photo>.jpg: what the pixel (3, 4) attends to in layer4.attention" in alts
        assert len(alts) == 2 + 2 + 3
        assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", (tmp_path / "look.html").read_text())

    def test_a_network_without_attention(self, tmp_path: Path) -> None:
        look = a_look(attention=[], paths=[], remark="There is Grad-CAM alone.")
        write_look(tmp_path / "look.html", LookPage(look, "resnet18", Table("", ("class",), [])))
        page = read_page(tmp_path / "look.html")
        assert page.headings == ["What one pixel attends to"]
        assert "There is Grad-CAM alone." in page.text
        (found,) = look_gallery([look]).cards
        assert len(found.pictures) == 2
        assert "There is Grad-CAM alone." in look_gallery([look]).intro

    def test_a_map_of_some_pixels_is_shown_of_a_run(self) -> None:
        heats = [Heat(name, np.zeros((side, side))) for name, side in (("one", 16), ("two", 8), ("three", 4))]
        (card,) = look_gallery([a_look(attention=heats, paths=[])]).cards
        assert card.pictures[2].label == "two"

    def test_other_files_are_not_written_over(self, tmp_path: Path) -> None:
        page = LookPage(a_look(), "net", Table("", (), []))
        write_look(tmp_path / "look.html", page)
        write_look(tmp_path / "look.html", page)
        (tmp_path / "mine.html").write_text("<p>mine</p>")
        with pytest.raises(UserError, match=r"mine.html: is another file"):
            write_look(tmp_path / "mine.html", page)
        with pytest.raises(UserError, match=r"look.png: the explanation is an HTML page; give --out a name that ends"):
            write_look(tmp_path / "look.png", page)

    def test_a_runs_page_has_both_galleries(self, tmp_path: Path) -> None:
        run = tmp_path / "run"
        val = make_run(run, ["a", "b"], images=20)
        seen = seen_gallery([SeenImage("1.png", WHITE, 1)], ["a", "b"], "The first batch.")
        headings = read_page(write_report(run, val, seen=seen, looks=look_gallery([a_look()]))).headings
        assert {"What it looks at", "What it is trained on"} <= set(headings)


class TestSeen:
    def test_targets_of_every_task(self) -> None:
        boxes = {"boxes": torch.tensor([[2.0, 2.0, 20.0, 15.0]]), "labels": torch.tensor([2])}
        masks = torch.zeros(1, 20, 40, dtype=torch.uint8)
        masks[:, 4:10, 4:10] = 1
        labels = torch.zeros(20, 40, dtype=torch.int64)
        labels[:5], labels[15:] = 2, 255
        mixed = torch.tensor([0.02, 0.7, 0.28])
        targets = [1, torch.tensor(2), mixed, boxes, boxes | {"masks": masks}, labels, torch.zeros_like(labels)]
        cards = seen_gallery([SeenImage("x.png", WHITE, target) for target in targets], CLASSES, "").cards
        said = [card.said.replace("\N{NARROW NO-BREAK SPACE}", " ") for card in cards]
        assert said == ["cat", "dog", "cat 70 %, dog 28 %", "cat", "cat", "dog", "background alone"]
        assert all(card.pictures[0].source for card in cards)
        assert len({card.pictures[0].source for card in cards}) == 5  # the classes alone look alike


class TestReliability:
    @pytest.mark.parametrize("images", [1, 7, 500])
    def test_the_error_is_torchmetrics(self, images: int) -> None:
        rng = np.random.default_rng(images)
        confidences, right = rng.uniform(0.01, 0.99, images), rng.integers(0, 2, images)
        expected = binary_calibration_error(torch.tensor(confidences), torch.tensor(right), n_bins=15)
        assert calibration_error(confidence_bins(rows(confidences, right))) == pytest.approx(float(expected), abs=1e-6)

    def test_full_confidence_is_in_the_last_bin(self) -> None:
        """torchmetrics gives it a bin of its own, so that gaps of other signs do not cancel there."""
        found = confidence_bins(rows(np.array([1.0, 0.95]), np.array([0, 1])))
        assert [(one.place, one.images, one.right) for one in found] == [(14, 2, 1)]
        assert calibration_error(found) == pytest.approx(0.475)

    def test_intervals_hold_the_accuracy_and_shrink(self) -> None:
        bins = (confidence_bins(rows(np.full(n, 0.9), np.arange(n) % 4 > 0))[0] for n in (4, 400))
        few, many = (wilson_interval(one.right, one.images) for one in bins)
        assert few[0] < many[0] < 0.75 < many[1] < few[1]

    def test_without_probabilities(self) -> None:
        assert reliability(rows(np.array([np.nan, np.nan]), np.array([0, 1]))) is None
        assert np.isnan(calibration_error([]))

    def test_the_chart_says_its_figures(self) -> None:
        chart = reliability(rows(np.array([0.9] * 10), np.array([1] * 5 + [0] * 5)))
        note = chart.note.replace("\N{NARROW NO-BREAK SPACE}", " ")
        assert "(ECE) 40.0 %" in note
        assert "40.0 % surer than right" in note
        assert 'aria-label="Accuracy by confidence: 50' in chart.svg
