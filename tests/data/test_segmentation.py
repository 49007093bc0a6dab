"""Images with label PNGs: the layouts, the ids, every kind of bad pair and the transforms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data.dense_transforms import (
    SegmentationAugmentation,
    segmentation_eval_transform,
    segmentation_train_transform,
)
from convattn.data.problems import BadData
from convattn.data.segmentation import open_segmentation, read_label_map, write_label_map
from convattn.errors import UserError

HEIGHT, WIDTH = 5, 9
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def labels(seed: int = 0, most: int = 3) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, most + 1, (HEIGHT, WIDTH))
    found[0, : most + 1] = range(most + 1)
    found[-1, -1] = 255
    return found


def add(root: Path, image: str, label: str, count: int = 2) -> None:
    for index in range(count):
        for folder in (image, label):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (index, 0, 0)).save(root / image / f"{index}.jpg")
        write_label_map(root / label / f"{index}.png", labels(index))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    add(tmp_path, "images/train", "labels/train", 3)
    add(tmp_path, "images/val", "labels/val")
    return tmp_path


class TestLayouts:
    @pytest.mark.parametrize(
        "folders",
        [
            ("images/train", "masks/train", "images/val", "masks/val"),
            ("train/images", "train/labels", "valid/images", "valid/labels"),
            ("images/train", "annotations/train", "images/validation", "annotations/validation"),
        ],
    )
    def test_pairs_by_name(self, tmp_path: Path, folders: tuple[str, str, str, str]) -> None:
        add(tmp_path, *folders[:2], count=3)
        add(tmp_path, *folders[2:])
        data = open_segmentation(tmp_path)
        assert (len(data.train), len(data.val)) == (3, 2)
        assert data.classes == [f"class {id}" for id in range(4)]
        assert data.val.name(1) == f"{folders[2]}/1.jpg"
        np.testing.assert_array_equal(data.train.label_map(2), labels(2))
        assert data.train.label_map(0).dtype == np.int64
        assert data.train.image(0).size == (WIDTH, HEIGHT)

    def test_ade20k_counts_from_one_and_zero_is_not_labelled(self, tmp_path: Path) -> None:
        add(tmp_path, "images/training", "annotations/training")
        add(tmp_path, "images/validation", "annotations/validation")
        rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", "1\t0.1\t1\t1\t1\twall", "2\t0.1\t1\t1\t1\tbuilding, edifice"]
        (tmp_path / "objectInfo150.txt").write_text("\n".join([*rows, "3\t0.1\t1\t1\t1\tsky"]))
        data = open_segmentation(tmp_path)
        assert data.classes == ["wall", "building", "sky"]
        found, written = data.train.label_map(0), labels(0)
        np.testing.assert_array_equal(found, np.where(np.isin(written, (0, 255)), 255, written - 1))
        with pytest.raises(BadData, match="id 3 is no class: the 3 classes are 0 to 2"):
            open_segmentation(tmp_path, reduce_zero_label=False)

    def test_one_folder_is_split_the_same_way_always(self, tmp_path: Path) -> None:
        add(tmp_path, "images", "labels", 10)
        data, again = open_segmentation(tmp_path), open_segmentation(tmp_path)
        assert (len(data.train), len(data.val)) == (8, 2)
        assert data.val.pairs == again.val.pairs
        assert not set(data.train.pairs) & set(data.val.pairs)

    def test_what_cannot_be_used(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no such folder"):
            open_segmentation(tmp_path / "nowhere")
        with pytest.raises(UserError, match="found no images with label PNGs; expected one of"):
            open_segmentation(tmp_path)
        add(tmp_path, "images", "labels", 4)
        for index in range(4):
            write_label_map(tmp_path / f"labels/{index}.png", np.where(labels() > 1, 255, 0))
        with pytest.raises(UserError, match=r"one class only \(number them; 255 means not labelled"):
            open_segmentation(tmp_path)


class TestLabelMaps:
    def test_colours_are_no_ids(self, tmp_path: Path) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        with pytest.raises(BadData, match="a picture of mode RGB, expected one channel"):
            read_label_map(tmp_path / "a.png")

    def test_only_ids_of_a_byte_are_written(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="label ids from 0 to 256"):
            write_label_map(tmp_path / "a.png", np.array([[0, 256]]))


def test_bad_pairs_are_refused_or_left_out(plain: Path) -> None:
    (plain / "classes.txt").write_text("a\nb\nc\nd\n")
    add(plain, "images/train", "labels/train", 9)
    write_label_map(plain / "labels/train/0.png", np.zeros((HEIGHT, WIDTH + 1)))
    write_label_map(plain / "labels/train/1.png", np.full((HEIGHT, WIDTH), 9))
    (plain / "labels/train/2.png").write_bytes((plain / "labels/train/3.png").read_bytes()[:60])
    (plain / "images/train/4.jpg").write_bytes(b"")
    (plain / "labels/train/5.png").unlink()
    (plain / "images/train/6.jpg").unlink()
    Image.new("L", (WIDTH, HEIGHT)).save(plain / "images/train/7.png")
    with pytest.raises(BadData, match="7 problems") as refusal:
        open_segmentation(plain)
    found = {str(Path(one.file).relative_to(plain)): one.what for one in refusal.value.problems}
    assert found["labels/train/0.png"] == f"the label map is 10×5, its image 0.jpg is {WIDTH}×{HEIGHT}"
    assert found["labels/train/1.png"].startswith("id 9 is no class: the 4 classes are 0 to 3")
    assert "truncated" in found["labels/train/2.png"]
    assert found["images/train/4.jpg"] == "the file is empty"
    assert found["images/train/5.jpg"] == "no label map of the name 5 in labels/train/"
    assert found["labels/train/6.png"] == "no image of the name 6 in images/train/"
    assert found["images/train/7.png"] == "2 files of the name 7, as 7.jpg"
    data = open_segmentation(plain, skip_bad=True)
    assert [name.split("/")[-1] for name, _ in data.train.pairs] == ["3.jpg", "8.jpg"]
    assert len(data.skipped) == 7


def test_an_id_that_comes_later_is_told(plain: Path) -> None:
    data = open_segmentation(plain)
    write_label_map(plain / "labels/val/0.png", np.full((HEIGHT, WIDTH), 77))
    with pytest.raises(BadData, match=r"labels/val/0\.png: ids: id 77 is no class"):
        data.val.label_map(0)


class TestTransforms:
    def test_evaluation_keeps_the_size(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        image, ids = segmentation_eval_transform(MEAN, STD)(Image.fromarray(pixels), labels())
        torch.testing.assert_close(image, torch.from_numpy((pixels / 255 - 0.5) / 0.25).float().permute(2, 0, 1))
        assert ids.tolist() == labels().tolist()

    @pytest.mark.parametrize("crop", [(4, 4), (3, 17), (16, 3), (33, 31)])
    def test_pixels_and_ids_stay_together(self, crop: tuple[int, int]) -> None:
        ids = labels(most=4) % 5
        image = Image.fromarray(np.repeat(ids[..., None], 3, 2).astype(np.uint8) * 50)
        augmentation = SegmentationAugmentation(crop, scale=(1, 1), photometric="none")
        transform = segmentation_train_transform((0.0,) * 3, (1 / 255,) * 3, augmentation)
        for seed in range(10):
            torch.manual_seed(seed)
            pixels, found = transform(image, ids)
            assert pixels.shape == (3, *crop)
            assert found.shape == crop
            inside = found != 255
            assert int(inside.sum()) == min(crop[0], HEIGHT) * min(crop[1], WIDTH)
            torch.testing.assert_close(pixels[0][inside], found[inside] * 50.0)
            assert not pixels[:, ~inside].any()

    def test_scales_and_the_seed(self) -> None:
        image = Image.new("RGB", (WIDTH, HEIGHT), "red")
        transform = segmentation_train_transform(MEAN, STD, SegmentationAugmentation(crop=(40, 40)))
        sizes = set()
        for seed in range(20):
            torch.manual_seed(seed)
            first = transform(image, labels())
            torch.manual_seed(seed)
            torch.testing.assert_close(first, transform(image, labels()), rtol=0, atol=0)
            sizes.add(int((first[0].abs().sum(0) != 0).any(1).sum()))
        assert min(sizes) < HEIGHT < max(sizes)

    def test_a_map_of_one_class_is_cropped_all_the_same(self) -> None:
        transform = segmentation_train_transform(MEAN, STD, SegmentationAugmentation(crop=(4, 4)))
        for value in (2, 255):
            _, ids = transform(Image.new("RGB", (WIDTH, HEIGHT)), np.full((HEIGHT, WIDTH), value))
            assert set(ids.flatten().tolist()) <= {value, 255}
