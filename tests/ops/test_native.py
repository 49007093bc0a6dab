"""The CPU kernels: every instruction set, sizes that cut the work into pieces, threads, the layer on top."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import convattn
from convattn.ops import Neighborhood, _native, acmix, aggregate, attend, correlate, scatter
from convattn.ops._abi import TYPES, Window, call
from convattn.ops.acmix import reference as acmix_reference
from tests.ops.cases import Acmix, Geometry

pytestmark = pytest.mark.skipif(bool(_native.reasons()), reason=f"no CPU kernels here: {_native.reasons()}")

LARGE = Neighborhood.window((5, 3), dilation=(2, 1), stride=(2, 1))
STAR = Neighborhood(((0, 0), (-9, 1), (4, 0), (0, -11), (1, 13)), border="zeros")


@pytest.mark.parametrize("marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_contract_holds_on_lower_instruction_sets(isa, marks):
    chosen = "native and (float32 and channels_last and error or any_shape and channels_last or heads_of_any_size)"
    files = [f"tests/ops/test_{name}.py" for name in ("contract", "offset_convolution", "pixel_shift")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", marks, "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "CONVATTN_CPU_ISA": isa}
    done = subprocess.run([*command, "-k", chosen], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    asked = [sys.executable, "-c", "from convattn.ops import _native; print(_native.instruction_set())"]
    found = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1]
    assert found in (isa, "baseline")


@pytest.mark.parametrize("nbhd", [LARGE, STAR, Neighborhood.window(7), Neighborhood.window(7, stride=2)], ids=len)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_map_that_is_cut_into_bands_agrees_with_the_eager_form(nbhd, channels_last):
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    height, width, heads, channels = 83, 61, 2, 34
    out = nbhd.output_size(height, width)

    def draw(*shape):
        x = torch.randn(shape, generator=generator)
        return x.contiguous(memory_format=layout) if len(shape) == 4 else x

    q, k, v = draw(2, channels, *out), draw(2, channels, height, width), draw(2, channels, height, width)
    weights = draw(2, heads, len(nbhd), *out)
    calls = {
        "attend": (lambda q, k, v, b: attend(q, k, v, nbhd, num_heads=heads, backend=b), (q, k, v)),
        "correlate": (lambda q, k, b: correlate(q, k, nbhd, num_heads=heads, backend=b), (q, k)),
        "aggregate": (lambda w, v, b: aggregate(w, v, nbhd, backend=b), (weights, v)),
        "scatter": (lambda w, u, b: scatter(w, u, nbhd, (height, width), backend=b), (weights, q)),
    }
    for function, inputs in calls.values():
        found = _with_gradients(lambda *xs, f=function: f(*xs, "native"), inputs)
        expected = _with_gradients(lambda *xs, f=function: f(*xs, "eager"), [x.double() for x in inputs])
        for got, true in zip(found, expected, strict=True):
            torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-4)


def _with_gradients(function, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out).cumsum(-1) * 0.1)]


def test_any_number_of_heads():
    heads, d = 70, 16
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 3, 5), (3 * heads * d, 4, 1, 1), (3 * heads * d,), (d, 2), (3 * heads, 3, 3, heads, d), (1,)]
    inputs = [torch.randn(shape, generator=generator) * 0.3 for shape in shapes]
    nbhd = Neighborhood.window(7)
    found = acmix(*inputs, nbhd=nbhd, num_heads=heads, backend="native")
    expected = acmix_reference.acmix(*[x.double() for x in inputs], None, nbhd=nbhd, num_heads=heads)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_threads_change_nothing_but_rounding_and_runs_repeat_to_the_bit(batch):
    geometry = Geometry(11, 20, 7)
    generator = torch.Generator().manual_seed(0)
    inputs = [x.float() for x in Acmix.draw(geometry, generator)]
    inputs[0] = torch.randn(batch, Acmix.c_in, 11, 20, generator=generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = _with_gradients(lambda *xs: Acmix.run(xs, geometry, "native"), inputs)
        torch.set_num_threads(3)
        first, second = (_with_gradients(lambda *xs: Acmix.run(xs, geometry, "native"), inputs) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(alone, first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert torch.equal(b, c)


def _drawn(batch, size, heads, head_dim):
    shapes = [(batch, 6, *size), (3 * heads * head_dim, 6, 1, 1), (3 * heads * head_dim,), (head_dim, 2)]
    shapes += [(3 * heads, 3, 3, heads, head_dim), (1,), (heads * head_dim,)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 0.3 for shape in shapes]


# Few images of few rows: heads and groups of channels are cut as well.
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("batch", "size", "heads", "head_dim"),
    [(1, (7, 7), 4, 64), (3, (6, 20), 2, 32), (1, (9, 17), 3, 48), (5, (1, 3), 4, 64)],
)
def test_work_that_is_cut_for_many_threads(batch, size, heads, head_dim, stride, set_threads):
    inputs, nbhd = _drawn(batch, size, heads, head_dim), Neighborhood.window(7, stride=stride)
    expected = _with_gradients(
        lambda *xs: acmix_reference.acmix(*xs, nbhd=nbhd, num_heads=heads), [x.double() for x in inputs]
    )

    def run(*xs):
        return acmix(*xs, nbhd=nbhd, num_heads=heads, backend="native")

    forward = {torch.float32: [], torch.bfloat16: [], torch.float16: []}
    for threads in (1, 8):
        set_threads(threads)
        for got, true in zip(_with_gradients(run, inputs), expected, strict=True):
            torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())
        for dtype, found in forward.items():
            found.append(run(*(x.to(dtype) for x in inputs)))
    for dtype, (one, many) in forward.items():
        torch.testing.assert_close(one, many, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("head_dim", [4, 5, 8, 14])
def test_heads_of_few_channels(head_dim, window):
    inputs = _drawn(2, (9, 19), 3, head_dim)
    for stride in (1, 2):
        nbhd = Neighborhood.window(window, stride=stride)

        def run(*xs, nbhd=nbhd):
            return acmix(*xs, nbhd=nbhd, num_heads=3, backend="native")

        expected = _with_gradients(
            lambda *xs, nbhd=nbhd: acmix_reference.acmix(*xs, nbhd=nbhd, num_heads=3), [x.double() for x in inputs]
        )
        for got, true in zip(_with_gradients(run, inputs), expected, strict=True):
            torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())
        for dtype in (torch.bfloat16, torch.float16):
            found = run(*(x.to(dtype) for x in inputs)).double()
            bound = 4 * torch.finfo(dtype).eps * expected[0].abs().max().item()
            torch.testing.assert_close(found, expected[0], rtol=0, atol=bound)


def _cuts(folder, calls):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler here")
    program, source = folder / "cuts", Path(__file__).with_name("cuts.cpp")
    subprocess.run([compiler, "-std=c++17", "-w", "-DCONVATTN_ISA=baseline", source, "-o", program], check=True)
    lines = "\n".join(" ".join(map(str, call)) for call in calls)
    answer = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout
    return [tuple(map(float, line.split())) for line in answer.splitlines()]


RESNET50 = ((56, 16), (28, 32), (14, 64), (7, 128))
"""The maps of the four stages of ACmix-ResNet-50: rows, and channels of each of four heads."""


def test_cores_share_the_work_of_one_image(tmp_path):
    """The busiest of 16 threads has at most a seventh more than its share: 4 of 56 rows."""
    calls = [(batch, size, size, 4, d, 1, 16) for batch in (1, 2, 8, 32) for size, d in RESNET50]
    for asked, (forward, backward, projection, rows_read) in zip(calls, _cuts(tmp_path, calls), strict=True):
        assert 16 * forward < 1.15, asked
        assert 16 * backward < 1.15, asked
        assert 16 * projection < 1.15, asked
        assert rows_read < (2 if asked[0] >= 8 else 4), asked


def test_two_cores_have_as_many_rows(tmp_path):
    """Where images are cut into bands, wherever a block of rows ends."""
    calls = [(1, size * stride, size * stride, 4, 32, stride, 2) for size in (14, 28, 42, 56) for stride in (1, 2)]
    assert [forward for forward, *_ in _cuts(tmp_path, calls)] == [0.5] * len(calls)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_layer_runs_as_one_kernel_and_computes_what_its_parts_do(stride):
    torch.manual_seed(0)
    layer = convattn.ACmix(8, 64, stride=stride)
    x = torch.randn(2, 8, 15, 13, requires_grad=True)
    parameters = [x, *layer.parameters()]
    calls = []
    with _Operators(calls):
        whole = layer(x)
    assert [name for name in calls if name.startswith("convattn")] == ["convattn::acmix"]
    handle = layer.attention.register_forward_hook(lambda *_: None)
    with _Operators(calls := []):
        parts = layer(x)
    handle.remove()
    assert "convattn::acmix" not in calls
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    ramp = torch.linspace(-1, 1, whole.numel()).view_as(whole)
    for one, other in zip(
        torch.autograd.grad(whole, parameters, ramp), torch.autograd.grad(parts, parameters, ramp), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-4)


class _Operators(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.slow  # tests/layers/test_reparameterize.py compiles and exports the same form, at one size
def test_a_reparameterized_layer_compiles_and_exports_with_free_sizes():
    torch.manual_seed(0)
    layer = convattn.ACmix(16, 64, stride=2).eval()
    layer.reparameterize("grouped")
    small, large = torch.randn(2, 16, 9, 12), torch.randn(3, 16, 14, 11)
    with torch.no_grad():
        expected = [layer(x) for x in (small, large)]
        sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        exported = torch.export.export(layer, (small,), dynamic_shapes=(sizes,)).module()
        compiled = torch.compile(layer, backend="aot_eager", dynamic=True)
        for x, y in zip((small, large), expected, strict=True):
            torch.testing.assert_close(exported(x), y)
            torch.testing.assert_close(compiled(x), y)


def test_autocast_and_half_types_keep_their_dtype():
    layer, x = convattn.ACmix(16, 64), torch.randn(1, 16, 9, 9)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    halves = layer.half()(x.half())
    assert halves.dtype == torch.float16
    torch.testing.assert_close(halves.float(), expected, rtol=0.01, atol=0.01)


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("height", "width", "stride", "window"),
    [(9, 7, 1, 7), (1, 1, 2, 7), (150, 130, 1, 7), (130, 150, 2, 7), (150, 130, 2, 3), (9, 70, 1, 5)],
)
def test_half_precision_is_float32_rounded_at_the_end(dtype, height, width, stride, window):
    """To the bit, on maps of one band and of many, from q, k and v that are rounded themselves."""
    draw, heads, head_dim = torch.Generator().manual_seed(3), 3, 17
    channels, nbhd = heads * head_dim, Neighborhood.window(window, stride=stride)
    x = torch.randn(2, 3 * channels, height, width, generator=draw).to(dtype)
    position, weight = torch.randn(head_dim, 2, generator=draw), torch.randn(9, 3, 3, heads, head_dim, generator=draw)
    tables = (position.to(dtype).float(), (weight / 9).to(dtype).float(), torch.ones(1))
    eye = torch.eye(3 * channels)[:, :, None, None]
    with torch.no_grad():
        wide = acmix(x.float(), eye, None, *tables, nbhd=nbhd, num_heads=heads, backend="native")
        half = (table.to(dtype) for table in tables)
        found = acmix(x, eye.to(dtype), None, *half, nbhd=nbhd, num_heads=heads, backend="native")
    assert found.dtype == dtype
    assert torch.equal(found, wide.to(dtype))


PAIRS = not _native.reasons() and _native.instruction_set() == "avx512_bf16"


@pytest.mark.skipif(not PAIRS, reason="needs a processor with products of bfloat16")
@pytest.mark.parametrize(("heads", "head_dim"), [(4, 16), (3, 18), (1, 32), (2, 60)])
@pytest.mark.parametrize(("height", "width", "stride"), [(9, 7, 1), (1, 1, 2), (13, 30, 1), (22, 17, 2)])
def test_products_of_bfloat16_are_as_good_as_their_rounding(heads, head_dim, height, width, stride):
    """Against float64, from q, k and v that are rounded themselves: little more than rounding the answer costs."""
    draw, channels = torch.Generator().manual_seed(3), heads * head_dim
    x = torch.randn(2, 3 * channels, height, width, generator=draw)
    shapes = (head_dim, 2), (3 * heads, 3, 3, heads, head_dim), (channels,), (channels,)
    position, weight, scale, bias = (torch.randn(shape, generator=draw) for shape in shapes)
    eye = torch.eye(3 * channels)[:, :, None, None]
    half = [x.bfloat16() for x in (x, eye)], [x.bfloat16() for x in (position, weight / 9, scale, bias)]
    options = {"nbhd": Neighborhood.window(7, stride=stride), "num_heads": heads}
    with torch.no_grad():
        true = acmix(*(t.double() for t in half[0]), None, *(t.double() for t in half[1]), **options)
        found = acmix(*half[0], None, *half[1], **options, backend="native")
    rounding = (true.bfloat16() - true).pow(2).mean().sqrt()
    assert (found - true).pow(2).mean().sqrt() <= 1.5 * rounding


@pytest.mark.skipif(not PAIRS, reason="needs a processor with products of bfloat16")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("part", "stride"), [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_bfloat16_that_is_not_finite_stays_in_its_windows(part, stride, value):
    draw, heads, head_dim = torch.Generator().manual_seed(0), 2, 16
    channels = heads * head_dim
    x = torch.randn(1, 3 * channels, 18, 19, generator=draw).bfloat16()
    x[:, part * channels + 5, 2, 4] = value
    tables = torch.randn(head_dim, 2, generator=draw), torch.randn(3 * heads, 3, 3, heads, head_dim, generator=draw)
    size = (1, 18, 19, heads, head_dim, stride, 0, 1, head_dim**-0.5)
    found = []
    for maps in (x, x.float()):
        out = torch.empty(1, channels, -(-18 // stride), -(-19 // stride), dtype=maps.dtype)
        out = out.contiguous(memory_format=torch.channels_last)
        maps = maps.contiguous(memory_format=torch.channels_last)
        window = Window(*size, TYPES[maps.dtype], 7)
        call("convattn_acmix_forward", window, maps, tables[0], torch.ones(channels), tables[1], None, out)
        found.append(out)
    assert 0 < found[0].isfinite().sum() < found[0].numel()
    assert torch.equal(found[0].isfinite(), found[1].isfinite())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512", "avx2", "baseline"])
def test_half_precision_rounds_every_number_as_torch_does(dtype, isa):
    """Every bit pattern read, and floats between all of them written: ties, subnormals, overflow, infinities, NaN."""
    environment = {**os.environ, "CONVATTN_CPU_ISA": isa}
    code = f"from tests.ops.test_native import rounds_as_torch; rounds_as_torch({str(dtype)!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[2], check=True)


def rounds_as_torch(name):
    """One convolution tap of weight one beside attention of scale zero: out = first map + bias."""
    dtype = getattr(torch, name.removeprefix("torch."))
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = patterns[patterns.isfinite()]
    channels = 16
    for values, shift in ((patterns, 0.0), (finite, 0.37), (finite, 1e-6), (finite, -250.1), (finite, 60.0)):
        pixels = values[: len(values) // channels * channels].view(1, -1, 1, channels).permute(0, 3, 1, 2)
        qkv = torch.cat([pixels, torch.zeros_like(pixels), torch.zeros_like(pixels)], 1)
        weight = torch.zeros(3, 3, 3, 1, channels)
        weight[0, 1, 1, 0] = 1
        bias = torch.full((channels,), shift)
        size = (1, qkv.shape[2], 1, 1, channels, 1, 0, 1, 0.0, TYPES[dtype], 7)
        out = torch.empty_like(pixels, memory_format=torch.channels_last)
        maps = qkv.contiguous(memory_format=torch.channels_last)
        call("convattn_acmix_forward", Window(*size), maps, None, torch.zeros(channels), weight, bias, out)
        if PAIRS and dtype == torch.bfloat16:  # its instructions count subnormal numbers as zeros
            pixels = torch.where(pixels.abs() < torch.finfo(dtype).tiny, 0.0, pixels)
        expected = (pixels.float() + shift).to(dtype)
        around_nan = expected.isnan() | out.isnan()  # 0 times infinity in a neighbour's tap is NaN
        assert torch.equal(out[~around_nan], expected[~around_nan])
        assert bool(out[expected.isnan()].isnan().all())
        if shift:
            assert not around_nan.any()
