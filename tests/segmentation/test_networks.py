"""Semantic-FPN and UPerNet under every backbone family."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from convattn.segmentation import (
    AuxiliaryHead,
    FeatureLevels,
    SemanticFPNDecoder,
    UPerNetDecoder,
    predict,
    predict_logits,
    semantic_fpn,
    upernet,
)
from tests.segmentation.networks import BACKBONES, CLASSES, SEGMENTERS, backbone, images_and_labels, segmenter

each_segmenter = pytest.mark.parametrize("kind", SEGMENTERS)


@each_segmenter
@pytest.mark.parametrize("name", BACKBONES)
class TestEveryBackbone:
    def test_trains_saves_and_loads(self, kind, name, tmp_path):
        model = segmenter(kind, name).train()
        images, labels = images_and_labels()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        losses = model(images, labels)
        assert sorted(losses) == (["auxiliary", "segmentation"] if kind == "upernet" else ["segmentation"])
        before = [parameter.detach().clone() for parameter in model.parameters()]
        sum(losses.values()).backward()
        # or data-parallel training would wait for it
        assert [part for part, parameter in model.named_parameters() if parameter.grad is None] == []
        optimizer.step()
        assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))

        path = tmp_path / "weights.pt"
        torch.save(model.state_dict(), path)
        again = segmenter(kind, name)
        again.load_state_dict(torch.load(path, weights_only=True))
        logits = predict_logits(model, images)
        assert logits.isfinite().all()
        assert torch.equal(predict_logits(again, images), logits)

    @pytest.mark.parametrize("size", [(1, 1), (33, 5), (64, 96), (31, 70)])
    def test_logits_have_the_size_of_the_image(self, kind, name, size):
        model = segmenter(kind, name)
        logits = predict_logits(model, torch.randn(2, 3, *size))
        assert logits.shape == (2, CLASSES, *size)
        assert logits.isfinite().all()


@each_segmenter
class TestModel:
    def test_learns_two_halves(self, kind):
        torch.manual_seed(0)
        model = segmenter(kind, num_classes=2, dropout=0.0).train()
        images = torch.randn(4, 3, 64, 64)
        labels = torch.zeros(4, 64, 64, dtype=torch.long)
        for image, label in zip(images, labels, strict=True):
            image[:, :, 32:] += 3
            label[:, 32:] = 1
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            sum(model(images, labels).values()).backward()
            optimizer.step()
        assert (predict(model, images) == labels).float().mean() > 0.95

    def test_the_loss_is_the_mean_over_labelled_pixels(self, kind):
        model = segmenter(kind, dropout=0.0).double().eval()
        images, labels = images_and_labels()
        images = images.double()
        found = model(images, labels)["segmentation"]
        scores = model(images).log_softmax(1).permute(0, 2, 3, 1)
        kept = labels != 255
        torch.testing.assert_close(found, -scores[kept].gather(1, labels[kept][:, None]).mean())

    def test_the_ignored_label_can_be_another(self, kind):
        model = segmenter(kind, dropout=0.0).eval()
        images, labels = images_and_labels()
        reference = [loss.item() for loss in model(images, labels).values()]
        labels[labels == 255] = -1
        model.ignore_index = -1
        assert [loss.item() for loss in model(images, labels).values()] == reference

    def test_images_without_labels_give_zero(self, kind):
        model = segmenter(kind).train()
        images, labels = images_and_labels()
        total = sum(model(images, torch.full_like(labels, 255)).values())
        total.backward()
        assert total.item() == 0
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    def test_trains_on_one_image(self, kind):
        """Pyramid pooling leaves one value a channel, of which there is no variance."""
        model = segmenter(kind).train()
        images, labels = images_and_labels(batch=1)
        sum(model(images, labels).values()).backward()
        assert all(buffer.isfinite().all() for buffer in model.buffers())
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    def test_no_image_gives_no_logits(self, kind):
        assert predict_logits(segmenter(kind), torch.zeros(0, 3, 40, 33)).shape == (0, CLASSES, 40, 33)

    def test_channels_last_and_group_norm(self, kind):
        model = segmenter(kind, norm="group").eval()
        images = torch.randn(2, 3, 50, 41)
        plain = model(images)
        last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-4)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in model.decoder.modules())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_takes_the_dtype_of_the_backbone(self, kind, dtype):
        build, tiny = SEGMENTERS[kind]
        model = build(backbone().to(dtype), num_classes=CLASSES, **tiny).train()
        images, labels = images_and_labels()
        losses = model(images.to(dtype), labels)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert all(loss.isfinite() for loss in losses.values())

    def test_autocast(self, kind):
        model = segmenter(kind).train()
        images, labels = images_and_labels()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(images, labels)
        assert all(loss.dtype is torch.float32 and loss.isfinite() for loss in losses.values())

    def test_takes_the_device_of_the_backbone(self, kind):
        with torch.device("meta"):
            net = backbone()
        build, tiny = SEGMENTERS[kind]
        model = build(net, num_classes=CLASSES, **tiny)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        assert model(torch.empty(2, 3, 70, 33, device="meta")).shape == (2, CLASSES, 70, 33)

    # resnet10t itself cannot: it pools with ceil_mode, which torch.export cannot prove to hold for all sizes
    def test_exports_with_dynamic_sizes(self, kind):
        model = segmenter(kind, {"semantic_fpn": "acmix_pvt_tiny", "upernet": "acmix_resnet14"}[kind]).eval()
        sides = {2: torch.export.Dim("height", min=65, max=512), 3: torch.export.Dim("width", min=65, max=512)}
        program = torch.export.export(model, (torch.randn(1, 3, 70, 96),), dynamic_shapes={"images": sides}).module()
        for size in [(128, 96), (97, 75)]:
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(program(image), model(image), rtol=1e-4, atol=1e-4)

    def test_a_copy_is_independent(self, kind):
        model = segmenter(kind)
        other = copy.deepcopy(model)
        assert other.state_dict().keys() == model.state_dict().keys()
        assert any(key.startswith("backbone.layer1") for key in model.state_dict())


class TestDefinitions:
    def test_semantic_fpn_on_whole_multiples(self):
        """The decoder in plain steps of twice the size, from its own weights."""
        torch.manual_seed(0)
        levels = FeatureLevels((4, 6, 8, 10), (4, 8, 16, 32))
        decoder = SemanticFPNDecoder(levels, 3, 8, 6, "batch", 0.1).double().eval()
        maps = [torch.randn(1, c, 64 // r, 96 // r).double() for c, r in zip(*self.of(levels), strict=True)]
        laterals = [conv(level) for conv, level in zip(decoder.fpn.inner_blocks, maps, strict=True)]
        for i in (2, 1, 0):
            laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], scale_factor=2, mode="nearest")
        total = 0
        for i, (level, conv) in enumerate(zip(laterals, decoder.fpn.layer_blocks, strict=True)):
            x = conv(level)
            stages = decoder.branches[i].stages
            assert len(stages) == max(1, i)
            for stage in stages:
                x = stage(x)
                if i:
                    x = F.interpolate(x, scale_factor=2, mode="bilinear")
            total = total + x
        torch.testing.assert_close(decoder(maps), decoder.classifier(total))

    def test_upernet_on_whole_multiples(self):
        torch.manual_seed(0)
        levels = FeatureLevels((4, 6, 8, 10), (4, 8, 16, 32))
        decoder = UPerNetDecoder(levels, 3, channels=6, norm="batch", dropout=0.1).double().eval()
        maps = [torch.randn(1, c, 192 // r, 384 // r).double() for c, r in zip(*self.of(levels), strict=True)]
        pooled = [maps[3]]
        for side, branch in zip((1, 2, 3, 6), decoder.pooling.scales, strict=True):
            mean = maps[3].reshape(1, 10, side, 6 // side, side, 12 // side).mean((3, 5))
            pooled.append(F.interpolate(branch[1](mean), size=(6, 12), mode="bilinear"))
        tops = [decoder.pooling.bottleneck(torch.cat(pooled, 1))]
        for i in (2, 1, 0):
            up = F.interpolate(tops[0], scale_factor=2, mode="bilinear")
            tops.insert(0, decoder.laterals[i](maps[i]) + up)
        outputs = [conv(top) for conv, top in zip(decoder.outputs, tops, strict=False)] + [tops[-1]]
        fused = [F.interpolate(x, size=(48, 96), mode="bilinear") for x in outputs]
        torch.testing.assert_close(decoder(maps), decoder.classifier(decoder.fusion(torch.cat(fused, 1))))

    @staticmethod
    def of(levels):
        return levels.channels, levels.reductions

    def test_the_auxiliary_head_reads_the_last_map_but_one_and_counts_in_losses_alone(self):
        model = segmenter("upernet", dropout=0.0).eval()
        images, labels = images_and_labels()
        found = model(images, labels)["auxiliary"]
        logits = model.auxiliary.classifier(model.auxiliary.conv(model.backbone(images)[-2]))
        logits = F.interpolate(logits, size=(67, 45), mode="bilinear")
        torch.testing.assert_close(found, 0.4 * F.cross_entropy(logits, labels, ignore_index=255))
        without = model(images)
        model.auxiliary = None
        assert torch.equal(model(images), without)
        assert sorted(model(images, labels)) == ["segmentation"]

    def test_no_auxiliary_head(self):
        assert not any(isinstance(part, AuxiliaryHead) for part in segmenter("upernet", auxiliary_weight=0).modules())

    @pytest.mark.parametrize(("indices", "reductions"), [((4,), (32,)), ((2, 4), (8, 32))])
    @each_segmenter
    def test_fewer_maps(self, kind, indices, reductions):
        build, tiny = SEGMENTERS[kind]
        model = build(backbone(out_indices=indices), num_classes=CLASSES, **tiny)
        assert model.levels.reductions == reductions
        images, labels = images_and_labels()
        sum(model(images, labels).values()).backward()
        assert predict(model, images).shape == labels.shape

    @each_segmenter
    def test_maps_of_one_resolution(self, kind):
        """A plain vision transformer has all its maps at 1/16."""
        net = timm.create_model(
            "vit_tiny_patch16_224",
            features_only=True,
            dynamic_img_size=True,
            embed_dim=24,
            depth=4,
            out_indices=(0, 1, 2, 3),
        )
        build, tiny = SEGMENTERS[kind]
        model = build(net, num_classes=CLASSES, **tiny)
        assert predict(model, torch.zeros(2, 3, 48, 64)).shape == (2, 48, 64)

    def test_an_image_of_half_patches_is_enlarged_and_cut_back(self):
        model = segmenter("semantic_fpn", "swin_tiny_patch4_window7_224").eval()
        assert model.levels.divisor == (4, 4)
        images, labels = images_and_labels((30, 45))
        logits = model(F.pad(images, (0, 3, 0, 2)))[:, :, :30, :45]
        assert torch.equal(model(images), logits)
        expected = F.cross_entropy(logits, labels, ignore_index=255)
        torch.testing.assert_close(model(images, labels)["segmentation"], expected)
        assert segmenter("semantic_fpn", "acmix_swin_tiny").levels.divisor == (1, 1)

    def test_a_name_is_enough(self):
        model = semantic_fpn("acmix_resnet14", num_classes=3, pyramid_channels=8, channels=8)
        assert model.levels.reductions == (4, 8, 16, 32)

    def test_a_map_as_a_dictionary(self):
        net = backbone()
        levels, maps = FeatureLevels.of(net), net(torch.zeros(2, 3, 64, 64))
        chosen = levels.select({str(i): level for i, level in enumerate(maps)})
        assert [level.shape for level in chosen] == [level.shape for level in maps[-4:]]


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "message", "options"),
        [
            (ValueError, "num_classes must be a positive integer, got 0", {"num_classes": 0}),
            (ValueError, "channels must be a positive integer", {"channels": -1}),
            (ValueError, "norm must be one of", {"norm": "layer"}),
            (ValueError, "would then never be learned", {"num_classes": 847}),
            (ValueError, "no network is called 'resnet50x'", {"backbone": "resnet50x"}),
            (TypeError, "got int", {"backbone": 50}),
            (TypeError, "features_only=True", {"backbone": nn.Conv2d(3, 8, 3)}),
        ],
    )
    @each_segmenter
    def test_building(self, kind, error, message, options):
        build, tiny = SEGMENTERS[kind]
        options = {"backbone": "resnet10t", "num_classes": CLASSES} | tiny | options
        net = options.pop("backbone")
        with pytest.raises(error, match=message):
            build(backbone() if net == "resnet10t" else net, **options)

    def test_a_classifier_as_backbone(self):
        with pytest.raises(TypeError, match=r"timm\.create_model\(name, features_only=True\)"):
            semantic_fpn(timm.create_model("resnet10t", channels=(8, 8, 8, 8)), num_classes=3)

    def test_maps_from_coarse_to_fine(self):
        net = backbone()
        net.feature_info.out_indices = (4, 3)
        with pytest.raises(ValueError, match="fine to coarse"):
            FeatureLevels.of(net)

    @pytest.mark.parametrize("weight", [-0.1, float("nan")])
    def test_the_auxiliary_weight(self, weight):
        with pytest.raises(ValueError, match="auxiliary_weight must be 0"):
            upernet(backbone(), num_classes=3, auxiliary_weight=weight)

    @pytest.mark.parametrize(
        ("error", "message", "images", "targets"),
        [
            (ValueError, r"images must be \[B, 3, H, W\]", torch.zeros(3, 32, 32), None),
            (TypeError, "floating point", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None),
            (ValueError, r"\(1, 32, 32\).*got \(1, 1, 32, 32\)", torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)),
            (TypeError, "targets must be integers", torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32)),
        ],
    )
    def test_calling(self, error, message, images, targets):
        with pytest.raises(error, match=message):
            segmenter("semantic_fpn")(images, targets)

    def test_label_maps_of_bytes_are_taken(self):
        images, labels = images_and_labels()
        assert segmenter("semantic_fpn")(images, labels.to(torch.uint8))["segmentation"].isfinite()
