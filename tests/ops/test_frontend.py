"""Arguments that do not fit: what arrived and what would do."""

import pytest
import torch

from convattn import ops
from convattn.ops import Neighborhood

WINDOW = Neighborhood.window(3)
MAP = torch.zeros(2, 6, 5, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.attend(MAP, MAP, MAP, WINDOW, num_heads=4), r"divide the 6 channels, got 4; \[1, 2, 3, 6\]"),
        (lambda: ops.attend(MAP[0], MAP, MAP, WINDOW), r"q must be \[B, C, H, W\], got 3 dimensions"),
        (lambda: ops.attend(MAP, MAP.double(), MAP, WINDOW), "one dtype, got torch.float32 and torch.float64"),
        (lambda: ops.attend(MAP, MAP.int(), MAP, WINDOW), "k must be floating point, got torch.int32"),
        (
            lambda: ops.attend(MAP, MAP, MAP, Neighborhood.window(3, stride=2)),
            r"q must measure 3x2, .* got 5x4; subsample",
        ),
        (lambda: ops.attend(MAP, MAP, MAP[:, :3], WINDOW), "the same batch and channels"),
        (lambda: ops.attend(MAP, MAP, MAP, WINDOW, bias=torch.zeros(1, 8)), r"bias must be \[1, 9\]"),
        (
            lambda: ops.attend(MAP, MAP, MAP, WINDOW, backend="cuda"),
            "attend has no backend 'cuda'; it has 'auto', 'native', 'triton', 'eager'",
        ),
        (lambda: ops.attend(MAP[..., :0], MAP[..., :0], MAP[..., :0], WINDOW), "at least one pixel"),
        (lambda: ops.aggregate(torch.zeros(2, 2, 8, 5, 4), MAP, WINDOW), "K=9 offsets"),
        (lambda: ops.correlate(MAP, MAP[:1], WINDOW), "the same batch and channels"),
        (lambda: ops.shift_aggregate(MAP, 2), "kernel_size must be odd, got 2; 3 would do"),
        (lambda: ops.shift_aggregate(MAP, 3), r"groups \* k² = 1 \* 9 channels, got 6"),
        (lambda: ops.shift_aggregate(torch.zeros(1, 9, 2, 2), 3, form="roll"), "form must be one of"),
    ],
)
def test_message(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_backend_says_why_it_is_off(monkeypatch):
    from convattn.ops import _dispatch

    never = _dispatch.Backend(lambda *a: None, not_supported_reasons=lambda *t: ["no such device"])
    monkeypatch.setitem(_dispatch._backends, "attend", {"never": never, **_dispatch._backends["attend"]})
    found = ops.backends()["attend"]
    assert (found["never"], found["eager"]) == (["no such device"], [])
    assert ops.attend(MAP, MAP, MAP, WINDOW).shape == MAP.shape
    with pytest.raises(ValueError, match="backend 'never' of attend cannot run here: no such device"):
        ops.attend(MAP, MAP, MAP, WINDOW, backend="never")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_leaves_double_alone(dtype):
    q = torch.randn(1, 6, 5, 4)
    with torch.autocast("cpu", dtype=dtype):
        assert ops.attend(q, q.to(dtype), q, WINDOW).dtype == dtype
        assert ops.attend(q.double(), q.double(), q.double(), WINDOW).dtype == torch.float64
