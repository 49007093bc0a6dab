"""What a network looks at, against the equations: attention weights, paths and Grad-CAM computed another way."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import convattn
from convattn.explain import explain
from convattn.explain.attention import weights_at
from convattn.layers import GlobalAttention, LocalAttention, SpatialReductionAttention, WindowAttention2d
from convattn.layers.path_mix import PathMix

SMALL = {"num_classes": 5, "stem": "small", "channels": (8, 8, 16, 16)}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def softmax_row(q: Tensor, k: Tensor, heads: int, pixel: int) -> Tensor:
    """The mean over the heads of the weights of one query over all keys, from [1, C, ...] maps."""
    queries, keys = (x.flatten(2).unflatten(1, (heads, -1))[0] for x in (q, k))
    logits = torch.einsum("nd,ndj->nj", queries[..., pixel], keys) / queries.shape[1] ** 0.5
    return logits.softmax(-1).mean(0)


class TestAttention:
    def test_a_local_window_is_its_softmax_each_reflected_pixel_counted(self) -> None:
        layer = LocalAttention(8, kernel_size=3, num_heads=2, position=None)
        q, k, v = (torch.randn(1, 8, 5, 6) for _ in range(3))
        found = weights_at(layer, (q, k, v), (0.0, 0.5))  # row 0, column 3: its window is reflected at the top
        rows, columns = [1, 0, 1], [2, 3, 4]
        keys = torch.stack([k[0, :, y, x] for y in rows for x in columns], -1)
        weights = softmax_row(q[..., :1, 3:4], keys[None], 2, 0)
        expected = torch.zeros(5, 6)
        for place, weight in zip([(y, x) for y in rows for x in columns], weights, strict=True):
            expected[place] += weight
        torch.testing.assert_close(found, expected)

    def test_strided_queries_are_those_of_the_output(self) -> None:
        layer = LocalAttention(4, kernel_size=3, num_heads=1, stride=2, position="linear")
        q, k, v = (torch.randn(1, 4, 8, 8) for _ in range(3))
        found = weights_at(layer, (q, k, v), (0.5, 0.5))
        assert found is not None
        assert found[3:6, 3:6].sum().item() == pytest.approx(1)  # around (4, 4), the third of four queries
        assert (found > 0).sum() == 9

    def test_global_attention_before_its_projection(self) -> None:
        layer = GlobalAttention(8, num_heads=2, output="projected")
        q, k, v = torch.randn(1, 8, 3, 4), torch.randn(1, 8, 2, 5), torch.randn(1, 8, 2, 5)
        projection = layer.proj
        found = weights_at(layer, (q, k, v), (0.4, 0.6))
        torch.testing.assert_close(found, softmax_row(q, k, 2, 1 * 4 + 2).view(2, 5))
        assert layer.proj is projection

    def test_a_window_is_read_and_nothing_beside_it(self) -> None:
        layer = WindowAttention2d(8, window_size=4, num_heads=2, shift=2)
        found = weights_at(layer, (torch.randn(1, 8, 8, 8),), (0.5, 0.5))
        assert found is not None
        assert found[2:6, 2:6].sum().item() == pytest.approx(1)
        assert (found > 0).sum() == 16

    def test_reduced_keys_without_the_class_token(self) -> None:
        layer = SpatialReductionAttention(8, num_heads=2, sr_ratio=2, num_prefix_tokens=1)
        x = torch.randn(1, 1 + 4 * 6, 8)
        found = weights_at(layer, (x, (4, 6)), (0.3, 0.5))
        q, k, _ = layer.projection(x, (4, 6))
        row = softmax_row(q.transpose(1, 2), k.transpose(1, 2), 2, 1 + 1 * 6 + 3)[1:]
        torch.testing.assert_close(found, (row / row.sum()).view(2, 3))

    def test_pssa_reads_its_offsets_by_the_size_of_their_weights(self) -> None:
        layer = convattn.PSSA(4, 4)
        x = torch.randn(1, 4, 11, 11)
        found = weights_at(layer, (x,), (0.5, 0.5))
        q, k, _ = layer.project(x)
        expected = torch.zeros(11, 11)
        for weight, (dy, dx) in zip(layer.weight, layer.neighborhood.offsets, strict=True):
            similarity = (q[0, :, 5, 5] * k[0, :, 5 + dy, 5 + dx]).sum() / 2
            expected[5 + dy, 5 + dx] = (weight * similarity).abs().mean()
        torch.testing.assert_close(found, (expected / expected.sum()).detach())

    def test_pssa_that_passes_on_reads_what_its_neighbours_read(self) -> None:
        layer, x = convattn.PSSA(4, 4, propagation="summed"), torch.randn(1, 4, 31, 31)
        alone = weights_at(layer, (x,), (0.5, 0.5))
        nn.init.normal_(layer.neighbor_sum.weight)
        passed_on = weights_at(layer, (x,), (0.5, 0.5))
        assert (alone > 0).sum() == len(layer.neighborhood)
        assert ((passed_on > 0).sum() > 2 * (alone > 0).sum()).item()

    def test_pssa_that_sums_its_similarities_has_no_values(self) -> None:
        assert weights_at(convattn.PSSA(4, 4, reading="product"), (torch.randn(1, 4, 5, 5),), (0.5, 0.5)) is None

    @pytest.mark.parametrize(
        ("name", "options", "layers"),
        [
            ("acmix_resnet14", SMALL, 4),
            ("sasa_resnet14", SMALL, 4),
            ("xvolution_resnet14", SMALL, 1),
            ("xvolution_resnet14", SMALL | {"operator_args": {"attention": "global"}}, 1),
            ("san10", {"stem": "small", "widths": (16, 16, 32, 32, 32)}, 10),
            ("acmix_swin_tiny", {"stem": "small", "embed_dim": 12, "depths": (1, 2)}, 3),
            ("acmix_pvt_tiny", {"stem": "small", "embed_dims": (8, 10, 20, 16), "num_heads": (1, 2, 5, 8)}, 8),
            ("pairwise_san10", {"stem": "small", "widths": (16, 16, 32, 32, 32)}, 10),
            ("acmix_deit_tiny", {"stem": "small", "depth": 2, "embed_dim": 24}, 2),
            ("resnet10t", {}, 0),
        ],
    )
    def test_every_layer_of_a_network_is_found(self, name: str, options: dict[str, object], layers: int) -> None:
        net, image = timm.create_model(name, **options).eval(), torch.randn(1, 3, 32, 40)
        with torch.no_grad():
            before = net(image)
        found = explain(net, lambda: net(image)[0, 0])
        maps = found.attention_at((20, 30))
        assert len(maps) == layers
        assert all(one.weights.sum().item() == pytest.approx(1, abs=1e-4) for one in maps)
        assert found.cam is not None
        assert found.cam.max() == 1
        with torch.no_grad():
            assert torch.equal(net(image), before)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
        assert all(parameter.grad is None for parameter in net.parameters())


class TestPaths:
    def test_acmix_rates_are_counted(self) -> None:
        layer, x = convattn.ACmix(8, 8).eval(), torch.randn(1, 8, 6, 7)
        nn.init.constant_(layer.mix.alpha, 2.0)
        nn.init.constant_(layer.mix.beta, -0.5)
        heard: list[Tensor] = []
        with torch.no_grad(), layer.mix.register_forward_pre_hook(lambda _, parts: heard.extend(parts)):
            layer(x)
        (paths,) = explain(layer, lambda: layer(x).sum()).paths
        torch.testing.assert_close(paths.attention, 2 * heard[0][0].norm(dim=0))
        torch.testing.assert_close(paths.convolution, 0.5 * heard[1][0].norm(dim=0))
        torch.testing.assert_close(paths.share, paths.attention / (paths.attention + paths.convolution))

    def test_xvolution_is_split_into_its_branches(self) -> None:
        layer, x = convattn.XVolution(4, 4).eval(), torch.randn(1, 4, 6, 7)
        (paths,) = explain(layer, lambda: layer(x).sum()).paths
        attention = layer.attention_norm(layer.attention(x))
        torch.testing.assert_close(paths.attention, attention[0].norm(dim=0).detach())
        torch.testing.assert_close(paths.convolution, (layer(x) - attention)[0].norm(dim=0).detach())

    def test_two_silent_paths_share_alike(self) -> None:
        net = nn.Sequential(convattn.XVolution.around(nn.Conv2d(3, 3, 3, padding=1)))
        nn.init.zeros_(net[0].convolution.weight)
        nn.init.zeros_(net[0].convolution.bias)
        x = torch.randn(1, 3, 4, 4)
        (paths,) = explain(net.eval(), lambda: net(x).sum()).paths
        assert (paths.share == 0.5).all()


class TestGradCam:
    def test_the_last_map_of_a_resnet(self) -> None:
        net, image = timm.create_model("resnet10t", num_classes=5).eval(), torch.randn(1, 3, 64, 96)
        features = net.forward_features(image)
        logits = net.forward_head(features)[0]
        best = int(logits.argmax())
        (gradient,) = torch.autograd.grad(logits[best], features)
        expected = (gradient[0].mean((1, 2), keepdim=True) * features[0]).sum(0).relu().detach()
        found = explain(net, lambda: net(image)[0, best])
        assert found.cam_layer == "layer4"
        torch.testing.assert_close(found.cam, expected / expected.max())

    def test_channels_last_maps_and_tokens(self) -> None:
        swin = timm.create_model("acmix_swin_tiny", stem="small", embed_dim=12, depths=(1, 2), num_classes=5).eval()
        image = torch.randn(1, 3, 32, 48)
        found = explain(swin, lambda: swin(image)[0].max())
        assert (found.cam_layer, found.cam.shape) == ("norm", (16, 24))
        vit = timm.create_model("test_vit", img_size=64, num_classes=5).eval()
        found = explain(vit, lambda: vit(torch.randn(1, 3, 64, 64))[0].max())
        assert found.cam_layer.endswith("norm1")  # what the class token reads last, not what is thrown away
        assert found.cam.shape == (4, 4)

    def test_a_frozen_network(self) -> None:
        net = timm.create_model("resnet10t").eval().requires_grad_(False)
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert explain(net, lambda: net(image)[0].max()).cam is not None
        assert not image.requires_grad

    def test_a_score_of_nothing(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        found = explain(net, lambda: (net(torch.randn(1, 3, 8, 8)) * 0).sum())
        assert (found.cam, found.cam_layer) == (None, "")

    def test_the_modules_of_the_forward_are_called_once(self) -> None:
        calls: list[int] = []
        net = nn.Sequential(nn.Conv2d(3, 4, 3), PathMixOfOne(calls), nn.AdaptiveAvgPool2d(1)).eval()
        explain(net, lambda: net(torch.randn(1, 3, 8, 8)).sum())
        assert calls == [1]


class PathMixOfOne(nn.Module):
    """A sum of a map with itself."""

    def __init__(self, calls: list[int]) -> None:
        super().__init__()
        self.calls, self.mix = calls, PathMix("sum")

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return self.mix(x, x)


class TestRefusals:
    def test_what_is_no_image_and_no_score(self) -> None:
        net = nn.Conv2d(3, 4, 3).eval()
        with pytest.raises(ValueError, match=r"one image \[1, C, H, W\] is explained at a time, got \[2, 3, 8, 8\]"):
            explain(net, lambda: net(torch.randn(2, 3, 8, 8)).sum())
        with pytest.raises(ValueError, match="score must run the network"):
            explain(net, lambda: torch.zeros(()))
        with pytest.raises(ValueError, match=r"one number, got torch.Size\(\[1, 4, 6, 6\]\)"):
            explain(net, lambda: net(torch.randn(1, 3, 8, 8)))
        assert not net._forward_hooks

    def test_a_pixel_beside_the_image(self) -> None:
        net = nn.Conv2d(3, 4, 3).eval()
        found = explain(net, lambda: net(torch.randn(1, 3, 8, 9)).sum())
        with pytest.raises(ValueError, match=r"row 8, column 3\) is not on an image of \(8, 9\)"):
            found.attention_at((8, 3))
