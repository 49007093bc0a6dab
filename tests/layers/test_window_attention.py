"""Window attention against windows cut by hand, and against timm's on sizes that need no padding."""

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock

from convattn import ACmix
from convattn.layers.window_attention import WindowAttention, WindowAttention2d

SIZES = [(8, 8), (4, 4), (9, 6), (5, 13), (3, 2), (1, 1), (12, 1)]


def parts(size, channels=8, batch=2, dtype=torch.float64):
    return [torch.randn(batch, channels, *size, dtype=dtype, requires_grad=True) for _ in range(3)]


def attention(shift, dtype=torch.float64, **options):
    torch.manual_seed(0)
    path = WindowAttention(8, window_size=4, num_heads=2, shift=shift, dtype=dtype, **options)
    torch.nn.init.normal_(path.relative_position_bias_table)
    return path


def window_of(position, length, window, shift):
    """The positions of the window that holds one, along an axis."""
    start = shift + (position - shift) // window * window
    return range(max(start, 0), min(start + window, length))


def by_hand(path, q, k, v):
    """Every pixel by itself, over the pixels of its window."""
    heads, (rows, columns) = path.num_heads, path.window_size
    height, width = v.shape[2:]
    shift = [0 if n <= w else s for n, w, s in zip((height, width), path.window_size, path.shift, strict=True)]
    table = path.relative_position_bias_table.view(2 * rows - 1, 2 * columns - 1, heads)
    q, k, v = (part.unflatten(1, (heads, -1)) for part in (q, k, v))
    lines = []
    for y in range(height):
        for x in range(width):
            keys = [
                (a, b) for a in window_of(y, height, rows, shift[0]) for b in window_of(x, width, columns, shift[1])
            ]
            bias = torch.stack([table[y - a + rows - 1, x - b + columns - 1] for a, b in keys], -1)
            near_k, near_v = (torch.stack([part[..., a, b] for a, b in keys], -1) for part in (k, v))
            logits = (q[..., y, x, None] * near_k).sum(2) * q.shape[2] ** -0.5 + bias
            lines.append((logits.softmax(-1).unsqueeze(2) * near_v).sum(-1).flatten(1))
    return torch.stack(lines, -1).unflatten(-1, (height, width))


@pytest.mark.parametrize("shift", [0, 2, (1, 3)])
@pytest.mark.parametrize("size", SIZES)
def test_equals_windows_cut_by_hand(size, shift):
    path, inputs = attention(shift), parts(size)
    out, expected = path(*inputs), by_hand(path, *inputs)
    torch.testing.assert_close(out, expected)
    leaves = [*inputs, path.relative_position_bias_table]
    grad = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(8, 8), (9, 6)])
def test_acmix_on_a_size_that_is_no_multiple_of_the_window(size):
    layer = ACmix(6, 8, num_heads=2, attention=attention(2), convolution_bias=True, dtype=torch.float64)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    q, k, v = layer.projection(x).chunk(3, 1)
    torch.testing.assert_close(layer(x), 0.5 * by_hand(layer.attention, q, k, v) + 0.5 * layer.convolution(q, k, v))


@pytest.mark.parametrize("shift", [0, 2])
def test_what_lies_in_another_window_has_no_influence(shift):
    path, (q, k, v) = attention(shift), parts((9, 6))
    before = path(q, k, v)
    with torch.no_grad():
        for part in (q, k, v):
            part[:, :, 8:] += 100  # the last row of the unshifted grid, and not the first of any window
    changed = (path(q, k, v) - before).abs().amax((0, 1, 3)) > 0
    rows = set(window_of(8, 9, 4, shift))
    assert {row for row in range(9) if changed[row]} == rows


# timm's shift does not depend on the size at run time, so a map of one window is no case for both
@pytest.mark.parametrize(("size", "shift"), [((8, 8), 0), ((8, 8), 2), ((8, 12), 3), ((4, 12), 0)])
def test_equals_timms_block_with_equal_weights(size, shift):
    torch.manual_seed(0)
    theirs = SwinTransformerBlock(8, size, num_heads=2, window_size=4, shift_size=shift, always_partition=True)
    ours = WindowAttention2d(8, window_size=4, num_heads=2, shift=shift)
    torch.nn.init.normal_(theirs.attn.relative_position_bias_table)
    ours.load_state_dict(theirs.attn.state_dict())
    x = torch.randn(2, *size, 8)
    torch.testing.assert_close(ours(x.permute(0, 3, 1, 2)), theirs._attn(x).permute(0, 3, 1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    path, inputs = attention(2, dtype, output_projection=True), parts((9, 6), dtype=dtype)
    exact = attention(2, torch.float64, output_projection=True)
    exact.load_state_dict(path.state_dict())
    expected = exact(*(part.double() for part in inputs))
    assert path(*inputs).dtype == dtype
    torch.testing.assert_close(path(*inputs).double(), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)


def test_layouts_empty_batches_and_the_meta_device():
    path, inputs = attention(2, output_projection=True), parts((9, 6))
    last = [part.to(memory_format=torch.channels_last) for part in inputs]
    torch.testing.assert_close(path(*last), path(*inputs))
    assert path(*(part[:0] for part in inputs)).shape == (0, 8, 9, 6)
    meta = WindowAttention(8, window_size=4, num_heads=2, shift=2, device="meta")
    assert meta(*(torch.empty(1, 8, 9, 6, device="meta") for _ in range(3))).shape == (1, 8, 9, 6)


def test_autocast():
    layer = ACmix(8, 8, num_heads=2, attention=attention(2, torch.float32, output_projection=True))
    x = torch.randn(2, 8, 9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("shift", [0, 2])
def test_export_with_any_size(shift):
    path = attention(shift, torch.float32, output_projection=True)
    free = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    program = torch.export.export(
        path, tuple(parts((9, 6), dtype=torch.float32)), dynamic_shapes=dict.fromkeys("qkv", free)
    )
    for size in [(2, 3), (8, 8), (13, 5)]:
        inputs = parts(size, batch=1, dtype=torch.float32)
        torch.testing.assert_close(program.module()(*inputs), path(*inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "out_channels=8 must be divisible by num_heads, got 3"),
        ({"window_size": 4, "shift": 4}, r"shift must be at least 0 and less than window_size=\(4, 4\), got \(4, 4\)"),
        ({"window_size": 0}, "window_size"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        WindowAttention(8, **options)


def test_a_stride_is_refused_as_any_unknown_argument():
    with pytest.raises(TypeError, match=r"WindowAttention.__init__\(\) got an unexpected keyword argument 'stride'"):
        WindowAttention(8, stride=2)


def test_maps_of_another_shape_are_named():
    q, k, v = parts((4, 4))
    with pytest.raises(ValueError, match=r"must all be \[B, 8, H, W\], got \[2, 8, 4, 4\], \[2, 8, 4, 4\], \[2, 8, 2"):
        attention(0)(q, k, v[:, :, :2])
    with pytest.raises(ValueError, match=r"the input must be \[B, 8, H, W\]"):
        WindowAttention2d(8)(torch.zeros(1, 4, 4, 4))
