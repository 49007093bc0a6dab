"""What reaches the kernels: every tensor checked, every size and geometry either right or refused by name."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from convattn.ops import (
    Neighborhood,
    _native,
    acmix,
    aggregate,
    attend,
    correlate,
    dynamic_conv,
    group_convolution,
    offset_convolution,
    pixel_shift_attention,
    scatter,
    shift,
    shift_aggregate,
)
from convattn.ops._checks import flat
from tests.ops.cases import (
    Acmix,
    Aggregate,
    Attend,
    Correlate,
    Geometry,
    GroupConvolution,
    OffsetConvolution,
    PixelShift,
    Recorder,
    Scatter,
    WindowAttend,
)

OPERATORS = [
    Attend,
    WindowAttend,
    Correlate,
    Aggregate,
    Scatter,
    PixelShift,
    OffsetConvolution,
    GroupConvolution,
    Acmix,
]
GEOMETRY = Geometry(5, 6, 7)
WINDOW = Neighborhood.window(3)
needs_kernels = pytest.mark.skipif(bool(_native.reasons()), reason=f"no CPU kernels here: {_native.reasons()}")


def drawn(operator, geometry=GEOMETRY):
    return [x.float() for x in operator.draw(geometry, torch.Generator().manual_seed(0))]


def freed(x):
    """A tensor whose storage was given back, as sharding leaves it."""
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


EVERY_TENSOR = [(operator, place) for operator in OPERATORS for place in range(len(drawn(operator)))]


@pytest.mark.parametrize(("operator", "place"), EVERY_TENSOR, ids=lambda x: getattr(x, "name", str(x)))
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.to("meta"), "on one device, got|must be on"),
        (freed, "its storage holds 0"),
        (lambda x: x.to(torch.int32), "must be floating point|must have one dtype"),
        (lambda x: x[:, :-1] if x.dim() == 4 else x[..., :-1], "must"),
    ],
    ids=["meta", "freed", "integers", "shorter"],
)
def test_no_tensor_is_taken_on_trust(operator, place, grad, spoil, message):
    inputs = drawn(operator)
    inputs[place] = spoil(inputs[place])
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=message):
        operator.run([x.requires_grad_() if grad and x.is_floating_point() else x for x in inputs], GEOMETRY)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)
def test_the_operators_of_torch_check_what_they_are_given_too(operator):
    """Each call that a forward and a backward pass make, with one of its tensors elsewhere, gone or of other sizes."""
    calls = []
    with Recorder(calls):
        out = operator.run([x.requires_grad_() for x in drawn(operator)], GEOMETRY)
        out.sum().backward()
    assert calls
    for op, given in calls:
        args = [a.detach() if isinstance(a, torch.Tensor) else a for a in given]
        for place, value in enumerate(args):
            if isinstance(value, torch.Tensor) and value.numel():
                shorter = value[:, :-1] if value.dim() == 4 else value[..., :-1]
                for spoiled in (shorter, value.to("meta"), freed(value)):
                    with pytest.raises(ValueError):  # noqa: PT011 - the messages are read above
                        op(*args[:place], spoiled, *args[place + 1 :])


MAP = torch.randn(1, 4, 5, 5)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        (([0, 1, 2], [1, 1], "zeros"), "pairs dy, dx"),
        (([0, 1], [1], "zeros"), "stride must be"),
        (([0, 1], [1, 0], "zeros"), "stride must be"),
        (([0, 1], [1, 1], "wrap"), "border must be one of"),
        (([], [1, 1], "zeros"), "at least one offset"),
        (([2**31, 0], [1, 1], "zeros"), "within 2147483647 pixels"),
    ],
)
def test_a_geometry_given_to_torchs_operator_is_checked(geometry, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.convattn.attend(MAP, MAP, MAP, None, None, *geometry, 1, 1.0, "auto")


def test_offsets_are_integers():
    assert Neighborhood(((np.int64(1), torch.tensor(-2)),)).offsets == ((1, -2),)
    for offsets in (((0.7, 0),), ((1.0, 0),), (("1", 0),), ((1, 2, 3),), (3,)):
        with pytest.raises(ValueError, match=r"pair of integers \(dy, dx\), got"):
            Neighborhood(offsets)
    for far in (2**31, 2**32, 10**400):
        with pytest.raises(ValueError, match="must lie within 2147483647 pixels"):
            Neighborhood(((0, -far),))
        with pytest.raises(ValueError, match="stride must be an integer"):
            Neighborhood.window(3, stride=far)


EMPTY = torch.empty(1, 0, 4, 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: attend(EMPTY, EMPTY, EMPTY, WINDOW),
        lambda: correlate(EMPTY, EMPTY, WINDOW),
        lambda: aggregate(torch.empty(1, 1, 9, 4, 4), EMPTY, WINDOW),
        lambda: scatter(torch.empty(0, 1, 9, 4, 4), EMPTY[:0], WINDOW, (4, 4)),
        lambda: pixel_shift_attention(EMPTY, EMPTY, None, torch.empty(9, 0), WINDOW),
        lambda: group_convolution(EMPTY, torch.empty(0, 3, 3, 1, 2)),
        lambda: offset_convolution(EMPTY, torch.empty(1, 0, 2), WINDOW),
        lambda: dynamic_conv(EMPTY, torch.empty(1, 2, 0, 9, 4, 4), WINDOW),
        lambda: acmix(EMPTY, torch.empty(96, 0, 1, 1), None, None, torch.empty(6, 3, 3, 2, 16), torch.ones(1),
                      nbhd=Neighborhood.window(7), num_heads=2),
    ],
)  # fmt: skip
def test_a_map_without_channels_is_refused(call):
    with pytest.raises(ValueError, match="must have at least one channel, got"):
        call()


def test_a_kernel_without_outputs_is_refused():
    x = torch.randn(1, 6, 4, 4)
    with pytest.raises(ValueError, match=r"weight must be \[T, kh, kw, N, d\]"):
        group_convolution(x, torch.empty(3, 3, 3, 0, 2))
    with pytest.raises(ValueError, match=r"weight must be \[G, 54, V\]"):
        offset_convolution(x, torch.empty(0, 54, 2), WINDOW)


# --- geometry far beyond the map --------------------------------------------------------------------------------------

FAR_OFFSETS = ((0, 0), (10**8, 1), (-(10**9), 0), (2**31 - 1, -(2**31) + 1), (1, 10**8 + 1), (-70, 65), (3, -2))


@pytest.mark.parametrize("border", ["reflect", "zeros", "replicate"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 4), (7, 90)])
@pytest.mark.parametrize("stride", [1, (2, 10**6), 2**31 - 1])
def test_a_neighbourhood_on_a_map_reads_the_same_pixels(border, size, stride):
    whole = Neighborhood(FAR_OFFSETS, stride=stride, border=border)
    near = whole.on_map(*size)
    assert near.output_size(*size) == whole.output_size(*size)
    assert near.farthest <= 2 * (max(size) + 64)
    for axis, (length, out) in enumerate(zip(size, whole.output_size(*size), strict=True)):
        for far, found in zip(whole.offsets, near.offsets, strict=True):
            positions = [torch.arange(out) * n.stride[axis] + o[axis] for n, o in ((whole, far), (near, found))]
            assert torch.equal(*(whole.sources(p, length) for p in positions))


@pytest.mark.parametrize("border", ["reflect", "zeros", "replicate"])
@pytest.mark.parametrize("stride", [1, 2**31 - 1])
@pytest.mark.parametrize("backend", ["native", "eager"])
def test_far_offsets_and_strides_give_what_near_ones_do(border, stride, backend):
    if backend == "native" and _native.reasons():
        pytest.skip(f"no CPU kernels here: {_native.reasons()}")
    far = Neighborhood(FAR_OFFSETS, stride=stride, border=border)
    near = Neighborhood(far.on_map(5, 6).offsets, stride=min(stride, 6), border=border)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, requires_grad=True)

    k, v, out = draw(1, 4, 5, 6), draw(1, 4, 5, 6), far.output_size(5, 6)
    q, taps = draw(1, 4, *out), len(far)
    weights, table, matrix = draw(1, 2, taps, *out), draw(taps, 4), draw(1, taps * 4, 3)
    calls = {
        "attend": (lambda n, *xs: attend(*xs, n, num_heads=2, backend=backend), (q, k, v)),
        "correlate": (lambda n, *xs: correlate(*xs, n, num_heads=2, backend=backend), (q, k)),
        "aggregate": (lambda n, *xs: aggregate(*xs, n, backend=backend), (weights, v)),
        "scatter": (lambda n, *xs: scatter(*xs, n, (5, 6), backend=backend), (weights, q)),
        "pixel_shift": (lambda n, *xs: pixel_shift_attention(*xs, n, num_heads=2, backend=backend), (q, k, v, table)),
        "offset_convolution": (lambda n, x, w: offset_convolution(x, w, n, backend=backend), (k, matrix)),
        "dynamic_conv": (lambda n, x: dynamic_conv(x, torch.ones(1, 2, 4, taps, 1, 1), n), (k,)),
    }
    for call, inputs in calls.values():
        answers = []
        for nbhd in (far, near):
            y = call(nbhd, *inputs)
            answers.append([y, *torch.autograd.grad(y, inputs, torch.ones_like(y))])
        for got, expected in zip(*answers, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_far_steps_of_a_convolution_leave_its_centre():
    x, weight = torch.randn(1, 6, 5, 4), torch.randn(3, 3, 3, 1, 2)
    centre = torch.einsum("btghw,tg->bghw", x.unflatten(1, (3, 2)), weight[:, 1, 1, 0])
    far = 2**31 - 1
    torch.testing.assert_close(group_convolution(x, weight, dilation=far), centre)
    torch.testing.assert_close(group_convolution(x, weight, stride=far, dilation=far), centre[..., :1, :1])
    for form in ("tensor", "depthwise", "grouped"):
        summed = shift_aggregate(x.repeat(1, 9, 1, 1)[:, :9], 3, dilation=far, form=form)
        torch.testing.assert_close(summed, x.repeat(1, 9, 1, 1)[:, 4:5])
    assert not shift(x, far, 0).any()
    assert not shift(x, 1, -far).any()


# --- sizes that 32 bits do not count ----------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("operator", [Attend, WindowAttend, Aggregate, Correlate, PixelShift, OffsetConvolution])
def test_a_map_spread_over_more_than_two_thousand_million_numbers(operator):
    """Two pixels of a row 2^31 numbers and more apart, as in a slice of a large tensor; the memory is never touched."""
    geometry = Geometry(2, 3, 7)
    inputs = drawn(operator, geometry)
    expected = operator.run(inputs, geometry, "native")
    place = 0 if operator is OffsetConvolution else 1
    near = inputs[place]
    channels = near.shape[1]
    room = torch.empty(2 * 2**30 + 2 * 2**20 + 64 * channels)
    wide = room.as_strided(near[:1].shape, (0, 1, 2**10 * channels, 2**30))
    with torch.no_grad():
        inputs = [x[:1] if x.shape[0] == near.shape[0] and x.dim() >= 4 else x for x in inputs]
        inputs[place] = wide.copy_(near[:1])
        torch.testing.assert_close(operator.run(inputs, geometry, "native"), expected[:1])


@needs_kernels
def test_group_convolution_of_a_map_spread_as_far():
    x, weight = torch.randn(1, 6, 2, 3), torch.randn(3, 3, 3, 1, 2)
    room = torch.empty(2**31 + 2**20)
    with torch.no_grad():
        wide = room.as_strided(x.shape, (0, 1, 64, 2**30)).copy_(x)
        torch.testing.assert_close(
            group_convolution(wide, weight, backend="native"), group_convolution(x, weight, backend="eager")
        )


def test_a_size_beyond_the_kernels_is_said_and_left_to_another_form():
    huge = torch.empty(1, 1, 1, 1).expand(2**27, 1, 1, 1)
    reasons = "cannot run here: .*takes sizes below 134217728, got"
    weight = torch.ones(1, 1, 1)
    with pytest.raises(ValueError, match=reasons):
        offset_convolution(huge, weight, Neighborhood(((0, 0),)), backend="native")
    with pytest.raises(ValueError, match=reasons):
        attend(huge, huge, huge, WINDOW, backend="native")
    with pytest.raises(ValueError, match=reasons):
        scatter(torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1), Neighborhood(((0, 0),), stride=2**30), (1, 2**28),
                backend="native")  # fmt: skip


@needs_kernels
@pytest.mark.slow
def test_more_rows_than_32_bits_count():
    """Batch times rows of outputs from 2^31 on; eight gigabytes of output."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < 12 << 30:
        pytest.skip(f"needs 12 GiB of free memory, {available >> 30} GiB are there")
    x = torch.ones(1, 1, 1, 1).expand(2**16, 1, 2**15, 1)
    with torch.no_grad():
        out = offset_convolution(x, torch.full((1, 1, 1), 3.0), Neighborhood(((0, 0),)), backend="native")
    assert torch.equal(out[:: 2**8, :, :: 2**7], torch.full((2**8, 1, 2**8, 1), 3.0))
    assert (out[-1, 0, -1, 0], out.numel()) == (3.0, 2**31)


@needs_kernels
def test_too_little_memory_is_an_error_and_not_the_end_of_the_process():
    script = """
        import resource, torch
        from convattn.ops import Neighborhood, attend, pixel_shift_attention
        torch.set_num_threads(2)
        far = Neighborhood(((0, 0), (127, 0), (-127, 0), (0, 127), (0, -127)), border="replicate")
        x = torch.randn(1, 256, 64, 64)
        attend(x[..., :8, :8], x[..., :8, :8], x[..., :8, :8], far)  # what loads at first use is loaded
        held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (24 << 20), -1))
        for _ in range(2):
            try:
                attend(x, x, x, far, backend="native")
            except MemoryError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        y, z = attend(x, x, x, far, backend="native"), attend(*[x.double()] * 3, far, backend="eager")
        print(bool((y - z).abs().max() < 1e-4))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    message = "convattn_attend had not enough memory; give it fewer images or a smaller map at a time"
    assert (done.returncode, done.stdout.splitlines()) == (0, [message, message, "True"]), done.stderr[-2000:]


def test_a_neighbourhood_that_torch_ops_take_is_the_one_given():
    nbhd = Neighborhood(FAR_OFFSETS, stride=(2, 3), border="zeros")
    assert flat(nbhd)[0] == [value for offset in FAR_OFFSETS for value in offset]
