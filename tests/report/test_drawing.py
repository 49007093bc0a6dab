"""Drawn results: where lines and colours end up, on small and large images, with any names."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convattn.data.scenes import SceneSettings, open_scenes
from convattn.report.drawing import LineStyle, class_colors, draw_detections, draw_label_map, fit_scale
from convattn.report.legend import KEYS_LIMIT, PANEL, Key, with_legend
from convattn.report.palette import NOT_LABELLED, background_of
from convattn.report.tags import COVER_LIMIT, HIDDEN_LIMIT, TagWriter

BLUE, ORANGE = class_colors(2)


def white(width: int = 200, height: int = 120) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def painted(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """The pixels [H, W] of a colour."""
    return (np.asarray(image) == color).all(-1)


class TestColors:
    def test_a_class_keeps_its_color_whatever_the_number_of_classes(self) -> None:
        assert class_colors(150)[:10] == class_colors(10)
        assert class_colors(0) == []

    @pytest.mark.parametrize("n", [7, 21, 150, 256])
    def test_no_two_are_alike_and_none_is_grey(self, n: int) -> None:
        colors = np.array(class_colors(n), dtype=int)
        gaps = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(n, dtype=int)
        assert gaps.min() >= 17
        assert (colors.max(1) - colors.min(1)).min() > 15

    def test_more_than_there_are_repeat(self) -> None:
        assert len(class_colors(5000)) == 5000

    def test_a_negative_number_is_refused(self) -> None:
        with pytest.raises(ValueError, match="n=-1"):
            class_colors(-1)


class TestDetections:
    @pytest.mark.parametrize("size", [(64, 64), (640, 480), (4000, 3000), (1, 1), (900, 3), (3, 900)])
    def test_lines_lie_on_the_box_at_any_size(self, size: tuple[int, int]) -> None:
        width, height = size
        box = [width * 0.25, height * 0.5, width * 0.75, height]
        drawn = draw_detections(white(*size), [box], ["thing"], [0.5], colors=[BLUE])
        assert drawn.size == size
        rows, columns = np.nonzero(painted(drawn, BLUE))
        # The name may lie beside the box, never far from it.
        assert rows.max() == height - 1
        assert columns.min() <= box[0] <= max(columns.max(), 1)

    def test_the_line_grows_with_the_image(self) -> None:
        def width_of(scale: int) -> int:
            image = white(100 * scale, 100 * scale)
            drawn = draw_detections(image, [[10 * scale, 50 * scale, 90 * scale, 95 * scale]], [""], colors=[BLUE])
            return int(painted(drawn, BLUE)[75 * scale, : 50 * scale].sum())

        assert 1 <= width_of(1) < width_of(10) < width_of(40)

    def test_styles_differ_without_color(self) -> None:
        def ink(style: LineStyle) -> int:
            drawn = draw_detections(white(), [[20, 40, 180, 110]], [""], colors=[BLUE], styles=[style])
            return int(painted(drawn, BLUE)[60:100].sum())

        assert ink("solid") > ink("dashed") > ink("dotted") > 0

    def test_the_image_is_left_alone(self) -> None:
        image = Image.new("P", (40, 40))
        before = image.tobytes()
        assert draw_detections(image, [[4, 4, 30, 30]], ["a"]).mode == "RGB"
        assert image.tobytes() == before

    def test_nothing_found_is_the_image(self) -> None:
        image = white()
        for boxes in ([], np.zeros((0, 4))):
            assert draw_detections(image, boxes, [], [], []).tobytes() == image.tobytes()

    @pytest.mark.parametrize("name", ["", "犬", "ж\n<b>", "owl \u202e", "x" * 5000, "\ud800", "🦉", "a\0b", "שלום"])
    def test_any_name(self, name: str) -> None:
        drawn = draw_detections(white(), [[20, 40, 100, 110]], [name], [0.9])
        assert drawn.tobytes() != white().tobytes()

    @pytest.mark.parametrize(
        "box", [[np.nan, 0, 5, 5], [0, 0, np.inf, 5], [-50, -50, 900, 900], [30, 30, 20, 20], [500, 500, 600, 600]]
    )
    def test_any_box(self, box: list[float]) -> None:
        assert draw_detections(white(), [box, [10, 10, 50, 50]], ["a", "b"], [np.nan, 0.5]).size == (200, 120)

    def test_many_objects(self) -> None:
        rng = np.random.default_rng(0)
        corners = rng.uniform(0, 200, (600, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (600, 2))], 1)
        draw_detections(white(260, 260), boxes, [f"thing {place}" for place in range(600)], rng.random(600))

    def test_masks_fill_what_they_cover_at_any_scale(self) -> None:
        mask = np.zeros((120, 200), bool)
        mask[40:80, 50:150] = True
        drawn = draw_detections(white(), [[50, 40, 150, 80]], [""], masks=[mask], colors=[BLUE], scale=2)
        changed = (np.asarray(drawn) != 255).any(-1)
        wanted = np.kron(mask, np.ones((2, 2), bool))
        assert drawn.size == (400, 240)
        assert changed[wanted].all()
        rows, columns = np.nonzero(changed[78:] & ~wanted[78:])
        assert len(rows) == 0 or (rows.max() <= 84 and 98 <= columns.min() <= columns.max() <= 301)

    def test_an_empty_mask_leaves_the_box(self) -> None:
        boxes = [[20, 40, 180, 110]]
        empty = draw_detections(white(), boxes, ["a"], masks=[np.zeros((120, 200))])
        assert empty.tobytes() == draw_detections(white(), boxes, ["a"]).tobytes()

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"boxes": [[1, 2, 3]]}, r"\[N, 4\]"),
            ({"labels": []}, "0 labels for 1 boxes"),
            ({"scores": [0.1, 0.2]}, "2 scores for 1 boxes"),
            ({"masks": [np.zeros((3, 3))]}, r"mask 0 is \[3, 3\]"),
            ({"masks": []}, "0 masks for 1 boxes"),
            ({"scale": 0}, "scale=0"),
        ],
    )
    def test_what_does_not_fit_is_told(self, given: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            draw_detections(**{"image": white(), "boxes": [[1, 2, 30, 40]], "labels": ["a"], **given})

    def test_names_leave_small_objects_in_sight(self) -> None:
        rng = np.random.default_rng(1)
        corners = rng.uniform(0, 380, (60, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(4, 40, (60, 2))], 1)
        writer = TagWriter(ImageDraw.Draw(white(448, 448)), (448, 448), boxes, 14)
        written = sum(writer.write("thing", "92%", box, BLUE) for box in boxes)
        assert 0 < written == len(writer.placed) < len(boxes)
        assert sum((tag[2] - tag[0]) * (tag[3] - tag[1]) for tag in writer.placed) <= HIDDEN_LIMIT * 448**2
        for tag in writer.placed:
            low, high = np.maximum(tag[:2], boxes[:, :2]), np.minimum(tag[2:], boxes[:, 2:])
            hidden = np.clip(high - low, 0, None).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
            assert hidden.max() <= COVER_LIMIT + 1e-9
            assert tag.min() >= 0
            assert tag.max() <= 448

    def test_scenes_are_drawn_with_masks(self, tmp_path: Path) -> None:
        data = open_scenes(settings=SceneSettings(train=4, val=2), cache=tmp_path)
        for index in range(2):
            image, target = data.val.image(index), data.val.target(index)
            names = [data.classes[label - 1] for label in target["labels"]]
            scale = fit_scale(image.size, 448)
            drawn = draw_detections(image, target["boxes"].numpy(), names, masks=target["masks"].numpy(), scale=scale)
            assert drawn.size == (448, 448)


class TestLabelMap:
    def test_classes_have_their_colors_and_the_rest_is_hatched(self) -> None:
        labels = np.zeros((60, 90), int)
        labels[:, 30:60], labels[:, 60:] = 1, 255
        pixels = np.asarray(draw_label_map(white(90, 60), labels, 2, opacity=1))
        assert (pixels[:, :30] == BLUE).all()
        assert (pixels[:, 30:60] == ORANGE).all()
        grey = pixels[:, 60:].reshape(-1, 3)
        assert np.ptp(grey, axis=1).max() == 0
        assert set(np.unique(grey)) == {NOT_LABELLED[0], round(NOT_LABELLED[0] * 0.45)}

    def test_the_background_is_not_painted(self) -> None:
        image, labels = Image.effect_noise((40, 30), 50), np.zeros((30, 40), int)
        labels[:, 20:] = 1
        pixels = np.asarray(draw_label_map(image, labels, 2, opacity=1, background=0))
        assert (pixels[:, :20] == np.asarray(image)[:, :20, None]).all()
        assert (pixels[:, 20:] == ORANGE).all()

    @pytest.mark.parametrize(
        ("classes", "found"),
        [
            (["background", "cat"], 0),
            (["_background_", "cat"], 0),
            (["Back ground", "cat"], 0),
            (["ground", "1"], 0),
            (["class 0", "class 1"], 0),
            (["wall", "background"], None),
            (["cat", "dog"], None),
            (["class 10"], None),
            ([], None),
        ],
    )
    def test_which_class_is_the_background(self, classes: list[str], found: int | None) -> None:
        assert background_of(classes) == found

    def test_opacity_goes_from_image_to_map(self) -> None:
        image, labels = Image.effect_noise((40, 30), 50), np.zeros((30, 40), np.uint8)
        assert draw_label_map(image, labels, 1, opacity=0).tobytes() == image.convert("RGB").tobytes()
        half = np.asarray(draw_label_map(white(40, 30), labels, 1, opacity=0.5)).reshape(-1, 3)
        assert np.abs(half - (np.array(BLUE) + 255) / 2).max() <= 0.5

    @pytest.mark.parametrize("scale", [0.3, 1, 3])
    def test_the_scale_keeps_the_classes(self, scale: float) -> None:
        labels = np.indices((20, 30)).sum(0) % 3
        drawn = draw_label_map(white(30, 20), labels, 3, opacity=1, scale=scale)
        assert drawn.size == (round(30 * scale), round(20 * scale))
        assert set(map(tuple, np.asarray(drawn).reshape(-1, 3))) <= set(class_colors(3))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"labels": np.zeros((30, 20), int)}, r"labels \[30, 20\] for an image of \(20, 30\)"),
            ({"opacity": 1.5}, "opacity=1.5"),
            ({"colors": [BLUE]}, "1 colours for 2 classes"),
        ],
    )
    def test_what_does_not_fit_is_told(self, given: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            draw_label_map(
                **{"image": white(30, 20), "labels": np.zeros((20, 30), int), "num_classes": 2, **given}  # type: ignore[arg-type]
            )


class TestLegend:
    def keys(self, count: int) -> list[Key]:
        return [Key(f"class {index}", color) for index, color in enumerate(class_colors(count))]

    @pytest.mark.parametrize("size", [(300, 200), (64, 48), (2000, 300)])
    @pytest.mark.parametrize("count", [1, 5, 20])
    def test_every_colour_is_named_below_the_picture(self, size: tuple[int, int], count: int) -> None:
        picture = Image.effect_noise(size, 50).convert("RGB")
        drawn = with_legend(picture, self.keys(count))
        assert drawn.crop((0, 0, *size)).tobytes() == picture.tobytes()
        panel = np.asarray(drawn.crop((0, size[1], *drawn.size))).reshape(-1, 3)
        assert set(class_colors(count)) <= set(map(tuple, panel.tolist()))
        assert (panel == PANEL).all(1).mean() > 0.4, "dark letters on a light ground, on any page"
        edge = np.asarray(drawn)[size[1] :, -1]
        assert (edge == PANEL).all(), "no name runs over the edge"

    def test_what_is_not_painted_and_what_is_too_much(self) -> None:
        bare = with_legend(white(), [Key("ground", None)])
        assert not set(map(tuple, np.asarray(bare).reshape(-1, 3).tolist())) & set(class_colors(50))
        many = with_legend(white(), self.keys(KEYS_LIMIT + 9))
        colors = set(map(tuple, np.asarray(many).reshape(-1, 3).tolist()))
        assert len(colors & set(class_colors(KEYS_LIMIT + 9))) == KEYS_LIMIT
        assert with_legend(white(), []).size == white().size

    @pytest.mark.parametrize("name", ["", "x" * 500, "\u202eabc", "犬と猫", "line\nbreak"])
    def test_any_name(self, name: str) -> None:
        assert with_legend(white(), [Key(name, BLUE)]).width < 1000
