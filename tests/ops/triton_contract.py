"""What the Triton backend owes its users: ``test_triton.py`` runs this file under Triton's interpreter, or on a GPU.

The references and tolerances are those of ``test_contract.py``. On a GPU the eager backend is held to them too.
"""

import os
from itertools import product

import pytest
import torch

from convattn import ops
from convattn.ops import Neighborhood
from convattn.ops.acmix import triton as acmix_triton
from convattn.ops.acmix.inputs import AcmixInputs
from convattn.ops.attend import reference as attend_reference
from convattn.ops.attend import triton as attend_triton
from convattn.ops.pixel_shift import reference as pixel_shift_reference
from convattn.ops.pixel_shift import triton as pixel_shift_triton
from tests.ops.cases import (
    GEOMETRIES,
    HEAD_DIM,
    HEADS,
    OPERATORS,
    RESIZED_WINDOWS,
    WINDOWS,
    Acmix,
    Attend,
    Geometry,
    PixelShift,
    PixelShiftProduct,
    Recorder,
    WindowAttend,
    lay_out,
)
from tests.ops.test_contract import error, references, with_gradients

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ["triton", "eager"] if DEVICE.type == "cuda" else ["triton"]
if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.ops.interpreter import mend

    mend()

on_backends = pytest.mark.parametrize("backend", BACKENDS)
slow_in_the_interpreter = [pytest.mark.slow] if DEVICE.type == "cpu" else []


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    """A pixel that a kernel forgets to write shows as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _convolutions_in_float32(monkeypatch):
    """By default torch's convolutions take TF32 on a GPU, whose error is a thousand times larger."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Window(Attend):
    """``attend`` without tables, which the window kernels serve where the window is odd and square."""

    name = "window"

    @staticmethod
    def draw(geometry, generator):
        return Attend.draw(geometry, generator)[:3]

    @staticmethod
    def run(inputs, geometry, backend="auto"):
        return ops.attend(*inputs, geometry.neighborhood, num_heads=HEADS, backend=backend)

    @staticmethod
    def reference(inputs, geometry):
        return attend_reference.attend(*inputs, None, None, geometry.neighborhood, HEADS, HEAD_DIM**-0.5)


EVERY = [Window, *OPERATORS, PixelShift, PixelShiftProduct]


def by(operator, backend):
    """The operator on DEVICE by the backend named; the answer on the CPU."""
    return lambda inputs, geometry: operator.run([x.to(DEVICE) for x in inputs], geometry, backend).cpu()


FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
# What the gate runs under the interpreter; there everything else is slow.
GATE = {
    (Window, 1, FLOAT), (Window, 4, HALF),
    (WindowAttend, 3, BFLOAT),
    (Attend, 9, FLOAT), (Attend, 6, BFLOAT),
    *((operator, 9, FLOAT) for operator in OPERATORS[1:]),
    *((operator, 6, HALF) for operator in OPERATORS[1:]),
    (Acmix, 3, BFLOAT),
    (PixelShift, 3, FLOAT), (PixelShift, 5, FLOAT), (PixelShift, 6, HALF),
    (PixelShiftProduct, 4, FLOAT),
}  # fmt: skip
ACMIX = [operator for operator in (Acmix, *RESIZED_WINDOWS) if issubclass(operator, Acmix)]


def tiled(geometry):
    """Smaller maps have no tiles."""
    return min(geometry.height, geometry.width) > 4


NUMBERED = [
    *((operator, number, geometry) for operator in EVERY for number, geometry in enumerate(GEOMETRIES)),
    *((WindowAttend, number, geometry) for number, geometry in enumerate(WINDOWS)),
    *(
        (o, n, geometry)
        for o in ACMIX
        for n, geometry in enumerate(WINDOWS)
        if min(geometry.height, geometry.width) > 4
    ),
]
CASES = [
    pytest.param(
        operator,
        geometry,
        dtype,
        id=f"{operator.name}-{geometry}-{str(dtype).removeprefix('torch.')}",
        marks=[] if (operator, number, dtype) in GATE else slow_in_the_interpreter,
    )
    for operator, number, geometry in NUMBERED
    for dtype in (FLOAT, BFLOAT, HALF)
    if dtype == FLOAT
    or DEVICE.type == "cuda"
    or issubclass(operator, (Window, WindowAttend, *ACMIX))
    or number in (3, 6)
]


@on_backends
@pytest.mark.parametrize(("operator", "geometry", "dtype"), CASES)
def test_error_is_at_most_twice_that_of_plain_torch(operator, geometry, dtype, backend):
    draws = references(operator, geometry, dtype)
    layouts = ["contiguous", "channels_last", "strided"]
    ours = [
        with_gradients(by(operator, backend), [lay_out(x, layout) for x in inputs], geometry)
        for layout, (inputs, _, _) in zip(layouts, draws, strict=True)
    ]
    floor = max(x.pow(2).mean().sqrt() for _, true, _ in draws for x in true) / 5
    columns = (zip(*answers, strict=True) for answers in (ours, [t for _, t, _ in draws], [p for _, _, p in draws]))
    for got, true, plain in zip(*columns, strict=True):
        assert {g.dtype for g in got} == {dtype}
        assert [g.shape for g in got] == [t.shape for t in true]
        assert error(got, true, floor) <= 2 * max(error(plain, true, floor), torch.finfo(dtype).eps)


@on_backends
@pytest.mark.parametrize("operator", EVERY, ids=lambda o: o.name)
@pytest.mark.parametrize(
    "value",
    [float("nan"), *(pytest.param(x, marks=slow_in_the_interpreter) for x in (float("inf"), float("-inf")))],
)
def test_a_value_that_is_not_finite_stays_in_its_windows(operator, value, backend):
    geometry = Geometry(5, 6, 3)
    inputs = [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(0))]
    for spoiled in inputs[1:3] if issubclass(operator, Attend) else inputs[1:2]:
        given = [x.clone() for x in inputs]
        given[next(i for i, x in enumerate(inputs) if x is spoiled)][..., 2, 3] = value
        for got, true in zip(
            with_gradients(by(operator, backend), given, geometry),
            with_gradients(operator.reference, given, geometry),
            strict=True,
        ):
            assert torch.equal(got.isfinite(), true.isfinite())
            torch.testing.assert_close(got.nan_to_num(0, 0, 0), true.nan_to_num(0, 0, 0), rtol=1e-4, atol=1e-5)


QUICK = {(16, "zeros", 1), (20, "reflect", 2)}


@on_backends
@pytest.mark.parametrize(
    ("head_dim", "dtype", "border", "stride"),
    [
        pytest.param(*size, border, stride, marks=[] if (size[0], border, stride) in QUICK else slow_in_the_interpreter)
        for size in ((16, FLOAT), (20, BFLOAT), *product((32, 64, 128), (FLOAT, HALF, BFLOAT)))
        for border, stride in product(("reflect", "zeros"), (1, 2))
    ],
)
def test_window_kernels_of_every_head_dim(head_dim, dtype, border, stride, backend):
    nbhd = Neighborhood.window(7, stride=stride, border=border)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2 * head_dim, *size) for size in (nbhd.output_size(9, 13), (9, 13), (9, 13))]
    maps = [lay_out(torch.randn(s, generator=generator).to(dtype), "channels_last") for s in shapes]

    def answer(maps, backend):
        leaves = [x.to(DEVICE).requires_grad_() for x in maps]
        out = ops.attend(*leaves, nbhd, num_heads=2, backend=backend)
        ramp = torch.linspace(-1, 2, out.numel(), dtype=torch.float64, device=DEVICE).view(out.shape)
        return [out.detach(), *torch.autograd.grad(out, leaves, ramp.to(out.dtype))]

    for got, true in zip(answer(maps, backend), answer([x.double() for x in maps], "eager"), strict=True):
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert (got.double() - true).norm() <= 5 * torch.finfo(dtype).eps * true.norm()


@on_backends
@pytest.mark.parametrize("border", ["reflect", "zeros"])
@pytest.mark.parametrize("scale", [-0.7, 0.0])
def test_window_kernels_of_any_scale(scale, border, backend):
    """One below 0 turns the largest logit into the smallest; at 0 every position of a window counts the same."""
    nbhd = Neighborhood.window(5, border=border)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 32, 7, 6, generator=generator) for _ in range(3)]

    def answer(maps, backend):
        leaves = [x.to(DEVICE).requires_grad_() for x in maps]
        out = ops.attend(*leaves, nbhd, num_heads=2, scale=scale, backend=backend)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]

    for got, true in zip(answer(maps, backend), answer([x.double() for x in maps], "eager"), strict=True):
        torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-4)


@on_backends
@pytest.mark.parametrize("operator", EVERY, ids=lambda o: o.name)
def test_empty_batch(operator, backend):
    geometry = Geometry(7, 5, 3)
    drawn = [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(0))]
    inputs = [x[:0] if x.dim() >= 4 else x for x in drawn]
    _, *grads = with_gradients(by(operator, backend), inputs, geometry)
    for grad, x in zip(grads, inputs, strict=True):
        assert grad.shape == x.shape
        assert not grad.any()


@on_backends
@pytest.mark.parametrize("operator", EVERY, ids=lambda o: o.name)
def test_results_repeat_bit_by_bit(operator, backend):
    geometry = Geometry(7, 6, 3, stride=2)
    inputs = [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(0))]
    first, second = (with_gradients(by(operator, backend), inputs, geometry) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@on_backends
@pytest.mark.parametrize("heads", [1, 4])
def test_offsets_anywhere_and_heads_of_many_channels(heads, backend):
    star = Neighborhood(((0, 0), (-3, 1), (4, 0), (0, -5), (1, 1)), stride=(2, 1), border="zeros")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 136, h, 9, generator=generator) for h in (6, 11, 11))
    expected = ops.attend(q.double(), k.double(), v.double(), star, num_heads=heads, scale=0.1, backend="eager")
    got = ops.attend(*(x.to(DEVICE) for x in (q, k, v)), star, num_heads=heads, scale=0.1, backend=backend)
    torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-5, atol=1e-5)


@on_backends
@pytest.mark.parametrize(
    ("channels", "heads"),
    [
        (40, 5),
        (70, 70),
        *(pytest.param(*sizes, marks=slow_in_the_interpreter) for sizes in ((80, 1), (16, 2), (96, 3))),
    ],
)
@pytest.mark.parametrize(("stride", "border"), [((1, 2), "zeros"), (1, "replicate")])
def test_pixel_shift_attention_with_heads_of_any_size(channels, heads, stride, border, backend):
    nbhd = Neighborhood(((0, 0), (-1, -1), (3, 0), (-2, 5)), stride, border)
    generator, size = torch.Generator().manual_seed(0), (6, 5)
    shapes = [(2, channels, *nbhd.output_size(*size)), *[(2, channels, *size)] * 2, (len(nbhd), channels)]
    q, k, v, weight, bias = (torch.randn(s, generator=generator) for s in (*shapes, (heads, len(nbhd))))

    def answer(function, *given):
        leaves = [None if x is None else x.detach().requires_grad_() for x in given]
        out = function(*leaves)
        ramp = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
        found = torch.autograd.grad(out, [x for x in leaves if x is not None], ramp.to(out))
        return [x.cpu().double() for x in (out.detach(), *found)]

    def ours(q, k, v, weight, bias):
        return ops.pixel_shift_attention(q, k, v, weight, nbhd, num_heads=heads, bias=bias, backend=backend)

    def loops(*given):
        return pixel_shift_reference.pixel_shift_attention(*given, nbhd, heads)

    for given in ([q, k, v, weight, None], [q, k, None, weight, bias]):
        got = answer(ours, *(None if x is None else x.to(DEVICE) for x in given))
        true = answer(loops, *(None if x is None else x.double() for x in given))
        for a, b in zip(got, true, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_half_gradients_beyond_half_range_are_finite():
    """Loss scaling makes gradients large; a product of them that overflows float16 inside a kernel must not show."""
    nbhd = Neighborhood.window(3)
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 16, 6, 6, generator=generator).half().to(DEVICE).requires_grad_() for _ in range(3)]
    out = ops.attend(*leaves, nbhd, backend="triton", scale=1e-4)
    grads = torch.autograd.grad(out, leaves, torch.full_like(out, 3e4))
    assert all(grad.isfinite().all() for grad in grads)


def test_slices_of_one_projection_are_read_in_place(monkeypatch):
    copied = []
    contiguous = torch.Tensor.contiguous
    q, k, v = torch.randn(1, 3 * 32, 7, 6).contiguous(memory_format=torch.channels_last).to(DEVICE).chunk(3, 1)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x, **kw: copied.append(x.shape) or contiguous(x, **kw))
    inputs = attend_triton.AttendInputs(q, k, v, None, None, Neighborhood.window(5), 2, 0.25)
    assert attend_triton.window_radius(inputs) == 2
    attend_triton.attend(inputs)
    weight, nbhd = torch.randn(24, 32, device=DEVICE), Neighborhood.directions()
    shifted = pixel_shift_triton.PixelShiftInputs(q, k, v, weight, None, nbhd, 1)
    pixel_shift_triton.pixel_shift_attention_backward(pixel_shift_triton.pixel_shift_attention(shifted), shifted)
    assert all(len(shape) < 4 for shape in copied)


@pytest.mark.parametrize("operator", EVERY, ids=lambda o: o.name)
def test_schema_and_fake_agree_with_the_kernel(operator):
    geometry = Geometry(4, 5, 3, stride=2)
    drawn = operator.draw(geometry, torch.Generator().manual_seed(0))
    inputs = [lay_out(x.float(), "channels_last").to(DEVICE).requires_grad_() for x in drawn]
    calls = []
    with Recorder(calls):
        torch.autograd.grad(operator.run(inputs, geometry, "triton").sum(), inputs)
    assert len(calls) > 1
    for op, args in calls:
        detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in args]
        torch.library.opcheck(op, detached, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [((3, 3), 1, 1), ((3, 1), 2, 2), ((5, 7), 1, 1)])
@pytest.mark.parametrize("dtype", [FLOAT, BFLOAT, HALF], ids=str)
def test_acmix_prepared_and_its_sums_over_pixels(kernel, stride, dilation, dtype):
    """The same output where the weights' products are kept; the gradients of what acts on every pixel alike."""
    generator = torch.Generator().manual_seed(0)
    heads, channels, images, size = 2, 48, 3, (9, 7)
    shapes = [(3 * channels, 24, 1, 1), (3 * channels,), (channels // heads, 2)]
    shapes += [(3 * heads, *kernel, heads, channels // heads), (1,), (channels,)]
    tables = [torch.randn(shape, generator=generator).to(dtype).float() * 0.3 for shape in shapes]
    x = torch.randn(images, 24, *size, generator=generator).to(dtype).float()
    nbhd = Neighborhood.window(5, stride=stride)

    def run(kind, device, backend):
        given = [t.to(device, kind).requires_grad_() for t in (x, *tables)]
        out = ops.acmix(*given, nbhd=nbhd, num_heads=heads, dilation=dilation, backend=backend)
        ramp = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(device, kind)
        grads = torch.autograd.grad(out, given, ramp)
        return [t.detach().double().cpu() for t in (out, *grads)], given

    (true, _), (got, given) = run(torch.float64, "cpu", "eager"), run(dtype, DEVICE, "triton")
    bound = 3e-6 if dtype == FLOAT else 6 * torch.finfo(dtype).eps
    for number, (a, b) in enumerate(zip(got, true, strict=True)):
        assert (a - b).norm() < bound * b.norm(), number
    inputs = AcmixInputs(*(t.detach() for t in given), nbhd, heads, (dilation, dilation), "none")
    kept, call = acmix_triton.prepare(inputs), acmix_triton.acmix(inputs)[0]
    assert torch.equal(kept(inputs.x), call)
    other = torch.randn_like(inputs.x)
    assert torch.equal(kept(other), acmix_triton.acmix(inputs._replace(x=other))[0])


@pytest.mark.parametrize("shape", [(0, 8, 9, 7), (2, 8, 3, 2)], ids=str)
def test_acmix_prepared_for_maps_that_the_kernels_do_not_serve(shape):
    x, weight = torch.randn(shape, device=DEVICE), torch.randn(6, 3, 3, 2, 4, device=DEVICE)
    tables = torch.randn(24, 8, 1, 1, device=DEVICE), None, None, weight, torch.ones(1, device=DEVICE), None
    inputs = AcmixInputs(x, *tables, Neighborhood.window(7), 2, (1, 1), "relu")
    expected = ops.acmix(x, *tables, nbhd=inputs.nbhd, num_heads=2, backend="eager").relu()
    torch.testing.assert_close(acmix_triton.prepare(inputs)(x), expected, rtol=1e-4, atol=1e-5)
