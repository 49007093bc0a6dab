"""Pretrained starts, from local files and a local cache through timm's own mechanism: they equal their sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

import convattn.models  # noqa: F401  registers the networks
from convattn.convert import convert
from convattn.layers import ACmix, SpatialReductionACmix
from tests.official.test_pvt import OPTIONS as PVT_OPTIONS
from tests.official.test_pvt import public_network, public_state

RESNET = {"channels": (8, 16, 24, 32), "num_classes": 5}
SWIN = {"embed_dim": 12, "num_heads": (1, 2, 3, 4), "num_classes": 5}
SWIN_SOURCE = "{}_patch4_window7_224"
EXACT = [
    *(
        (f"{kind}_resnet{depth}", f"resnet{depth}", RESNET)
        for kind in ("conv", "xvolution", "multiconv")
        for depth in (18, 34, 50)
    ),
    *(
        (f"{kind}{size}", SWIN_SOURCE.format(size), SWIN)
        for kind in ("", "acmix_")
        for size in ("swin_tiny", "swin_small")
    ),
]
FULL = [
    ("conv_resnet50", "resnet50"),
    ("xvolution_resnet50", "resnet50"),
    ("acmix_swin_tiny", SWIN_SOURCE.format("swin_tiny")),
]


def drawn(name: str, **options: Any) -> nn.Module:
    """A network as if it had been trained: random weights, biases and statistics."""
    torch.manual_seed(0)
    net = timm.create_model(name, **options).eval()
    for parameter in net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def started(name: str, source: nn.Module, folder: Path, **options: Any) -> nn.Module:
    """The network from a file with the weights of another one."""
    save_file(source.state_dict(), folder / "source.safetensors")
    overlay = {"file": str(folder / "source.safetensors"), "num_classes": source.num_classes}
    torch.manual_seed(1)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()


@pytest.mark.parametrize(("name", "source", "options"), EXACT, ids=[name for name, _, _ in EXACT])
@torch.no_grad()
def test_an_exact_start_has_its_sources_outputs(
    name: str, source: str, options: dict[str, Any], tmp_path: Path
) -> None:
    before = drawn(source, **options)
    net = started(name, before, tmp_path, **options)
    x = torch.randn(2, 3, 224, 224) if "swin" in name else torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(net(x), before(x), rtol=1e-5, atol=1e-5)
    if "resnet" in name:  # batch norms in training mode too, with which an X-volution begins to learn
        torch.testing.assert_close(net.train()(x), before.train()(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "source"), FULL)
@torch.no_grad()
def test_a_start_at_full_size_has_its_sources_outputs(name: str, source: str, tmp_path: Path) -> None:
    before = timm.create_model(source).eval()
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(started(name, before, tmp_path)(x), before(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["pvt_v1_tiny", "acmix_pvt_tiny"])
@torch.no_grad()
def test_pvt_starts_from_the_public_names(name: str, tmp_path: Path) -> None:
    state, x = public_state(), torch.randn(2, 3, 224, 224, dtype=torch.float64)
    torch.save({key: value.float() for key, value in state.items()}, tmp_path / "pvt.pth")
    overlay = {"file": str(tmp_path / "pvt.pth"), "num_classes": 7}
    net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **PVT_OPTIONS).eval().double()
    expected = public_network(x, {key: value.float().double() for key, value in state.items()}, grids=(56, 28, 14, 7))[
        1
    ]
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_an_acmix_resnet_starts_as_convert_makes_it(depth: int, tmp_path: Path) -> None:
    before = drawn(f"resnet{depth}", **RESNET)
    net = started(f"acmix_resnet{depth}", before, tmp_path, **RESNET)
    converted = convert(before, to="acmix", where="layer?.*.conv2").eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(net(x), converted(x), rtol=1e-4, atol=1e-4)
    mixes = [(float(m.mix.alpha), float(m.mix.beta)) for m in net.modules() if isinstance(m, ACmix)]
    assert set(mixes) == {(0.0, 1.0)}
    assert len(mixes) == sum(timm_depths(depth))


def timm_depths(depth: int) -> tuple[int, ...]:
    return {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]


@pytest.mark.parametrize("name", ["acmix_swin_tiny", "acmix_pvt_tiny"])
def test_every_new_parameter_learns_after_a_step(name: str, tmp_path: Path) -> None:
    options = SWIN if "swin" in name else PVT_OPTIONS
    if "swin" in name:
        net = started(name, drawn(SWIN_SOURCE.format("swin_tiny"), **options), tmp_path, **options).train()
    else:
        torch.save({key: value.float() for key, value in public_state().items()}, tmp_path / "pvt.pth")
        overlay = {"file": str(tmp_path / "pvt.pth"), "num_classes": 7}
        net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    optimizer, x = torch.optim.SGD(net.parameters(), lr=0.01), torch.randn(2, 3, 64, 64)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    operators = [m for m in net.modules() if isinstance(m, (ACmix, SpatialReductionACmix))]
    if "pvt" in name:
        operators.pop()  # the classifier reads the class token alone, which the last convolution path does not reach
    assert operators
    assert all(m.mix.beta.item() != 0 for m in operators)
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for m in operators
        for parameter in m.convolution.parameters()
    )


@pytest.mark.parametrize(("name", "options"), [("acmix_resnet18", RESNET), ("acmix_swin_tiny", SWIN)])
def test_weights_of_the_network_itself_are_taken_as_they_are(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    own = drawn(name, **options)
    again = started(name, own, tmp_path, **options)
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in again.state_dict().items())


def test_another_number_of_classes_gets_a_new_classifier_and_features_the_same_maps(tmp_path: Path) -> None:
    before = drawn("resnet18", **RESNET)
    net = started("xvolution_resnet18", before, tmp_path, **(RESNET | {"num_classes": 3}))
    assert net.fc.out_features == 3
    maps = started("xvolution_resnet18", before, tmp_path, channels=RESNET["channels"], features_only=True)
    theirs = timm.create_model("resnet18", channels=RESNET["channels"], features_only=True).eval()
    theirs.load_state_dict({key: value for key, value in before.state_dict().items() if not key.startswith("fc")})
    x = torch.randn(1, 3, 64, 64)
    for ours, expected in zip(maps(x), theirs(x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "xvolution_resnet18",
            {"operator_args": {"kernel_size": 5}},
            r"layer4\.0\.conv2 cannot start from a kernel of",
        ),
        (
            "acmix_resnet18",
            {"operator_args": {"mix": "sum"}},
            r"layer1\.0\.conv2 cannot start from a kernel of .*mix='free'",
        ),
    ],
)
def test_an_operator_that_cannot_hold_the_kernel_says_so(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        started(name, drawn("resnet18", **RESNET), tmp_path, **RESNET, **options)


def test_a_swin_acmix_without_a_free_mix_cannot_start_from_attention(tmp_path: Path) -> None:
    before = drawn(SWIN_SOURCE.format("swin_tiny"), **SWIN)
    with pytest.raises(ValueError, match=r"with mix='sum': take 'free' or 'convex'"):
        started("acmix_swin_tiny", before, tmp_path, **SWIN, operator_args={"mix": "sum"})


def test_weights_of_the_hubs_cache_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very mechanism, with the files that a download leaves."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = drawn("resnet18")
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(before.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    x = torch.randn(1, 3, 64, 64)
    for name in ("conv_resnet18", "xvolution_resnet18.init_a1_in1k"):
        net = timm.create_model(name, pretrained=True, cache_dir=str(tmp_path)).eval()
        torch.testing.assert_close(net(x), before(x), rtol=1e-5, atol=1e-5)


def test_the_registry_names_the_starts_and_where_they_come_from() -> None:
    cfg = timm.get_pretrained_cfg("acmix_resnet50")
    assert (cfg.tag, cfg.hf_hub_id) == ("init_a1_in1k", "timm/resnet50.a1_in1k")
    assert cfg.notes == ("initialised from resnet50, not trained further",)
    assert timm.get_pretrained_cfg("conv_resnet50").tag == "a1_in1k"
    assert timm.list_pretrained("acmix_pvt*") == [
        f"acmix_pvt_{size}.init_in1k" for size in ("large", "medium", "small", "tiny")
    ]
    assert not timm.is_model_pretrained("conv_resnet26")  # timm's resnet26 is another network
