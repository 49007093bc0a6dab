"""One feature after another, on every family: the second changes nothing that the first gave, or says why not."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.convert.pairs import FAMILIES, FEATURES, OURS, SLOW, answers, first, images, in_onnxruntime, second

REFUSED = {
    ("compile", "convert"): "the network is compiled: convert it first",
    ("compile", "optimize"): "the network is compiled: optimize it first",
    ("export", "convert"): r"the network is exported, .* convert it before torch\.export",
    ("export", "optimize"): r"the network is exported, .* optimize it before torch\.export",
}
# A graph has no such methods, and features_only is asked for when a network is made.
MEANINGLESS = {("export", "checkpointing"), ("export", "features_only"), ("compile", "features_only")}
ALL = [pair for pair in permutations(FEATURES, 2) if pair not in MEANINGLESS]
# timm's wrapper for these has no checkpointing.
GETTERS = {"acmix_san10", "acmix_pvt_tiny", "acmix_swin_tiny"}
WHOLE = ("acmix_resnet14", "repvgg_a0")
"""The families of which the quick run tries every pair that is quick."""


def applies(family: str, before: str, after: str) -> bool:
    if family == "acmix_san10" and "convert" in (before, after):
        return False  # all its convolutions are 1x1
    return family not in GETTERS or (before, after) != ("features_only", "checkpointing")


def case(family: str, before: str, after: str) -> object:
    quick = (before, after) == (("optimize", "EMA") if family in OURS else ("convert", "optimize"))
    quick |= family in WHOLE and before not in SLOW and after not in SLOW
    return pytest.param(family, before, after, marks=[] if quick else pytest.mark.slow)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "before", "after"),
    [case(family, *pair) for family in FAMILIES for pair in ALL if applies(family, *pair)],
)
def test_pair(family: str, before: str, after: str) -> None:
    net = first(family, before)
    if (before, after) in REFUSED:
        with pytest.raises(TypeError, match=REFUSED[before, after]):
            second(family, before, after, net)
        return
    if after == "features_only":
        expected = [feature.detach() for feature in net.forward_intermediates(images(), intermediates_only=True)]
        got = answers(second(family, before, after, net))[:-1]
    else:
        expected = answers(net)
        got = answers(second(family, before, after, net))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("before", [name for name in FEATURES if name not in ("export", "compile")])
@pytest.mark.parametrize("family", [*OURS, "repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "shvit_s1"])
def test_onnx_after(family: str, before: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs pip install 'convattn[export]'")
    if family == "acmix_san10" and before == "convert":
        pytest.skip("all its convolutions are 1x1")
    net = first(family, before)
    expected = [t.detach().numpy() for t in answers(net)[:-1]]
    for one, other in zip(in_onnxruntime(net, tmp_path / "net.onnx"), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * float(np.abs(other).max()))


def test_a_network_without_larger_convolutions_says_so() -> None:
    with pytest.raises(ValueError, match="SAN has no convolution larger than 1x1"):
        first("acmix_san10", "convert")
