"""What every operator owes its users, over dtypes, layouts and geometries, against the float64 reference."""

from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convattn import ops
from convattn.ops import Neighborhood, aggregate, attend, backends, correlate
from convattn.ops.attend import eager, reference
from tests.ops.cases import (
    GEOMETRIES,
    OPERATORS,
    RESIZED,
    RESIZED_WINDOWS,
    WINDOW_OPERATORS,
    WINDOWS,
    X_VOLUTION_OPERATORS,
    Acmix,
    Attend,
    DynamicConv,
    Geometry,
    GroupConvolution,
    OffsetConvolution,
    Recorder,
    WindowAttend,
    lay_out,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels_last", "strided"]
# The kernels for a GPU have a test of their own, in an interpreter of their own.
BACKENDS = [name for name, reasons in backends()["attend"].items() if name != "triton" and not reasons]
OF_TORCH = "portable"  # like DynamicConv made of torch's operators: none of ours is called
FROM_ONE_MAP = (Acmix, GroupConvolution, OffsetConvolution)  # all else that they take is parameters
EVERY_OPERATOR = [*OPERATORS, *X_VOLUTION_OPERATORS, *WINDOW_OPERATORS]
EVERYTHING = [
    *((operator, geometry) for operator in OPERATORS for geometry in GEOMETRIES),
    *((operator, geometry) for operator in X_VOLUTION_OPERATORS[:-1] for geometry in GEOMETRIES),
    *((DynamicConv, geometry) for geometry in GEOMETRIES if geometry.height < 17),  # its reference is slow
    *((operator, geometry) for operator in WINDOW_OPERATORS for geometry in WINDOWS),
]
OTHER_DIMENSIONS = [
    *((operator, geometry) for operator in RESIZED for geometry in (GEOMETRIES[1], GEOMETRIES[6])),
    *((operator, geometry) for operator in RESIZED_WINDOWS for geometry in (WINDOWS[1], Geometry(3, 5, 7))),
    *((operator, geometry) for operator in RESIZED_WINDOWS[:3] for geometry in WINDOWS[6:8]),
]


def backends_of(operator):
    """Those among them that the operator has; ``eager`` stands for an operator that has none to choose from."""
    named = backends().get(operator.name.split("-")[0], {"eager": []})
    return [name for name in BACKENDS if name in named]


RUNS = [(operator, backend) for operator in EVERY_OPERATOR for backend in backends_of(operator)]


def one_backend_each(runs):
    """The runs as parameters: of each operator one is quick, by another backend than that of the operator before."""
    backends = {operator: [b for o, b in runs if o is operator] for operator, _ in runs}
    quick = {(operator, names[place % len(names)]) for place, (operator, names) in enumerate(backends.items())}
    return [pytest.param(*run, marks=() if run in quick else pytest.mark.slow) for run in runs]


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan():
    """A pixel that a kernel forgets to write shows as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def with_gradients(function, inputs, geometry, *options):
    """Output and the gradients of all inputs under a fixed weighting of the output."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(leaves, geometry, *options)
    ramp = torch.linspace(-1, 2, max(out.numel(), 1), dtype=torch.float64)[: out.numel()].view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, ramp.to(out.dtype))]


@cache
def references(operator, geometry, dtype):
    """For three draws: the inputs in ``dtype``, the float64 answer and plain torch's answer in ``dtype``."""
    found = []
    for seed in range(3):
        rounded = [x.to(dtype) for x in operator.draw(geometry, torch.Generator().manual_seed(seed))]
        true = with_gradients(operator.reference, [x.double() for x in rounded], geometry)
        found.append((rounded, true, with_gradients(operator.reference, rounded, geometry)))
    return found


def error(got, true, floor):
    """Root mean square over all draws, relative to the answer's; one that cancels is measured against ``floor``."""
    size = torch.cat([t.flatten() for t in true]).pow(2).mean().sqrt()
    off = torch.cat([(g.double() - t).flatten() for g, t in zip(got, true, strict=True)])
    return (off.pow(2).mean().sqrt() / size.clamp(min=floor)).item()


MATRIX = [
    (operator, geometry, backend, dtype, layout)
    for operator, geometry in EVERYTHING
    for backend, dtype, layout in product(backends_of(operator), DTYPES, LAYOUTS)
]


def products(geometry):
    """How many pairs of pixels the reference multiplies: beyond some thousand it takes seconds in each dtype."""
    out = geometry.neighborhood.output_size(geometry.height, geometry.width)
    return out[0] * out[1] * len(geometry.neighborhood)


SMALL, LARGE = {}, {}
for operator, geometry in EVERYTHING:
    (SMALL if products(geometry) <= 1500 else LARGE).setdefault(operator, []).append(geometry)


def is_quick(operator, geometry, backend, dtype, layout):
    """Two small maps for each operator and dtype by all backends, others for another dtype; of the large ones one."""
    if geometry in LARGE.get(operator, []):
        return geometry is LARGE[operator][0] and (dtype, layout) == (torch.float32, "strided")
    number, small = DTYPES.index(dtype), SMALL[operator]
    first = EVERY_OPERATOR.index(operator) + 2 * number
    chosen = [small[(first + n) % len(small)] for n in (0, 1)]
    return geometry in chosen and layout == LAYOUTS[(number + chosen.index(geometry)) % len(LAYOUTS)]


SAMPLE = [pytest.param(*case, marks=() if is_quick(*case) else pytest.mark.slow) for case in MATRIX]


@pytest.mark.parametrize(
    ("operator", "geometry", "backend", "dtype", "layout"),
    SAMPLE,
    ids=lambda x: getattr(x, "name", str(x).removeprefix("torch.")),
)
def test_error_is_at_most_twice_that_of_plain_torch(operator, geometry, backend, dtype, layout):
    if backend == "native" and dtype == torch.float64:
        pytest.skip("the CPU kernels compute in float32")
    compare_with_plain_torch(operator, geometry, dtype, layout, backend)


def test_the_sample_has_every_operator_by_every_backend_in_every_dtype_and_layout():
    quick = [case.values for case in SAMPLE if not case.marks]
    assert {(o, b, d) for o, _, b, d, _ in quick} == {(o, b, d) for o, _, b, d, _ in MATRIX}
    assert {(o, layout) for o, *_, layout in quick} == {(o, layout) for o, *_, layout in MATRIX}


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize(
    ("operator", "geometry", "backend"),
    [(*case, backend) for case in OTHER_DIMENSIONS for backend in backends_of(case[0])],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_error_where_other_dimensions_are_the_larger(operator, geometry, layout, backend):
    compare_with_plain_torch(operator, geometry, torch.float32, layout, backend)


def compare_with_plain_torch(operator, geometry, dtype, layout, backend):
    draws = references(operator, geometry, dtype)
    ours = [
        with_gradients(operator.run, [lay_out(x, layout) for x in inputs], geometry, backend) for inputs, _, _ in draws
    ]
    rounding = 1e-13 if dtype == torch.float64 else torch.finfo(dtype).eps
    floor = max(x.pow(2).mean().sqrt() for _, true, _ in draws for x in true) / 5
    columns = (zip(*answers, strict=True) for answers in (ours, [t for _, t, _ in draws], [p for _, _, p in draws]))
    for got, true, plain in zip(*columns, strict=True):
        assert {g.dtype for g in got} == {dtype}
        assert [g.shape for g in got] == [t.shape for t in true]
        assert error(got, true, floor) <= 2 * max(error(plain, true, floor), rounding)


@pytest.mark.parametrize("operator", [*OPERATORS, *X_VOLUTION_OPERATORS, Acmix, GroupConvolution], ids=lambda o: o.name)
@pytest.mark.parametrize(
    "geometry", [Geometry(3, 2, 3, stride=2), pytest.param(Geometry(1, 2, (1, 3)), marks=pytest.mark.slow)], ids=str
)
def test_gradcheck_to_second_order(operator, geometry):
    inputs = [x.requires_grad_() for x in operator.draw(geometry, torch.Generator().manual_seed(1))]
    assert torch.autograd.gradcheck(lambda *xs: operator.run(xs, geometry), inputs)
    assert torch.autograd.gradgradcheck(lambda *xs: operator.run(xs, geometry), inputs, fast_mode=True)


@pytest.mark.parametrize(("operator", "backend"), RUNS, ids=lambda x: getattr(x, "name", x))
def test_output_keeps_channels_last(operator, backend):
    geometry = Geometry(7, 6, 7, stride=2)
    drawn = operator.draw(geometry, torch.Generator().manual_seed(0))
    inputs = [lay_out(x.float(), "channels_last") for x in drawn]
    out = operator.run(inputs, geometry, backend)
    assert out.dim() == 5 or out.is_contiguous(memory_format=torch.channels_last)
    if operator is Attend:
        leaves = [x.requires_grad_() for x in inputs]
        for grad in torch.autograd.grad(operator.run(leaves, geometry).sum(), leaves[:3]):
            assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("operator", "backend"), RUNS, ids=lambda x: getattr(x, "name", x))
def test_empty_batch(operator, backend):
    geometry = Geometry(5, 4, 7)
    drawn = [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(0))]
    batched = [x.dim() >= 4 and (operator not in FROM_ONE_MAP or i == 0) for i, x in enumerate(drawn)]
    inputs = [x[:0] if whole else x for x, whole in zip(drawn, batched, strict=True)]
    out, *grads = with_gradients(operator.run, inputs, geometry, backend)
    assert out.shape == operator.run(drawn, geometry, backend)[:0].shape
    for grad, x in zip(grads, inputs, strict=True):
        assert grad.shape == x.shape
        assert not grad.any()


# A product of matrices carries 0 * NaN to the other queries of a tile, and an exported program cannot look for it.
STAYS = [(o, b) for o, b in RUNS if b != OF_TORCH or o not in (Attend, WindowAttend, Acmix)]


@pytest.mark.parametrize(("operator", "backend"), one_backend_each(STAYS), ids=lambda x: getattr(x, "name", x))
@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_a_value_that_is_not_finite_stays_in_its_windows(operator, value, backend):
    geometry = Geometry(18, 19, 7) if operator in WINDOW_OPERATORS else Geometry(12, 11, 3)
    dtype = torch.float32 if backend == "native" else torch.float64
    inputs = [x.to(dtype) for x in operator.draw(geometry, torch.Generator().manual_seed(0))]
    inputs[0 if operator in FROM_ONE_MAP else 1][..., 2, 3] = value
    for got, true in zip(
        with_gradients(operator.run, inputs, geometry, backend),
        with_gradients(operator.reference, inputs, geometry),
        strict=True,
    ):
        assert torch.equal(got.isfinite(), true.isfinite())
        rounding = {"rtol": 1e-4, "atol": 1e-4} if backend == "native" else {}
        torch.testing.assert_close(got.nan_to_num(0, 0, 0), true.nan_to_num(0, 0, 0), **rounding)


@pytest.mark.parametrize(
    ("operator", "backend"),
    one_backend_each([(o, b) for o, b in RUNS if o is not DynamicConv and b != OF_TORCH]),
    ids=lambda x: getattr(x, "name", x),
)
@pytest.mark.parametrize("layout", ["contiguous", pytest.param("channels_last", marks=pytest.mark.slow)])
def test_schema_fake_and_autograd_agree_with_the_kernel(operator, layout, backend):
    geometry = Geometry(5, 6, 7, stride=2)
    drawn = operator.draw(geometry, torch.Generator().manual_seed(0))
    inputs = [lay_out(x.float(), layout).requires_grad_() for x in drawn]
    calls = []
    with Recorder(calls):
        torch.autograd.grad(operator.run(inputs, geometry, backend).sum(), inputs)
    assert calls
    for op, args in calls:
        clones = [a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
        torch.library.opcheck(op, clones)


@pytest.mark.parametrize("operator", EVERY_OPERATOR, ids=lambda o: o.name)
def test_the_portable_form_calls_no_operator_of_ours(operator):
    inputs = [x.float().requires_grad_() for x in operator.draw(Geometry(5, 6, 7), torch.Generator().manual_seed(0))]
    calls = []
    with Recorder(calls):
        torch.autograd.grad(operator.run(inputs, Geometry(5, 6, 7), OF_TORCH).sum(), inputs)
        with ops.backend(OF_TORCH):
            torch.autograd.grad(operator.run(inputs, Geometry(5, 6, 7)).sum(), inputs)
    assert not calls


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    border=st.sampled_from(["reflect", "zeros", "replicate"]),
    seed=st.integers(0, 1000),
)
def test_attend_on_any_shape(height, width, kernel, stride, dilation, border, seed):
    geometry = Geometry(height, width, kernel, stride, dilation, border)
    inputs = Attend.draw(geometry, torch.Generator().manual_seed(seed))
    composed = torch.softmax(_logits(inputs, geometry), 2)
    nbhd = geometry.neighborhood
    torch.testing.assert_close(
        Attend.run(inputs, geometry), aggregate(composed, inputs[2], nbhd), rtol=1e-10, atol=1e-10
    )


def _logits(inputs, geometry):
    q, k, _, bias, key_offsets = inputs
    by_head = q.unflatten(1, key_offsets.shape[::2])
    toward = torch.einsum("bnchw,nmc->bnmhw", by_head, key_offsets)
    logits = correlate(q, k, geometry.neighborhood, num_heads=len(key_offsets)) + toward
    return logits * key_offsets.shape[2] ** -0.5 + bias[..., None, None]


def test_any_list_of_offsets():
    star = Neighborhood(((0, 0), (-3, 1), (4, 0), (0, -5), (1, 1)), stride=(2, 1), border="zeros")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, h, 9, generator=generator, dtype=torch.float64) for h in (6, 11, 11))
    expected = reference.attend(q, k, v, None, None, star, 2, 0.7)
    torch.testing.assert_close(attend(q, k, v, star, num_heads=2, scale=0.7), expected)


def test_large_map_is_cut_into_several_steps(monkeypatch):
    geometry = Geometry(23, 21, 3)
    inputs = Attend.draw(geometry, torch.Generator().manual_seed(0))
    whole = with_gradients(Attend.run, inputs, geometry)
    monkeypatch.setattr(eager, "working_set_bytes", lambda device: 1)
    for got, expected in zip(with_gradients(Attend.run, inputs, geometry), whole, strict=True):
        torch.testing.assert_close(got, expected)


def test_third_derivative_exists():
    nbhd = Neighborhood.window((1, 3))
    q, k, v = torch.randn(3, 1, 2, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def second(q):
        (first,) = torch.autograd.grad(attend(q, k, v, nbhd).pow(2).sum(), q, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), q, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, q.requires_grad_())
