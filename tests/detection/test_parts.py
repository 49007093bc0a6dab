"""Pooling with aligned pixels, batches of images of any size, options."""

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, roi_align

from convattn.detection import DetectorOptions, RCNNOptions, faster_rcnn, retinanet
from convattn.detection.backbone import FeatureNet, PyramidBackbone
from convattn.detection.images import ImageBatcher
from convattn.detection.pooling import AlignedRoIAlign
from tests.detection.inputs import BACKBONES, detector, target

STRIDES = (4, 8, 16, 32)


def levels(dtype=torch.float32):
    torch.manual_seed(0)
    return {name: torch.randn(2, 3, 256 // s, 256 // s, dtype=dtype) for name, s in zip("0123", STRIDES, strict=True)}


class TestAlignedRoIAlign:
    def test_each_box_on_its_level(self):
        """Sides of 28 to 448: floor(4 + log2(s / 224)) is level 1 to 5, and there are 2 to 5."""
        features, sides = levels(torch.float64), [28, 111, 112, 223, 224, 240]
        boxes = [torch.tensor([[8.0, 8.0, 8 + side, 8 + side] for side in sides], dtype=torch.float64)] * 2
        pooled = AlignedRoIAlign("0123", STRIDES, 7)(features, boxes, [(256, 256)] * 2)
        chosen = [0, 0, 1, 1, 2, 2]
        for image in range(2):
            for row, level in enumerate(chosen):
                alone = roi_align(
                    features[str(level)],
                    torch.cat([torch.tensor([[float(image)]]), boxes[image][row][None]], 1).double(),
                    7,
                    1 / (4 * 2**level),
                    0,
                    aligned=True,
                )
                torch.testing.assert_close(pooled[6 * image + row], alone[0])

    def test_a_linear_map_is_read_at_the_middle_of_each_bin(self):
        """A map that holds the x of its pixels' middles: torchvision's own pooling is half a pixel off."""
        stride = 4
        x = (torch.arange(64.0) + 0.5) * stride
        features = {"0": x.expand(1, 1, 64, 64).contiguous()}
        boxes = [torch.tensor([[40.0, 40.0, 96.0, 96.0]])]
        pooled = AlignedRoIAlign(["0"], [stride], 7, 2)(features, boxes, [(256, 256)])
        torch.testing.assert_close(pooled[0, 0, 0], 44 + 8 * torch.arange(7.0))
        theirs = MultiScaleRoIAlign(["0"], 7, 2)(features, boxes, [(256, 256)])
        torch.testing.assert_close(theirs - pooled, torch.full_like(pooled, stride / 2))

    def test_strides_do_not_depend_on_the_first_image(self):
        """A batch that padding doubles: the stride that torchvision guesses from it is wrong, and stays."""
        pool = AlignedRoIAlign("0123", STRIDES, 2)
        small = {name: torch.zeros(1, 1, 64 // s, 64 // s) for name, s in zip("0123", STRIDES, strict=True)}
        pool(small, [torch.tensor([[0.0, 0.0, 5.0, 5.0]])], [(20, 20)])
        assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]

    def test_no_boxes_and_no_gradient_lost(self):
        features = {name: level.requires_grad_() for name, level in levels().items()}
        pool = AlignedRoIAlign("0123", STRIDES, 7)
        none = torch.zeros(0, 4)
        assert pool(features, [none, none], [(256, 256)] * 2).shape == (0, 3, 7, 7)
        sides = torch.tensor([[0.0, 0, 50, 50], [0, 0, 120, 120], [0, 0, 230, 230], [0, 0, 500, 500]])
        pool(features, [none, sides], [(256, 256)] * 2).sum().backward()
        assert all(level.grad[1].abs().sum() > 0 and not level.grad[0].any() for level in features.values())

    @pytest.mark.parametrize(("names", "strides"), [("01", (4, 16)), ("01", (4,)), ("01", (3, 6))])
    def test_strides_that_cannot_be(self, names, strides):
        with pytest.raises(ValueError, match="the strides must"):
            AlignedRoIAlign(names, strides, 7)


class TestImageBatcher:
    def test_equals_torchvisions_where_that_scales_to_whole_pixels(self):
        torch.manual_seed(0)
        images = [torch.rand(3, 50, 100), torch.rand(3, 60, 80)]
        targets = [
            target((50, 100), [[10, 5, 90, 45]], [1]),
            target((60, 80), [[0, 0, 20, 20], [3, 3, 60, 50]], [1, 2]),
        ]
        arguments = (100, 200, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
        ours, our_targets = ImageBatcher(*arguments)(images, targets)
        theirs, their_targets = GeneralizedRCNNTransform(*arguments)(images, targets)
        assert ours.image_sizes == theirs.image_sizes
        torch.testing.assert_close(ours.tensors, theirs.tensors, rtol=1e-4, atol=1e-5)
        for mine, other in zip(our_targets, their_targets, strict=True):
            torch.testing.assert_close(mine["boxes"], other["boxes"])
            assert mine["masks"].equal(other["masks"])

    @pytest.mark.parametrize(("size", "scaled"), [((1, 2000), (1, 133)), ((2000, 1), (133, 1)), ((7, 5), (112, 80))])
    def test_no_side_goes_below_a_pixel(self, size, scaled):
        batch, _ = ImageBatcher(80, 133, [0.5], [0.5]).eval()([torch.rand(1, *size)])
        assert batch.image_sizes == [scaled]
        assert all(side >= 64 and side % 32 == 0 for side in batch.tensors.shape[2:])

    def test_sizes_are_drawn_in_training_and_the_last_one_predicts(self):
        batcher, image = ImageBatcher((40, 60, 80), 200, [0.5], [0.5]), torch.rand(1, 50, 50)
        torch.manual_seed(0)
        drawn = {batcher([image])[0].image_sizes[0] for _ in range(40)}
        assert drawn == {(40, 40), (60, 60), (80, 80)}
        assert {batcher.eval()([image])[0].image_sizes[0] for _ in range(5)} == {(80, 80)}

    def test_none_leaves_the_size(self):
        batch, (truth,) = ImageBatcher(None, 10, [0.5], [0.5])([torch.rand(1, 33, 47)], [target((33, 47), [], [])])
        assert batch.image_sizes == [(33, 47)]
        assert truth["masks"].shape == (0, 33, 47)

    def test_targets_are_left_as_they_were(self):
        truth = target((20, 30), [[1, 2, 10, 20]], [1])
        ImageBatcher(40, 200, [0.5], [0.5])([torch.rand(1, 20, 30)], [truth])
        assert truth["boxes"].tolist() == [[1, 2, 10, 20]]
        assert truth["masks"].shape == (1, 20, 30)


def test_predictions_are_in_the_pixels_of_the_image():
    """Enlarged twice or four times, boxes and masks come back in the image's own measure."""
    torch.manual_seed(0)
    net = detector("mask_rcnn", min_size=128, max_size=400, score_threshold=0.0).eval()
    image = torch.rand(3, 32, 51)
    (found,) = net([image])
    assert found["boxes"].shape[0] > 0
    assert found["boxes"][:, 2].max() <= 51.001
    assert found["masks"].shape[1:] == (1, 32, 51)


def test_a_pyramid_of_float32_under_autocast_and_channels_last():
    features = FeatureNet("acmix_resnet14", backbone_args=BACKBONES["acmix_resnet14"])
    pyramid, x = PyramidBackbone(features, 8).eval(), torch.rand(2, 3, 64, 96)
    plain = pyramid(x)
    assert {name: tuple(level.shape[2:]) for name, level in plain.items()} == {
        "0": (16, 24),
        "1": (8, 12),
        "2": (4, 6),
        "3": (2, 3),
        "pool": (1, 2),
    }
    last = pyramid.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for name, level in plain.items():
        torch.testing.assert_close(last[name], level, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert {level.dtype for level in pyramid(x).values()} == {torch.float32}


def test_anchors_are_the_published_ones():
    with torch.device("meta"):
        rcnn, dense = faster_rcnn("resnet10t"), retinanet("resnet10t")
    assert rcnn.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert [sizes[0] for sizes in dense.anchor_generator.sizes] == [32, 64, 128, 256, 512]
    assert dense.anchor_generator.sizes[0] == pytest.approx([32, 40.3, 50.8], abs=0.1)
    assert dense.anchor_generator.num_anchors_per_location() == [9] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proposals": (0, 10)}, "proposals must be two numbers"),
        ({"regions_per_image": 0}, "regions_per_image must be 1 or more"),
        ({"anchor_ratios": ()}, "anchor_ratios must be above 0"),
        ({"detections_per_image": 0}, "detections_per_image must be 1 or more"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RCNNOptions(**options)


def test_an_unknown_option_is_named_with_the_known():
    with pytest.raises(TypeError, match=r"f\(\) has no option 'mean', 'std'; it has .*image_mean, image_std"):
        DetectorOptions.of("f", {"mean": 1, "std": 2})
