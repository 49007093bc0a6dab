"""A convolution over any offsets: X-volution's 33, any map and channels, whatever pieces the kernels cut them into."""

import pytest
import torch
import torch.nn.functional as F

from convattn.ops import Neighborhood, backends, offset_convolution
from convattn.ops.offset_convolution import blocks_of_outputs, native, reference, skips_zeros

X_VOLUTION = Neighborhood.window(3, border="zeros") | Neighborhood.window(5, dilation=2, border="zeros")
BACKENDS = [name for name, reasons in backends()["offset_convolution"].items() if not reasons]
NATIVE = pytest.mark.skipif("native" not in BACKENDS, reason="no CPU kernels here")


def draw(size, inputs, blocks, outputs, nbhd, batch=2, layout=torch.channels_last):
    """x, weight and bias in float32, the outputs about as large as the inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, inputs, *size, generator=generator).contiguous(memory_format=layout)
    weight = torch.randn(blocks, len(nbhd) * inputs, outputs, generator=generator) * (len(nbhd) * inputs) ** -0.5
    return x, weight, torch.randn(blocks * outputs, generator=generator)


def by_convolution(x, weight, nbhd, bias=None):
    """In float64, by one dense convolution; for borders of zeros."""
    reach = [max(abs(offset[axis]) for offset in nbhd.offsets) for axis in (0, 1)]
    by_offset = weight.double().unflatten(1, (len(nbhd), -1)).permute(1, 0, 3, 2).flatten(1, 2)
    dense = by_offset.new_zeros(*by_offset.shape[1:], 2 * reach[0] + 1, 2 * reach[1] + 1)
    for (dy, dx), tap in zip(nbhd.offsets, by_offset, strict=True):
        dense[:, :, dy + reach[0], dx + reach[1]] = tap
    return F.conv2d(x.double(), dense, None if bias is None else bias.double(), nbhd.stride, reach)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize(
    ("size", "inputs", "blocks", "outputs"),
    [
        ((7, 7), 300, 2, 32),  # inputs in two chunks
        ((7, 7), 37, 1, 83),  # vectors that end in the middle, whatever their length
        ((14, 13), 16, 3, 16),
        ((1, 1), 8, 1, 8),
        ((2, 9), 1, 1, 1),
        ((41, 37), 3, 2, 5),  # several blocks of pixels
        ((2, 500), 4, 1, 4),  # a row longer than a block
    ],
    ids=str,
)
def test_any_shape(size, inputs, blocks, outputs, stride, layout, backend):
    nbhd = Neighborhood(X_VOLUTION.offsets, stride, "zeros")
    x, weight, bias = draw(size, inputs, blocks, outputs, nbhd, layout=layout)
    out = offset_convolution(x, weight, nbhd, bias, backend=backend)
    torch.testing.assert_close(out.double(), by_convolution(x, weight, nbhd, bias), rtol=1e-5, atol=1e-5)
    assert out.is_contiguous(memory_format=layout)
    without = offset_convolution(x, weight, nbhd, backend=backend)
    torch.testing.assert_close(without + bias[:, None, None], out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("border", ["zeros", "reflect", "replicate"])
def test_any_offsets_and_border(border, backend):
    nbhd = Neighborhood(((0, 0), (-3, 1), (40, 0), (0, -5), (1, 1)), (2, 1), border)
    x, weight, bias = draw((5, 6), 9, 1, 40, nbhd)
    expected = reference.offset_convolution(x.double(), weight.double(), nbhd, bias.double())
    torch.testing.assert_close(
        offset_convolution(x, weight, nbhd, bias, backend=backend).double(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tap_that_no_output_reaches(backend):
    nbhd = Neighborhood(((9, 0), (0, -9)), border="zeros")
    x, weight, bias = draw((4, 3), 5, 1, 6, nbhd)
    out = offset_convolution(x, weight, nbhd, bias, backend=backend)
    assert torch.equal(out, bias[:, None, None].expand_as(out))
    assert not offset_convolution(x, weight, nbhd, backend=backend).any()


@NATIVE
@pytest.mark.parametrize("batch", [1, 20])
def test_threads_change_nothing(batch):
    inputs = draw((7, 7), 40, 3, 32, X_VOLUTION, batch)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5, 16):
            torch.set_num_threads(count)
            found.append(offset_convolution(*inputs[:2], X_VOLUTION, inputs[2], backend="native"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(out, found[0]) for out in found)


@NATIVE
def test_a_slice_of_a_map_is_read_where_it_lies(monkeypatch):
    x, weight, _ = draw((6, 5), 24, 1, 8, X_VOLUTION)
    read = []
    monkeypatch.setattr(native, "map_of", lambda t, of=native.map_of: read.append(t.data_ptr()) or of(t))
    part = x[:, 4:20, 1:]
    out = offset_convolution(part, weight[:, : 33 * 16], X_VOLUTION, backend="native")
    expected = by_convolution(part, weight[:, : 33 * 16], X_VOLUTION)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert read[0] == part.data_ptr()


def test_blocks_hold_the_outputs_in_order():
    weight = torch.randn(3, 4, 96)
    blocks = blocks_of_outputs(weight)
    assert (blocks.shape, blocks.is_contiguous()) == ((3, 12, 32), True)
    assert torch.equal(blocks.transpose(0, 1).flatten(1), weight.flatten(0, 1))
    assert [len(blocks_of_outputs(torch.zeros(1, 1, n))) for n in (1, 8, 31, 48, 64)] == [1, 1, 1, 3, 2]


@NATIVE
def test_skips_zeros_says_what_runs():
    assert skips_zeros(torch.zeros(1))
    assert not any(skips_zeros(torch.zeros(1, device=d, dtype=t)) for d, t in [("meta", None), ("cpu", torch.double)])


class Layer(torch.nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.nbhd = Neighborhood(X_VOLUTION.offsets, stride, "zeros")
        _, weight, bias = draw((1, 1), 6, 2, 4, self.nbhd)
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

    def forward(self, x):
        return offset_convolution(x, self.weight, self.nbhd, self.bias)


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_exported_and_compiled_for_any_size(stride):
    layer, auto = Layer(stride), torch.export.Dim.DYNAMIC
    program = torch.export.export(layer, (torch.randn(2, 6, 8, 7),), dynamic_shapes={"x": {0: auto, 2: auto, 3: auto}})
    compiled = torch.compile(layer, dynamic=True, fullgraph=True, backend="aot_eager")
    for shape in [(1, 6, 9, 5), (3, 6, 4, 6)]:
        x = torch.randn(shape, requires_grad=True)
        torch.testing.assert_close(program.module()(x), layer(x))
        ours, plain = (torch.autograd.grad(f(x).sum(), [x, layer.weight]) for f in (compiled, layer))
        for got, expected in zip(ours, plain, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype(dtype):
    x, weight, bias = (t.requires_grad_() for t in draw((7, 7), 32, 1, 16, X_VOLUTION))
    expected = by_convolution(x, weight, X_VOLUTION, bias)
    with torch.autocast("cpu", dtype=dtype):
        out = offset_convolution(x, weight, X_VOLUTION, bias)
        assert offset_convolution(x.double(), weight.double(), X_VOLUTION).dtype == torch.float64
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.05)
    assert {g.dtype for g in torch.autograd.grad(out.sum(), (x, weight, bias))} == {torch.float32}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_meta_tensors_have_the_shape(mode):
    x, weight, bias = (t.to("meta") for t in draw((7, 8), 3, 2, 5, X_VOLUTION))
    with mode():
        assert offset_convolution(x, weight, Neighborhood(X_VOLUTION.offsets, 2, "zeros"), bias).shape == (2, 10, 4, 4)


MAP, TABLE = torch.zeros(2, 6, 5, 4), torch.zeros(2, 33 * 6, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((MAP[0], TABLE, X_VOLUTION), {}, r"x must be \[B, C, H, W\], got 3 dimensions"),
        ((MAP, TABLE[0], X_VOLUTION), {}, r"weight must be \[G, 198, V\], a row for each of 33 offsets and 6 channels"),
        ((MAP, TABLE[:, :9], X_VOLUTION), {}, r"weight must be \[G, 198, V\], .* got \[2, 9, 4\]"),
        ((MAP, TABLE.double(), X_VOLUTION), {}, "x and weight must have one dtype"),
        ((MAP, TABLE, X_VOLUTION, MAP[0, 0, 0]), {}, r"bias must be \[8\], one number an output channel, got \[4\]"),
        ((MAP, TABLE, X_VOLUTION), {"backend": "cuda"}, "offset_convolution has no backend 'cuda'; it has 'auto'"),
    ],
)
def test_message(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        offset_convolution(*arguments, **options)
