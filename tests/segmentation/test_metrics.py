"""Mean IoU of a data set against a confusion matrix counted by hand and torchmetrics' Jaccard index."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from convattn.segmentation import MeanIoU


def batches(classes, ignored, count=3):
    generator = torch.Generator().manual_seed(classes)
    for index in range(count):
        size = (2, 9 + index, 7)
        # the last class occurs in neither
        labels = torch.randint(classes - 1, size, generator=generator)
        logits = torch.randn(2, classes, *size[1:], generator=generator)
        logits[:, -1] = -math.inf
        labels[torch.rand(size, generator=generator) < 0.3] = ignored
        yield logits, labels


def reference(classes, ignored):
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for logits, labels in batches(classes, ignored):
        for label, guess in zip(labels.flatten().tolist(), logits.argmax(1).flatten().tolist(), strict=True):
            if label != ignored:
                matrix[label, guess] += 1
    right, rows, columns = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    with np.errstate(invalid="ignore"):
        iou, accuracy = right / (rows + columns - right), right / rows
    return {
        "mean_iou": np.nanmean(iou),
        "iou": iou,
        "class_accuracy": accuracy,
        "pixel_accuracy": right.sum() / matrix.sum(),
    }


@pytest.mark.parametrize(("classes", "ignored"), [(2, 255), (5, 255), (150, 255), (300, -1)])
@pytest.mark.parametrize("form", ["logits", "labels"])
def test_equals_a_confusion_matrix(classes, ignored, form):
    metric = MeanIoU(classes, ignore_index=ignored)
    jaccard = MulticlassJaccardIndex(classes, ignore_index=ignored)
    for logits, labels in batches(classes, ignored):
        metric.update(logits if form == "logits" else logits.argmax(1), labels)
        jaccard.update(logits, labels)
    found = metric.compute()
    for name, expected in reference(classes, ignored).items():
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(found["mean_iou"], jaccard.compute())
    assert found["iou"][-1].isnan()


def test_is_of_the_data_set_and_not_the_mean_of_its_images():
    metric = MeanIoU(2)
    metric.update(torch.zeros(1, 1, 9, dtype=torch.long), torch.zeros(1, 1, 9, dtype=torch.long))
    metric.update(torch.tensor([[[1]]]), torch.tensor([[[0]]]))
    assert metric.compute()["iou"].tolist() == pytest.approx([0.9, 0.0])


def test_predictions_at_ignored_pixels_do_not_matter():
    metric = MeanIoU(2)
    metric.update(torch.tensor([[[0, 1, 77]]]), torch.tensor([[[0, 1, 255]]]))
    assert metric.compute()["mean_iou"] == 1


def test_nothing_seen_is_not_a_number():
    metric = MeanIoU(3)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), 255))
    assert all(value.isnan().all() for value in metric.compute().values())


def test_reset_starts_anew_and_bytes_are_labels():
    metric = MeanIoU(2)
    labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    metric.update(1 - labels.clamp(max=1), labels)
    assert metric.compute()["mean_iou"] == 0
    metric.reset()
    metric.update(labels, labels)
    assert metric.compute()["mean_iou"] == 1


@pytest.mark.parametrize(
    ("message", "preds", "target"),
    [
        (r"every target must be in \[0, 3\) or 255 \(left out\), got \[7\]", [[[0, 1]]], [[[0, 7]]]),
        (r"every prediction must be in \[0, 3\).*got \[-1\]", [[[0, -1]]], [[[0, 1]]]),
        (r"got \(1, 1, 3\) for \(1, 1, 2\)", [[[0, 1, 1]]], [[[0, 1]]]),
    ],
)
def test_errors(message, preds, target):
    metric = MeanIoU(3)
    with pytest.raises(ValueError, match=message):
        metric.update(torch.tensor(preds), torch.tensor(target))
    assert metric.confmat.sum() == 0


def test_an_ignore_index_that_is_a_class():
    with pytest.raises(ValueError, match="ignore_index=255 is one of the 847 classes"):
        MeanIoU(847)
