"""Whole-image and sliding-window inference."""

import pytest
import torch
from torch import nn

from convattn.segmentation import predict, predict_logits
from convattn.segmentation.inference import window_starts
from tests.segmentation.networks import CLASSES, SEGMENTERS, segmenter


class CropMean(nn.Module):
    """Logits that depend on the whole window: its mean, and the pixel."""

    def forward(self, images):
        return torch.stack([images.mean((1, 2, 3), keepdim=True)[:, 0].expand(images[:, 0].shape), images[:, 0]], 1)


@pytest.mark.parametrize("kind", SEGMENTERS)
@pytest.mark.parametrize("window", [(48, 41), 64, (200, 41)])
def test_a_window_over_the_whole_image_is_the_whole_image(kind, window):
    model, image = segmenter(kind), torch.randn(3, 48, 41)
    whole = predict_logits(model, image)
    assert whole.shape == (CLASSES, 48, 41)
    assert torch.equal(predict_logits(model, image, mode="sliding", window=window), whole)
    assert torch.equal(predict(model, image, mode="sliding", window=window), whole.argmax(0))


def test_overlap_is_averaged_and_the_last_window_is_shifted_inside():
    image = torch.arange(7.0).expand(1, 3, 1, 7).double()
    found = predict_logits(CropMean().double(), image, mode="sliding", window=(5, 4), stride=(1, 2))
    # columns 0-3 (mean 1.5), 2-5 (3.5) and, instead of 4-7, 3-6 (4.5)
    expected = [1.5, 1.5, 2.5, (1.5 + 3.5 + 4.5) / 3, 4.0, 4.0, 4.5]
    torch.testing.assert_close(found[0, 0, 0], torch.tensor(expected).double())
    torch.testing.assert_close(found[0, 1], image[0, 0])


@pytest.mark.parametrize("size", [(11, 9), (4, 30), (1, 1)])
@pytest.mark.parametrize(("window", "stride"), [((4, 5), (3, 5)), (6, 1), (8, None)])
def test_equals_an_average_pixel_by_pixel(size, window, stride):
    image = torch.randn(2, 3, *size).double()
    model = CropMean()
    height, width = (window, window) if isinstance(window, int) else window
    down, right = (stride, stride) if isinstance(stride, int) else stride or (height * 2 // 3, width * 2 // 3)
    heard = [[[] for _ in range(size[1])] for _ in range(size[0])]
    for top in range(0, size[0] + down, down):
        for left in range(0, size[1] + right, right):
            if (top and top - down + height >= size[0]) or (left and left - right + width >= size[1]):
                continue  # the window before already reached the border
            y, x = max(0, min(top, size[0] - height)), max(0, min(left, size[1] - width))
            logits = model(image[:, :, y : y + height, x : x + width])
            for row in range(logits.shape[2]):
                for column in range(logits.shape[3]):
                    heard[y + row][x + column].append(logits[:, :, row, column])
    expected = torch.stack([torch.stack([torch.stack(cell).mean(0) for cell in row], -1) for row in heard], -2)
    found = predict_logits(model, image, mode="sliding", window=window, stride=stride)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("length", "window", "stride"), [(10, 4, 3), (11, 4, 3), (3, 4, 1), (4, 4, 2), (100, 7, 7)])
def test_windows_cover_every_pixel_and_stay_inside(length, window, stride):
    starts = window_starts(length, window, stride)
    covered = {pixel for start in starts for pixel in range(start, start + window)}
    assert starts == sorted(set(starts))
    assert covered >= set(range(length))
    assert max(covered) == max(length, window) - 1


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_logits_come_at_another_size(mode):
    model = segmenter("semantic_fpn")
    found = predict(model, torch.randn(3, 40, 33), mode=mode, window=32, output_size=(80, 70))
    assert (found.shape, found.dtype) == ((80, 70), torch.int64)


def test_the_model_is_left_as_it_was():
    model = segmenter("semantic_fpn").train()
    model.backbone.layer1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = predict_logits(model, torch.randn(2, 3, 40, 33))
    assert not logits.requires_grad
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(TypeError, match="floating point"):
        predict(model, torch.zeros(3, 40, 33, dtype=torch.uint8))
    assert model.training


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("mode must be one of", {"mode": "slide"}),
        ("would leave gaps", {"mode": "sliding", "window": (8, 8), "stride": (8, 9)}),
        ("window must be", {"mode": "sliding", "window": 0}),
        ("stride must be", {"mode": "sliding", "stride": 0}),
    ],
)
def test_errors(message, options):
    with pytest.raises(ValueError, match=message):
        predict(segmenter("semantic_fpn"), torch.zeros(3, 32, 32), **options)


@pytest.mark.parametrize("shape", [(32, 32), (1, 1, 3, 32, 32)])
def test_an_image_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"image must be \[3, H, W\] or \[B, 3, H, W\]"):
        predict(segmenter("semantic_fpn"), torch.zeros(shape))
