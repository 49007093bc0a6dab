"""The cascade against the same arithmetic written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms, box_iou

from convattn.detection.heads import BoxPredictor
from convattn.detection.roi_heads import CascadeRoIHeads, codes_per_class, refine
from tests.detection.inputs import CLASSES, detector, target

SIZE = (64, 96)
SHAPES = [SIZE]
WEIGHTS = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]

pytestmark = pytest.mark.usefixtures("seeded")


def moved(net):
    """With predictors away from their small start, so that boxes move and scores differ."""
    with torch.no_grad():
        for stage in net.roi_heads.stages:
            for parameter in stage.box_predictor.parameters():
                parameter.normal_(std=0.7)
    return net


def inputs(net):
    features = {name: torch.randn(1, 16, 64 // s, 96 // s) for name, s in zip("0123", (4, 8, 16, 32), strict=True)}
    corner, side = torch.rand(12, 2) * 40, 4 + torch.rand(12, 2) * 20
    return features, [torch.cat([corner, corner + side], 1)]


def decoded(boxes, codes, weights):
    """Equation 1 of Faster R-CNN, clipped to the image."""
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    dx, dy, dw, dh = (code / weight for code, weight in zip(codes.T, weights, strict=True))
    x, y = x + dx * w, y + dy * h
    w, h = w * dw.clamp(max=math.log(1000 / 16)).exp(), h * dh.clamp(max=math.log(1000 / 16)).exp()
    moved_boxes = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    return moved_boxes.clamp(min=torch.zeros(4), max=torch.tensor([96.0, 64.0, 96.0, 64.0]))


def own_codes(logits, codes, regression, labels=None):
    if regression == "agnostic":
        return codes
    chosen = logits[:, 1:].argmax(1) + 1
    if labels is not None:
        chosen = torch.where(labels > 0, labels, chosen)
    return torch.stack([row[4 * label : 4 * label + 4] for row, label in zip(codes, chosen.tolist(), strict=True)])


@pytest.mark.parametrize("regression", ["agnostic", "per_class"])
@pytest.mark.parametrize("box_head", ["2fc", "4conv1fc"])
def test_prediction(regression, box_head):
    net = detector("cascade_mask_rcnn", box_regression=regression, box_head=box_head, score_threshold=0.1)
    heads = moved(net).roi_heads.eval()
    features, proposals = inputs(net)
    with torch.no_grad():
        ((found,), losses) = heads(features, proposals, SHAPES)
        boxes, probabilities = proposals[0], []
        for number, stage in enumerate(heads.stages):
            pooled = stage.box_roi_pool(features, [boxes], SHAPES)
            logits, codes = stage.box_predictor(stage.box_head(pooled))
            probabilities.append(logits.softmax(1))
            if number < 2:
                boxes = decoded(boxes, own_codes(logits, codes, regression), WEIGHTS[number])
        scores = torch.stack(probabilities).mean(0)
        rows = []
        for label in range(1, CLASSES + 1):
            of_class = codes if regression == "agnostic" else codes[:, 4 * label : 4 * label + 4]
            rows.append((decoded(boxes, of_class, WEIGHTS[2]), scores[:, label], torch.full((len(boxes),), label)))
        all_boxes, all_scores, labels = (torch.cat(column) for column in zip(*rows, strict=True))
        extent = (all_boxes[:, 2:] - all_boxes[:, :2]).min(1).values
        keep = (all_scores > 0.1) & (extent >= 1e-2)
        all_boxes, all_scores, labels = all_boxes[keep], all_scores[keep], labels[keep]
        kept = batched_nms(all_boxes, all_scores, labels, 0.5)
        masks = [
            stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, [all_boxes[kept]], SHAPES)))
            for stage in heads.stages
        ]
    assert losses == {}
    assert len(kept) > 3
    torch.testing.assert_close(found["scores"], all_scores[kept])
    torch.testing.assert_close(found["boxes"], all_boxes[kept], rtol=1e-4, atol=1e-3)
    assert found["labels"].equal(labels[kept])
    mean = torch.stack([mask.sigmoid() for mask in masks]).mean(0)[range(len(kept)), labels[kept]]
    torch.testing.assert_close(found["masks"][:, 0], mean, rtol=1e-3, atol=1e-4)
    assert paste_masks_in_image(found["masks"], found["boxes"], SIZE).shape == (len(kept), 1, *SIZE)


@pytest.mark.parametrize("regression", ["agnostic", "per_class"])
def test_losses(regression):
    """No more regions than are sampled and few objects, so that the sample is everything and not drawn."""
    net = detector("cascade_rcnn", box_regression=regression, regions_per_image=64)
    heads = moved(net).roi_heads.train()
    features, proposals = inputs(net)
    truth = target(SIZE, [[10, 12, 30, 28], [40, 20, 70, 60]], [2, 3])
    proposals[0][0], proposals[0][1] = torch.tensor([[11.0, 12, 30, 29], [42, 18, 73, 58]])
    _, losses = heads(features, proposals, SHAPES, [truth])
    boxes = proposals[0]
    for number, (stage, weight) in enumerate(zip(heads.stages, (1, 0.5, 0.25), strict=True)):
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)]
        boxes = torch.cat([boxes, truth["boxes"]])
        overlap, which = box_iou(boxes, truth["boxes"]).max(1)
        labels = torch.where(overlap >= (0.5, 0.6, 0.7)[number], truth["labels"][which], 0)
        logits, codes = stage.box_predictor(stage.box_head(stage.box_roi_pool(features, [boxes], SHAPES)))
        objects = labels > 0
        goal, own = truth["boxes"][which][objects], boxes[objects]
        size, goal_size = own[:, 2:] - own[:, :2], goal[:, 2:] - goal[:, :2]
        middle, goal_middle = (own[:, 2:] + own[:, :2]) / 2, (goal[:, 2:] + goal[:, :2]) / 2
        wanted = torch.cat([(goal_middle - middle) / size, (goal_size / size).log()], 1) * torch.tensor(WEIGHTS[number])
        guessed = own_codes(logits, codes, regression, labels)[objects]
        of_box = F.smooth_l1_loss(guessed, wanted, beta=1 / 9, reduction="sum") / len(labels)
        of_class = F.cross_entropy(logits, labels)
        torch.testing.assert_close(losses[f"loss_classifier_{number + 1}"], weight * of_class, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses[f"loss_box_reg_{number + 1}"], weight * of_box, rtol=1e-3, atol=1e-4)
        boxes = decoded(boxes, own_codes(logits, codes, regression, labels), WEIGHTS[number]).detach()


def test_no_gradient_runs_through_the_boxes_of_another_stage():
    heads = moved(detector("cascade_rcnn")).roi_heads.train()
    features, proposals = inputs(None)
    _, losses = heads(features, proposals, SHAPES, [target(SIZE, [[10, 12, 30, 28]], [2])])
    first = list(heads.stages[0].parameters())
    later = losses["loss_classifier_3"] + losses["loss_box_reg_3"]
    assert all(grad is None for grad in torch.autograd.grad(later, first, allow_unused=True))


def test_the_coders_and_thresholds_are_the_published_ones():
    stages = detector("cascade_mask_rcnn").roi_heads.stages
    assert [stage.box_coder.weights for stage in stages] == WEIGHTS
    assert [stage.proposal_matcher.high_threshold for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.proposal_matcher.low_threshold for stage in stages] == [0.5, 0.6, 0.7]
    assert {stage.box_predictor.regression for stage in stages} == {"agnostic"}
    assert detector("faster_rcnn").roi_heads.box_predictor.regression == "per_class"


def test_4conv1fc_is_four_convolutions_with_batch_norm_and_one_linear_layer():
    head = detector("cascade_rcnn", box_head="4conv1fc").roi_heads.stages[0].box_head
    kinds = [type(module) for module in head.modules()]
    assert [kinds.count(kind) for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear)] == [4, 4, 1]


def test_without_proposals_the_whole_image_is_one():
    for name in ("cascade_mask_rcnn", "mask_rcnn"):
        heads, none = detector(name).roi_heads, [torch.zeros(0, 4)]
        features, _ = inputs(None)
        losses = heads(features, none, SHAPES, [target(SIZE, [], [])])[1]
        assert all(loss.isfinite() for loss in losses.values())
        (found,) = heads.eval()(features, none, SHAPES)[0]
        assert found["masks"].shape[1:] == (1, 28, 28)


def test_boxes_of_each_class_are_chosen_by_label_or_likeliest_object():
    stage = detector("cascade_rcnn", box_regression="per_class").roi_heads.stages[0]
    codes = torch.zeros(2, 16)
    codes[:, 4 * 2], codes[:, 4 * 3] = 10, 20  # one and two widths to the right
    logits = torch.tensor([[9.0, 0, 1, 0], [0, 0, 1, 0]])
    boxes = [torch.tensor([[0.0, 0, 8, 8]] * 2)]
    (by_score,) = refine(stage, logits, codes, boxes, SHAPES)
    (by_label,) = refine(stage, logits, codes, boxes, SHAPES, torch.tensor([0, 3]))
    assert by_score[:, 0].tolist() == [8, 8]
    assert by_label[:, 0].tolist() == [8, 16]
    assert codes_per_class(codes, 4) is codes
    assert codes_per_class(codes[:, :4], 4).shape == (2, 16)


def test_what_cannot_be_a_cascade_says_why():
    stages = list(detector("cascade_rcnn").roi_heads.stages)
    with pytest.raises(ValueError, match="a loss weight for each stage, got 1 for 3"):
        CascadeRoIHeads(stages, [1.0])
    with pytest.raises(ValueError, match="all stages have a mask head or none"):
        CascadeRoIHeads([stages[0], detector("mask_rcnn").roi_heads], [1, 1])
    with pytest.raises(ValueError, match="box_regression must be one of"):
        BoxPredictor(4, 3, "shared")
    with pytest.raises(ValueError, match="box_head must be one of"):
        detector("cascade_rcnn", box_head="1fc")
