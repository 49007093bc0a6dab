from collections import Counter

import numpy as np
from sklearn.datasets import load_digits

from convattn.data.digits import open_digits
from convattn.data.types import LabelledImages


def test_the_split_is_fixed_stratified_and_whole() -> None:
    data, again = open_digits(), open_digits()
    names = [[split.name(i) for i in range(len(split))] for split in (data.train, data.val)]
    assert names == [[split.name(i) for i in range(len(split))] for split in (again.train, again.val)]
    assert len(set(names[0]) | set(names[1])) == 1797
    counts = Counter(data.val.label(i) for i in range(len(data.val)))
    assert min(counts.values()) >= 34
    assert max(counts.values()) <= 37


def test_an_image_is_the_scan_that_its_name_says() -> None:
    digits, val = load_digits(), open_digits(size=8).val
    number = int(val.name(5).removeprefix("digit "))
    assert val.label(5) == digits.target[number]
    pixels = np.asarray(val.image(5))
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels[..., 0] - digits.images[number] * 255 / 16).max() <= 0.5


def test_the_digits_are_labelled_images() -> None:
    data = open_digits()
    assert isinstance(data.train, LabelledImages)
    assert data.train.image(0).mode == "RGB"
    assert data.skipped == []
