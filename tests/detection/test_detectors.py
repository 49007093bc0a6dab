"""Every backbone under every detector: a training step, a prediction, save and load."""

import copy
import io

import pytest
import timm
import torch
from torch import nn

from convattn import detection
from convattn.detection.backbone import FeatureNet
from tests.detection.inputs import BACKBONES, CLASSES, DETECTORS, batch, detector, features_only, target

LOSSES = {
    "retinanet": {"classification", "bbox_regression"},
    "faster_rcnn": {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"},
}
LOSSES["mask_rcnn"] = LOSSES["faster_rcnn"] | {"loss_mask"}
for _name, _kinds in (
    ("cascade_rcnn", ("classifier", "box_reg")),
    ("cascade_mask_rcnn", ("classifier", "box_reg", "mask")),
):
    LOSSES[_name] = {f"loss_{kind}_{stage}" for kind in _kinds for stage in (1, 2, 3)}
    LOSSES[_name] |= {"loss_objectness", "loss_rpn_box_reg"}

pytestmark = pytest.mark.usefixtures("seeded")


def check_predictions(found, images, *, masks):
    assert len(found) == len(images)
    for image, result in zip(images, found, strict=True):
        height, width = image.shape[1:]
        count = len(result["boxes"])
        assert set(result) == {"boxes", "labels", "scores"} | ({"masks"} if masks else set())
        assert result["boxes"].shape == (count, 4)
        assert ((result["labels"] >= 1) & (result["labels"] <= CLASSES)).all()
        assert (result["scores"].diff() <= 0).all()
        limits = torch.tensor([width, height, width, height])
        assert ((result["boxes"] >= 0) & (result["boxes"] <= limits + 1e-3)).all()
        if masks:
            assert result["masks"].shape == (count, 1, height, width)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_a_prediction_and_a_round_trip(name, backbone):
    net = detector(name, backbone, score_threshold=0.0)
    images, targets = batch()
    losses = net.train()(images, targets)
    assert set(losses) == LOSSES[name]
    assert all(loss.isfinite() for loss in losses.values())
    before = {key: value.clone() for key, value in net.backbone.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    sum(losses.values()).backward()
    without = [key for key, value in net.named_parameters() if value.grad is None]
    assert not without  # two processes wait for every gradient
    optimizer.step()
    assert any(not torch.equal(before[key], value) for key, value in net.backbone.named_parameters())

    with torch.no_grad():
        found = net.eval()(images)
        check_predictions(found, images, masks="mask" in name)
        assert len(found[0]["boxes"]) > 0
        file = io.BytesIO()
        torch.save(net.state_dict(), file)
        file.seek(0)
        other = detector(name, backbone, score_threshold=0.0).eval()
        other.load_state_dict(torch.load(file))
        for a, b in zip(found, other(images), strict=True):
            for key in a:
                torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (64, 31), (129, 97)])
def test_any_size_trains_and_predicts(name, size):
    height, width = size
    truth = target(size, [[0, 0, width, height]], [2])
    for batch_size in (1, 2):
        net = detector(name)
        images = [torch.rand(3, *size)] * batch_size
        assert sum(net(images, [truth] * batch_size).values()).isfinite()
        check_predictions(net.eval()(images), images, masks="mask" in name)


@pytest.mark.parametrize("name", DETECTORS)
def test_images_without_objects_train(name):
    net = detector(name)
    images = [torch.rand(3, 40, 33)] * 2
    losses = net(images, [target((40, 33), [], [])] * 2)
    assert set(losses) == LOSSES[name]
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    boxes = [value for key, value in losses.items() if "box_reg" in key or "bbox" in key or "mask" in key]
    assert sum(boxes) == 0


@pytest.mark.parametrize("name", ["retinanet", "cascade_mask_rcnn"])
def test_a_detector_learns_one_image(name):
    """Overfit: the two boxes are found, each of its class."""
    net = detector(name, "conv_resnet14", channels=32, nms_threshold=0.3, score_threshold=0.02)
    size = (64, 64)
    image = torch.zeros(3, *size)
    image[0, 8:40, 6:30], image[1, 20:60, 36:60] = 1, 1
    truth = target(size, [[6, 8, 30, 40], [36, 20, 60, 60]], [1, 3])
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for _ in range(80):
        loss = sum(net([image, image.flip(2)], [truth, flipped(truth)]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (found,) = net.eval()([image])
    best = {}
    for box, label, score in zip(found["boxes"], found["labels"].tolist(), found["scores"], strict=True):
        best.setdefault(label, (score, box))
    assert {1, 3} <= best.keys(), found
    assert torch.stack([best[1][1], best[3][1]]).allclose(truth["boxes"], atol=7), best


def flipped(truth):
    x1, y1, x2, y2 = truth["boxes"].unbind(1)
    boxes = torch.stack([64 - x2, y1, 64 - x1, y2], 1)
    return truth | {"boxes": boxes, "masks": truth["masks"].flip(2)}


def test_retinanets_labels_start_at_one():
    """The head has a score for each class and none for the background."""
    net = detector("retinanet")
    assert net.head.classification_head.num_classes == CLASSES
    image, truth = torch.rand(3, 64, 64), target((64, 64), [[8, 8, 40, 40]], [CLASSES])
    assert net([image], [truth])["classification"].isfinite()
    assert truth["labels"].tolist() == [CLASSES]


@pytest.mark.parametrize("name", ["retinanet", "cascade_mask_rcnn"])
def test_autocast_keeps_coordinates_in_float32(name):
    net = detector(name, score_threshold=0.0)
    images, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = net(images, targets)
        found = net.eval()(images)
    assert all(loss.isfinite() for loss in losses.values())
    assert {result["boxes"].dtype for result in found} == {torch.float32}


def test_double_precision():
    net = detector("mask_rcnn", score_threshold=0.0).double()
    images, targets = batch()
    images = [image.double() for image in images]
    for truth in targets:
        truth["boxes"] = truth["boxes"].double()
    assert all(loss.isfinite() for loss in net(images, targets).values())
    check_predictions(net.eval()(images), images, masks=True)


class TestFrozen:
    @pytest.mark.parametrize("backbone", BACKBONES)
    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_the_first_stages_alone_are_fixed(self, backbone, count):
        """Exactly the parameters that the maps up to that stage depend on."""
        net = FeatureNet(backbone, backbone_args=BACKBONES[backbone], frozen_stages=count).eval()
        frozen = {key for key, value in net.named_parameters() if not value.requires_grad}
        net.requires_grad_(True)
        used = set()
        maps = net(torch.rand(1, 3, 64, 64))
        if count:
            grads = torch.autograd.grad(maps[count - 1].sum(), list(net.parameters()), allow_unused=True)
            used = {key for (key, _), grad in zip(net.named_parameters(), grads, strict=True) if grad is not None}
        assert frozen == used

    def test_frozen_stages_keep_their_statistics(self):
        net = detector("faster_rcnn", "resnet10t", frozen_stages=1)
        fixed = {key: value.clone() for key, value in net.state_dict().items()}
        sum(net(*batch()).values()).backward()
        for key, value in net.state_dict().items():
            if "running_mean" in key:
                stage = key.removeprefix("backbone.features.net.").partition(".")[0]
                assert torch.equal(value, fixed[key]) == (stage in ("conv1", "bn1", "layer1")), key
        with pytest.raises(ValueError, match="frozen_stages must lie between 0 and 4"):
            detector("faster_rcnn", frozen_stages=5)

    def test_frozen_batch_norms_stay_in_eval_mode_and_keep_their_names(self):
        free, net = detector("retinanet"), detector("retinanet", batch_norms="frozen")
        assert free.state_dict().keys() == net.state_dict().keys()
        norms = [m for m in net.train().backbone.features.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert not any(m.training or m.weight.requires_grad for m in norms)
        assert any(p.requires_grad for p in net.backbone.features.parameters())
        copied = copy.deepcopy(net).train().backbone.features
        assert not any(m.training for m in copied.modules() if isinstance(m, nn.BatchNorm2d))


class TestBackbones:
    def test_batch_norms_in_eval_keep_their_statistics_and_learn_their_weights(self):
        net = detector("retinanet", batch_norms="eval").train()
        norms = [m for m in net.backbone.features.net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert norms
        assert not any(norm.training for norm in norms)
        assert all(norm.weight.requires_grad for norm in norms)

    def test_a_network_of_features_or_a_classifier_is_as_good_as_a_name(self):
        images = [torch.rand(3, 40, 70)]
        made = features_only("acmix_resnet14")
        a, b = detector("retinanet", made, backbone_args=None), detector("retinanet")
        assert a.state_dict().keys() == b.state_dict().keys()
        b.load_state_dict(a.state_dict())
        for key, value in a.eval()(images)[0].items():
            torch.testing.assert_close(value, b.eval()(images)[0][key])

        classifier = timm.create_model("acmix_pvt_tiny", num_classes=7, **BACKBONES["acmix_pvt_tiny"])
        net = detector("retinanet", classifier, backbone_args=None)
        assert net.backbone.features.strides == (8, 16, 32)
        sum(net(*batch()).values()).backward()

    def test_timms_statistics_and_other_channels(self):
        net = detector("retinanet", "resnet10t", backbone_args={"in_chans": 1})
        assert net.transform.image_mean == [pytest.approx(0.449, abs=1e-3)]
        assert len(net.eval()([torch.rand(1, 40, 40)])) == 1
        assert detector("retinanet").transform.image_std == [0.229, 0.224, 0.225]
        assert detector("retinanet", image_mean=(0, 0, 0)).transform.image_mean == [0, 0, 0]

    def test_a_small_stem_has_small_strides(self):
        net = detector("faster_rcnn", backbone_args={"stem": "small", "channels": (8, 16, 24, 32)})
        assert net.backbone.strides == (1, 2, 4, 8, 16)
        assert net.rpn.anchor_generator.sizes == ((2,), (4,), (8,), (16,), (32,))

    def test_layer_norms_make_maps_of_one_scale(self):
        net = FeatureNet("acmix_swin_tiny", backbone_args=BACKBONES["acmix_swin_tiny"], map_norms="layer").eval()
        for level in net(torch.rand(2, 3, 64, 96)):
            torch.testing.assert_close(level.mean(1), torch.zeros_like(level[:, 0]), rtol=0, atol=1e-5)
            assert (level.var(1, unbiased=False) <= 1).all()
        assert net.train() is net
        sum(detector("retinanet", "acmix_swin_tiny", map_norms="layer")(*batch()).values()).backward()

    def test_p6_stands_on_c5_or_on_p5(self):
        channels = {
            name: detector("retinanet", p6=name).backbone.fpn.extra_blocks.p6.in_channels for name in ("C5", "P5")
        }
        assert channels == {"C5": 128, "P5": 16}

    def test_a_group_norm_keeps_what_a_narrow_head_would_shrink(self):
        levels = [torch.randn(2, 24, 8, 8)]
        plain, normed = (detector("retinanet", channels=24, head_norm=name).head for name in ("none", "group"))
        spread = [head.classification_head.conv(levels[0]).std() for head in (plain, normed)]
        assert spread[0] < 1e-2 < 0.1 < spread[1]
        assert not [module for module in plain.modules() if isinstance(module, nn.GroupNorm)]

    @pytest.mark.parametrize(
        ("backbone", "options", "message"),
        [
            ("acmix_resnet15", {}, "timm knows no network 'acmix_resnet15'"),
            ("vit_tiny_patch16_224", {}, "each is half the size"),
            (nn.Conv2d(3, 3, 3), {"backbone_args": None}, "publishes no feature maps"),
            ("resnet10t", {"batch_norms": "fixed"}, "batch_norms must be one of"),
            ("resnet10t", {"map_norms": "batch"}, "map_norms must be one of"),
            ("resnet10t", {"p6": "C6"}, "top must be one of"),
            ("resnet10t", {"head_norm": "batch"}, "head_norm must be one of"),
            ("resnet10t", {"score_threshold": 2}, "score_threshold must lie between 0 and 1"),
            ("resnet10t", {"anchor_scale": 0}, "anchor_scale must be above 0"),
            ("resnet10t", {"channels": 0}, "channels must be 1 or more"),
            ("resnet10t", {"min_size": 200, "max_size": 100}, "at most max_size"),
            ("resnet10t", {"image_std": (1, 1, 0)}, "std above 0"),
        ],
    )
    def test_what_cannot_be_built_says_why(self, backbone, options, message):
        with pytest.raises(ValueError, match=message):
            detector("retinanet", backbone, **options)

    def test_wrong_types(self):
        with pytest.raises(TypeError, match="has no option 'box_head'; it has anchor_ratios"):
            detector("retinanet", box_head="2fc")
        with pytest.raises(TypeError, match="name of timm's registry or a module, got int"):
            detector("retinanet", 3)
        with pytest.raises(TypeError, match="for a backbone given by name"):
            detector("retinanet", features_only("resnet10t"), backbone_args={"in_chans": 1})
        with pytest.raises(ValueError, match="num_classes must be 1 or more"):
            detection.faster_rcnn("resnet10t", 0)


class TestInputs:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"boxes": torch.tensor([[5.0, 5.0, 5.0, 9.0]])}, r"target 0: box 0 is \[5.0, 5.0, 5.0, 9.0\]"),
            ({"boxes": torch.tensor([[5.0, 5.0, float("nan"), 9.0]])}, "must be finite"),
            ({"boxes": torch.zeros(1, 5)}, r"floating-point \[n, 4\]"),
            ({"boxes": torch.tensor([[1, 1, 2, 2]])}, r"floating-point \[n, 4\]"),
            ({"boxes": [[1, 1, 2, 2]]}, "boxes must be tensors, got list"),
            ({"labels": torch.tensor([0])}, "between 1 and num_classes = 3"),
            ({"labels": torch.tensor([4])}, "got 4 to 4"),
            ({"labels": torch.tensor([1, 2])}, r"labels must be int64 \[1\]"),
            ({"labels": torch.tensor([1.0])}, "got torch.float32"),
            ({"masks": torch.zeros(1, 3, 3)}, r"masks must be \[1, 40, 30\]"),
            ({"masks": None}, "masks must be tensors, got NoneType"),
        ],
    )
    def test_a_bad_target_is_named(self, change, message):
        truth = target((40, 30), [[2, 2, 20, 20]], [1]) | change
        with pytest.raises(ValueError, match=message):
            detector("mask_rcnn")([torch.rand(3, 40, 30)], [truth])

    def test_a_bad_call_is_named(self):
        net, image = detector("mask_rcnn"), torch.rand(3, 40, 30)
        truth = target((40, 30), [[2, 2, 20, 20]], [1])
        del truth["masks"]
        for images, targets, message in [
            ([image], None, "needs targets"),
            ([image], [], "a target for each image"),
            ([], [], "needs an image"),
            ([image[None]], [truth], r"image 0 is \[1, 3, 40, 30\]"),
            ([image], [truth], "no masks"),
        ]:
            with pytest.raises(ValueError, match=message):
                net(images, targets)
        with pytest.raises(ValueError, match=r"an image must be \[3, H, W\]"):
            net.eval()([torch.rand(1, 40, 30)])
        with pytest.raises(TypeError, match="floating"):
            net.eval()([torch.zeros(3, 40, 30, dtype=torch.uint8)])
        assert detector("faster_rcnn")([image] * 2, [truth] * 2)
