"""Folders of images: both layouts, the split, the skipped files and every layout that cannot be used."""

from pathlib import Path

import pytest
from PIL import Image

from convattn.data import files as files_module
from convattn.data.classes import open_classes, open_held_out
from convattn.data.types import LabelledImages
from convattn.errors import UserError


def fill(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number % 256, 0, 0)).save(path)
    return root


def numbered(class_name: str, count: int) -> list[str]:
    return [f"{class_name}/{index:03}.png" for index in range(count)]


def names(images: LabelledImages) -> list[str]:
    return [images.name(index) for index in range(len(images))]


class TestLayouts:
    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_train_and_val(self, tmp_path: Path, val: str) -> None:
        fill(tmp_path, "train/dog/1.png", "train/cat/1.JPG", "train/cat/deep/er/2.png", f"{val}/cat/3.jpeg")
        fill(tmp_path, "test/bird/1.png")
        data = open_classes(tmp_path)
        assert data.classes == ["cat", "dog"]
        assert names(data.train) == ["train/cat/1.JPG", "train/cat/deep/er/2.png", "train/dog/1.png"]
        assert [data.train.label(index) for index in range(3)] == [0, 0, 1]
        assert names(data.val) == [f"{val}/cat/3.jpeg"]
        assert data.val.image(0).size == (6, 4)
        assert isinstance(data.train, LabelledImages)
        assert data.skipped == []

    @pytest.mark.parametrize(
        ("train", "val"),
        [
            *(("Train", "Val"), ("training", "validation"), ("TRAINING", "Valid"), ("training_set", "validation_set")),
            *(("Train data", "Validation data"), ("train2017", "val2017"), ("train-images", "val-images")),
            ("train/train", "val/val"),
        ],
    )
    def test_parts_in_any_spelling(self, tmp_path: Path, train: str, val: str) -> None:
        fill(tmp_path, f"{train}/dog/1.png", f"{train}/cat/2.png", f"{val}/cat/3.png", "Testing/cat/4.png")
        data = open_classes(tmp_path)
        assert data.classes == ["cat", "dog"]
        assert (names(data.train), names(data.val)) == (
            [f"{train}/cat/2.png", f"{train}/dog/1.png"],
            [f"{val}/cat/3.png"],
        )

    @pytest.mark.parametrize(
        ("train", "test"), [("Training", "Testing"), ("Train", "Test"), ("training_set", "test_set"), ("train", "test")]
    )
    def test_test_images_are_not_looked_at(self, tmp_path: Path, train: str, test: str) -> None:
        data = open_classes(fill(tmp_path, *numbered(f"{train}/a", 5), *numbered(f"{train}/b", 5), f"{test}/a/1.png"))
        assert (data.classes, len(data.train), len(data.val)) == (["a", "b"], 8, 2)

    @pytest.mark.parametrize("parts", [("seg_train/seg_train", "seg_test/seg_test"), ("fold1", "fold2", "fold3")])
    def test_folders_that_hold_the_same_folders_are_no_classes(self, tmp_path: Path, parts: tuple[str, ...]) -> None:
        fill(tmp_path, *(f"{part}/{name}/{i}.png" for part in parts for name in ("cat", "dog") for i in range(2)))
        with pytest.raises(UserError, match=r"each with the same folders, 'cat', 'dog': these look like the classes"):
            open_classes(tmp_path)

    def test_classes_may_hold_a_folder_of_one_name(self, tmp_path: Path) -> None:
        assert open_classes(fill(tmp_path, *numbered("a/images", 3), *numbered("b/images", 3))).classes == ["a", "b"]

    def test_two_folders_for_one_part(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="found 'Training', 'train' for one part"):
            open_classes(fill(tmp_path, "train/a/1.png", "Training/a/1.png", "train/b/1.png"))

    def test_train_alone_is_split(self, tmp_path: Path) -> None:
        data = open_classes(fill(tmp_path, *numbered("train/a", 5), *numbered("train/b", 5)))
        assert (len(data.train), len(data.val)) == (8, 2)
        assert {name.split("/")[0] for name in names(data.val)} == {"train"}

    def test_a_class_may_be_called_train(self, tmp_path: Path) -> None:
        data = open_classes(fill(tmp_path, *numbered("train", 4), *numbered("bus", 4)))
        assert data.classes == ["bus", "train"]

    def test_what_is_passed_over(self, tmp_path: Path) -> None:
        fill(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "cat/.hidden.png", ".cache/1.png")
        (tmp_path / "cat" / "notes.txt").write_text("mine")
        (tmp_path / "labels.csv").write_text("a,b")
        data = open_classes(tmp_path)
        assert (data.classes, len(data.train), len(data.val)) == (["cat", "dog"], 2, 2)
        assert data.skipped == []

    def test_links_are_followed_and_loops_are_not(self, tmp_path: Path) -> None:
        fill(tmp_path / "store", "a/1.png", "a/2.png")
        fill(tmp_path / "data", "b/1.png", "b/2.png")
        (tmp_path / "data" / "a").symlink_to(tmp_path / "store" / "a")
        (tmp_path / "store" / "a" / "again").symlink_to(tmp_path / "store" / "a")
        data = open_classes(tmp_path / "data")
        assert sorted(names(data.train) + names(data.val)) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]

    def test_odd_class_names(self, tmp_path: Path) -> None:
        fill(tmp_path, "<b>/1.png", "<b>/2.png", "日本 語/1.png", "日本 語/2.png")
        assert open_classes(tmp_path).classes == ["<b>", "日本 語"]


class TestSplit:
    def test_every_class_gives_its_part(self, tmp_path: Path) -> None:
        data = open_classes(
            fill(tmp_path, *numbered("a", 40), *numbered("b", 10), *numbered("c", 2), *numbered("d", 1))
        )
        held_out = [name.split("/")[0] for name in names(data.val)]
        assert {name: held_out.count(name) for name in "abcd"} == {"a": 8, "b": 2, "c": 1, "d": 0}
        assert not set(names(data.train)) & set(names(data.val))
        assert len(data.train) + len(data.val) == 53

    def test_it_depends_on_paths_and_seed_alone(self, tmp_path: Path) -> None:
        files = [*numbered("a", 20), *numbered("b", 20)]
        first = open_classes(fill(tmp_path / "one", *files))
        second = open_classes(fill(tmp_path / "two", *reversed(files)))
        assert names(first.val) == names(second.val)
        assert names(open_classes(tmp_path / "one", seed=1).val) != names(first.val)

    def test_it_is_the_same_for_ever(self, tmp_path: Path) -> None:
        data = open_classes(fill(tmp_path, *numbered("a", 10), *numbered("b", 10)))
        assert names(data.val) == HELD_OUT

    def test_a_new_file_moves_hardly_any_other(self, tmp_path: Path) -> None:
        before = set(names(open_classes(fill(tmp_path, *numbered("a", 50), *numbered("b", 50))).val))
        after = set(names(open_classes(fill(tmp_path, "a/new.png")).val))
        assert len(before ^ after) <= 2

    @pytest.mark.parametrize("part", [0.0, 1.0, -0.5, 2])
    def test_a_part_outside_0_to_1(self, tmp_path: Path, part: float) -> None:
        with pytest.raises(UserError, match="between 0 and 1"):
            open_classes(fill(tmp_path, "a/1.png", "b/1.png"), val_fraction=part)


class TestSkipped:
    def test_bad_images_are_counted_and_listed(self, tmp_path: Path) -> None:
        fill(tmp_path, *numbered("a", 5), *numbered("b", 5))
        (tmp_path / "a" / "empty.png").touch()
        (tmp_path / "b" / "page.JPG").write_text("<html>")
        Image.effect_noise((64, 64), 80).save(tmp_path / "b" / "cut.png")
        content = (tmp_path / "b" / "cut.png").read_bytes()
        (tmp_path / "b" / "cut.png").write_bytes(content[: len(content) // 2])
        seen: list[tuple[int, int]] = []
        data = open_classes(tmp_path, progress=lambda done, total: seen.append((done, total)))
        assert [(file.path, file.reason.split(":")[0]) for file in data.skipped] == [
            ("a/empty.png", "the file is empty"),
            ("b/cut.png", "truncated or damaged"),
            ("b/page.JPG", "not an image that Pillow can read"),
        ]
        assert len(data.train) + len(data.val) == 10
        assert seen == [(done, 13) for done in range(1, 14)]

    def test_a_large_set_is_checked_by_its_marks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files_module, "FULL_CHECK_BYTES", 0)
        fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
        (tmp_path / "a" / "cut.jpg").write_bytes((tmp_path / "a" / "1.jpg").read_bytes()[:-30])
        assert [file.path for file in open_classes(tmp_path).skipped] == ["a/cut.jpg"]

    def test_a_class_without_a_readable_image(self, tmp_path: Path) -> None:
        fill(tmp_path, *numbered("a", 3))
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "1.png").touch()
        with pytest.raises(
            UserError, match=r"no image of the class 'b' can be read; 1 skipped.*b/1\.png: the file is empty"
        ):
            open_classes(tmp_path)

    def test_no_readable_image_to_validate_on(self, tmp_path: Path) -> None:
        fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
        (tmp_path / "val" / "a" / "1.png").write_bytes(b"")
        with pytest.raises(UserError, match=r"no readable image is left to validate on.*val/a/1\.png"):
            open_classes(tmp_path)


class TestLayoutErrors:
    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"photos: no such folder.*ROOT/train/CLASS"):
            self.flat(tmp_path / "photos")

    def test_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"1\.png: not a folder"):
            self.flat(fill(tmp_path, "1.png") / "1.png")

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="found neither class folders nor images; expected one of"):
            self.flat(tmp_path)

    def test_images_without_class_folders(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="found 2 images but no class folders; expected one of"):
            self.flat(fill(tmp_path, "1.png", "2.png"))

    def test_one_class(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="only one class folder, 'cat', and a classifier needs two"):
            self.flat(fill(tmp_path, "cat/1.png", "cat/2.png"))

    def test_a_class_folder_without_images(self, tmp_path: Path) -> None:
        fill(tmp_path, *numbered("a", 2), *numbered("b", 2))
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "notes.txt").touch()
        with pytest.raises(UserError, match="no images in the class folder 'c'; add images or remove the folder"):
            self.flat(tmp_path)

    def test_no_image_anywhere(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="found 2 folders but no image in them"):
            self.flat(tmp_path)

    def test_a_class_in_val_that_train_lacks(self, tmp_path: Path) -> None:
        fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/zebra/1.png")
        with pytest.raises(UserError, match=r"'zebra' not among the 2 classes of train/ \('a', 'b'\)"):
            self.flat(tmp_path)

    def test_val_without_train(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="found val/ but no train/"):
            self.flat(fill(tmp_path, "val/a/1.png", "val/b/1.png"))

    def flat(self, root: Path) -> None:
        """Open ``root``; the message on one line, for patterns."""
        try:
            open_classes(root)
        except UserError as error:
            raise UserError(" ".join(str(error).split())) from error


class TestHeldOut:
    def test_val_is_preferred(self, tmp_path: Path) -> None:
        fill(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/1.png")
        images, skipped = open_held_out(tmp_path, ["a", "b"])
        assert (names(images), images.label(0), skipped) == (["val/b/1.png"], 1, [])

    def test_all_images_of_a_plain_folder_with_the_models_labels(self, tmp_path: Path) -> None:
        images, _ = open_held_out(fill(tmp_path, "b/1.png", "c/1.png"), ["a", "b", "c"])
        assert [images.label(index) for index in range(len(images))] == [1, 2]

    def test_an_unknown_class(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="'zebra' not among the 2 classes of the model"):
            open_held_out(fill(tmp_path, "a/1.png", "zebra/1.png"), ["a", "b"])

    def test_no_class_folder_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no images in folders named after the classes \('a', 'b'\)"):
            open_held_out(fill(tmp_path, "1.png"), ["a", "b"])


HELD_OUT = ["a/001.png", "a/004.png", "b/005.png", "b/008.png"]
