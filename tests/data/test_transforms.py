import random

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data.transforms import Augmentation, eval_transform, train_transform

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1, 1), (3, 2000)])
@pytest.mark.parametrize("side", [32, 224])
def test_any_image_comes_out_at_the_input_size(size: tuple[int, int], side: int) -> None:
    assert eval_transform((3, side, side), HALF, HALF)(Image.new("RGB", size)).shape == (3, side, side)


def test_values_are_normalised() -> None:
    white = Image.new("RGB", (40, 40), "white")
    result = eval_transform((3, 32, 32), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))(white)
    torch.testing.assert_close(result[:, 16, 16], torch.tensor([1.0, 3.0, 1.0]))


def test_small_inputs_keep_the_whole_image_and_large_ones_lose_the_rim() -> None:
    framed = Image.new("RGB", (256, 256), "white")
    framed.paste("black", (4, 4, 252, 252))
    assert eval_transform((3, 64, 64), HALF, HALF, "bilinear")(framed).amax() > 0
    assert eval_transform((3, 224, 224), HALF, HALF, "bilinear")(framed).amax() == -1
    assert eval_transform((3, 224, 224), HALF, HALF, "bilinear", 1.0)(framed).amax() > 0


def test_the_same_seeds_give_the_same_augmentation() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8))
    augmentation = Augmentation(auto_augment="rand-m5-mstd0.5", color_jitter=0.3, random_erasing=0.5)
    transform = train_transform((3, 32, 32), HALF, HALF, augmentation=augmentation)

    def draw(seed: int) -> torch.Tensor:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        return transform(noise)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_what_is_turned_off_stays_off() -> None:
    arrow = Image.new("RGB", (32, 32))
    arrow.paste("white", (0, 0, 16, 32))
    still = Augmentation(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), horizontal_flip=0)
    transform = train_transform((3, 32, 32), HALF, HALF, "nearest", still)
    expected = eval_transform((3, 32, 32), HALF, HALF, "nearest")(arrow)
    for _ in range(5):
        assert torch.equal(transform(arrow), expected)
