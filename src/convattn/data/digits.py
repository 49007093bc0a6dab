"""The data set that needs no download: scikit-learn's 1,797 real handwritten digits."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from convattn.data.types import ClassificationData
from convattn.errors import needing

SPLIT_SEED = 0
VAL_FRACTION = 0.2


@dataclass(frozen=True)
class Digits:
    """A split of the digits: 8×8 scans of 17 grey levels, given as RGB images of ``size`` pixels."""

    scans: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    size: int

    def __len__(self) -> int:
        """Return how many digits there are."""
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return digit ``index``, white on black."""
        grey = np.round(self.scans[index] * (255 / 16)).astype(np.uint8)
        scan = Image.fromarray(grey).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return scan.convert("RGB")

    def label(self, index: int) -> int:
        """Return which digit it is."""
        return int(self.labels[index])

    def name(self, index: int) -> str:
        """Return the digit's number in scikit-learn's data set."""
        return f"digit {self.numbers[index]}"


def open_digits(size: int = 32) -> ClassificationData:
    """Return the digits with a stratified fifth held out; the split never changes.

    Example:
        >>> data = open_digits()
        >>> len(data.train), len(data.val), data.val.image(0).size
        (1437, 360, (32, 32))
    """
    with needing("train", "the digits come with scikit-learn"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    digits = load_digits()
    train, val = train_test_split(
        np.arange(len(digits.target)), test_size=VAL_FRACTION, random_state=SPLIT_SEED, stratify=digits.target
    )
    held, shown = (Digits(digits.images[rows], digits.target[rows], rows, size) for rows in (val, train))
    return ClassificationData([str(digit) for digit in range(10)], shown, held)
