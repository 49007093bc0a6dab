"""Pixel-shift attention over X-volution's offsets: every reading, any size, in memory that does not know of offsets."""

import itertools

import pytest
import torch

from convattn.ops import Neighborhood, aggregate, backends, correlate, pixel_shift_attention
from convattn.ops.pixel_shift import eager, reference

CHANNELS = 6
READINGS = list(itertools.product([1, 2, CHANNELS], ["value", "product"], ["bias", "no bias"]))


def draw(nbhd, heads, reading="value", bias="bias", size=(5, 4), batch=2, seed=0, **options):
    """q, k, v, weight and bias; None for what the reading lacks."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(**options)

    q = normal(batch, CHANNELS, *nbhd.output_size(*size))
    k, v = normal(batch, CHANNELS, *size), normal(batch, CHANNELS, *size)
    weight, table = normal(len(nbhd), CHANNELS), normal(heads, len(nbhd))
    return [q, k, v if reading == "value" else None, weight, table if bias == "bias" else None]


def run(inputs, nbhd, heads):
    *others, bias = inputs
    return pixel_shift_attention(*others, nbhd, num_heads=heads, bias=bias)


def with_gradients(function, inputs, nbhd, heads):
    leaves = [x if x is None else x.detach().requires_grad_() for x in inputs]
    out = function(leaves, nbhd, heads)
    ramp = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
    present = [x for x in leaves if x is not None]
    return [out.detach(), *torch.autograd.grad(out, present, ramp, materialize_grads=True)]


def loops(inputs, nbhd, heads):
    return reference.pixel_shift_attention(*inputs, nbhd, heads)


def assert_as_the_loops(inputs, nbhd, heads):
    expected = with_gradients(loops, inputs, nbhd, heads)
    for got, true in zip(with_gradients(run, inputs, nbhd, heads), expected, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(run(inputs, nbhd, heads), expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("heads", "reading", "bias"), READINGS)
def test_output_and_gradients_are_those_of_a_loop_over_pixels(heads, reading, bias, stride):
    nbhd = Neighborhood.directions(stride=stride)
    for size in [(7, 6), (3, 2)]:
        assert_as_the_loops(draw(nbhd, heads, reading, bias, size), nbhd, heads)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 1), (2, 3)])
def test_a_map_smaller_than_the_offsets(size):
    nbhd = Neighborhood.directions((1, 3, 5, 12))
    assert_as_the_loops(draw(nbhd, 2, size=size), nbhd, 2)


@pytest.mark.parametrize("border", ["zeros", "reflect", "replicate"])
def test_any_offsets_strides_and_border(border):
    nbhd = Neighborhood(((0, 0), (-3, 1), (4, 0), (0, -5), (1, 1)), stride=(2, 3), border=border)
    assert_as_the_loops(draw(nbhd, 3, size=(8, 7)), nbhd, 3)


def run_natively(inputs, nbhd, heads):
    *others, bias = inputs
    return pixel_shift_attention(*others, nbhd, num_heads=heads, bias=bias, backend="native")


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def threads(request):
    """Fewer than images and heads, or more: the kernels then share out rows and channels."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(bool(backends()["pixel_shift_attention"]["native"]), reason="no CPU kernels here")
@pytest.mark.parametrize("channels", [80, 37, 16])
@pytest.mark.parametrize("border", ["zeros", "replicate"])
@pytest.mark.parametrize("stride", [1, (2, 3)])
def test_native_kernels_with_heads_of_any_size(channels, border, stride, threads):
    nbhd = Neighborhood((*Neighborhood.directions((1, 3)).offsets, (0, 0), (9, 2)), stride, border)
    size, generator = (6, 5), torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    q, k, v = normal(2, channels, *nbhd.output_size(*size)), normal(2, channels, *size), normal(2, channels, *size)
    q, k, v = (x.contiguous(memory_format=torch.channels_last) for x in (q, k, v))
    for heads in (n for n in (1, 2, 5, 8, channels) if channels % n == 0):
        weight, table = normal(len(nbhd), channels), normal(heads, len(nbhd))
        for values, bias in itertools.product((v, None), (table, None)):
            given = [q, k, values, weight, bias]
            found = with_gradients(run_natively, given, nbhd, heads)
            exact = with_gradients(loops, [None if x is None else x.double() for x in given], nbhd, heads)
            for got, true in zip(found, exact, strict=True):
                torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-4)
            assert all(x.is_contiguous(memory_format=torch.channels_last) for x in found[:3])


@pytest.mark.skipif(bool(backends()["pixel_shift_attention"]["native"]), reason="no CPU kernels here")
def test_native_gradients_do_not_depend_on_how_the_work_is_shared():
    nbhd, generator, before = Neighborhood.directions(), torch.Generator().manual_seed(0), torch.get_num_threads()
    qkv = torch.randn(1, 48, 60, 50, generator=generator).contiguous(memory_format=torch.channels_last)
    inputs = [*qkv.split(16, 1), torch.randn(24, 16, generator=generator), torch.randn(1, 24, generator=generator)]
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(with_gradients(run_natively, inputs, nbhd, 1))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other[1:], found[0][1:]))


@pytest.mark.skipif(bool(backends()["pixel_shift_attention"]["native"]), reason="no CPU kernels here")
def test_native_gradients_of_maps_of_one_column_with_any_stride():
    """A step between columns that do not exist may be any number: torch calls such a map contiguous."""
    nbhd, generator = Neighborhood.directions(border="replicate"), torch.Generator().manual_seed(0)
    plain = [torch.randn(1, 32, 5, 1, generator=generator) for _ in range(3)]
    maps = [x.permute(0, 2, 3, 1).contiguous().as_strided(x.shape, (160, 1, 32, 10**9)) for x in plain]
    tables = [torch.randn(24, 32, generator=generator), torch.randn(1, 24, generator=generator)]
    found = with_gradients(run_natively, [x.as_strided(x.shape, x.stride()) for x in maps] + tables, nbhd, 1)
    exact = with_gradients(loops, [x.double() for x in (*maps, *tables)], nbhd, 1)
    for got, true in zip(found, exact, strict=True):
        torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("heads", "reading", "bias"), READINGS)
def test_gradcheck_to_second_order(heads, reading, bias):
    nbhd = Neighborhood.directions((1, 2), stride=(1, 2))
    inputs = draw(nbhd, heads, reading, bias, (2, 3), batch=1)
    present = [x.requires_grad_() for x in inputs if x is not None]

    def function(*given):
        values = iter(given)
        return run([x if x is None else next(values) for x in inputs], nbhd, heads)

    assert torch.autograd.gradcheck(function, present)
    assert torch.autograd.gradgradcheck(function, present, fast_mode=True)


def test_only_what_asks_gets_a_gradient():
    nbhd = Neighborhood.directions()
    inputs = draw(nbhd, 2)
    inputs[3].requires_grad_()
    run(inputs, nbhd, 2).sum().backward()
    assert [None if x is None else x.grad is not None for x in inputs] == [False, False, False, True, False]


def test_it_is_correlate_and_aggregate_with_a_weight_between():
    nbhd = Neighborhood.directions()
    q, k, v, weight, bias = draw(nbhd, 1, size=(9, 8))
    similarity = correlate(q, k, nbhd) * CHANNELS**-0.5 + bias[..., None, None]
    composed = aggregate(similarity * weight.t()[..., None, None], v, nbhd)
    torch.testing.assert_close(run([q, k, v, weight, bias], nbhd, 1), composed)


def test_a_large_map_is_taken_in_parts(monkeypatch):
    nbhd = Neighborhood.directions()
    inputs = draw(nbhd, 3, batch=3)
    whole = with_gradients(run, inputs, nbhd, 3)
    element = 8 * CHANNELS // 3 * 15 * 14
    for fit in (1, element * 2 * eager.FORWARD_MAPS, element * 4 * eager.BACKWARD_MAPS):
        monkeypatch.setattr(eager, "working_set_bytes", lambda device, fit=fit: fit)
        for got, expected in zip(with_gradients(run, inputs, nbhd, 3), whole, strict=True):
            torch.testing.assert_close(got, expected)


def allocated_at_once(step):
    """The most bytes that torch's allocator has given out while this runs, to the byte, unlike what the system sees."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("reading", ["value", "product"])
@pytest.mark.parametrize("heads", [1, 4, 64])
def test_memory_of_a_training_step_is_not_that_of_24_maps(heads, reading):
    """The output, three gradients, padded maps and their gradients come to about ten; each offset's map would be 24."""
    nbhd, shape = Neighborhood.directions(), (1, 64, 96, 96)
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    weight = torch.randn(len(nbhd), 64, requires_grad=True)
    ones = torch.ones(shape)

    def step():
        out = pixel_shift_attention(q, k, v if reading == "value" else None, weight, nbhd, num_heads=heads)
        out.backward(ones)

    assert allocated_at_once(step) < 10 * ones.nbytes


def test_memory_does_not_grow_with_the_offsets():
    used = []
    for nbhd in (Neighborhood.directions((5,)), Neighborhood.directions((1, 2, 3, 4, 5))):
        inputs = [x.requires_grad_() for x in draw(nbhd, 1, size=(128, 128), dtype=torch.float32)]
        used.append(
            allocated_at_once(lambda inputs=inputs, nbhd=nbhd: torch.autograd.grad(run(inputs, nbhd, 1).sum(), inputs))
        )
    assert used[1] < 1.02 * used[0]


def test_memory_is_linear_in_the_map():
    nbhd, used = Neighborhood.directions(), []
    for size in (64, 128, 256):
        inputs = [x.requires_grad_() for x in draw(nbhd, 1, size=(size, size), batch=1, dtype=torch.float32)]
        step = allocated_at_once(lambda inputs=inputs: torch.autograd.grad(run(inputs, nbhd, 1).sum(), inputs))
        used.append(step / inputs[0].nbytes)
    assert max(used) == used[0] < 13, "a map of 64x64 is 74x74 with its border"


class Both(torch.nn.Module):
    """Both readings, from one map, as a layer calls them."""

    def __init__(self, stride):
        super().__init__()
        self.nbhd = Neighborhood.directions(stride=stride)
        self.weight = torch.nn.Parameter(torch.randn(24, CHANNELS, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        q = self.nbhd.centres(x)
        attention = pixel_shift_attention(q, x, x, self.weight, self.nbhd, num_heads=2)
        return attention + pixel_shift_attention(q, x, None, self.weight, self.nbhd, num_heads=CHANNELS)


@pytest.mark.parametrize("stride", [1, 2])
def test_exported_for_any_size(stride):
    module, auto = Both(stride), torch.export.Dim.DYNAMIC
    shapes = {"x": {0: auto, 2: auto, 3: auto}}
    program = torch.export.export(module, (torch.randn(2, CHANNELS, 8, 7),), dynamic_shapes=shapes)
    for shape in [(1, CHANNELS, 9, 5), (3, CHANNELS, 4, 6)]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.slow
def test_compiled_for_any_size_with_its_gradient():
    module = Both(2)
    compiled = torch.compile(module, dynamic=True, fullgraph=True, backend="aot_eager")
    for size in [(8, 7), (5, 9)]:
        x = torch.randn(2, CHANNELS, *size, requires_grad=True)
        got, expected = (torch.autograd.grad(f(x).sum(), [x, module.weight]) for f in (compiled, module))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype_and_tables_keep_theirs(dtype):
    nbhd = Neighborhood.directions()
    inputs = [x.requires_grad_() for x in draw(nbhd, 2, dtype=torch.float32)]
    with torch.autocast("cpu", dtype=dtype):
        out = run(inputs, nbhd, 2)
    # in float16 three maps multiplied would overflow
    assert out.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    assert {g.dtype for g in torch.autograd.grad(out.sum(), inputs)} == {torch.float32}
    with torch.autocast("cpu", dtype=dtype):
        assert run(draw(nbhd, 2), nbhd, 2).dtype == torch.float64


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_meta_tensors_have_the_shape(mode):
    nbhd = Neighborhood.directions(stride=2)
    for border in ("zeros", "reflect"):
        given = Neighborhood(nbhd.offsets, nbhd.stride, border)
        with mode():
            assert run(draw(nbhd, 2, size=(7, 8), device="meta"), given, 2).shape == (2, CHANNELS, 4, 4)


MAP, TABLE = torch.zeros(2, 6, 5, 4), torch.zeros(24, 6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((MAP[0], MAP, MAP, TABLE), {}, r"q must be \[B, C, H, W\], got 3 dimensions"),
        ((MAP, MAP, MAP, TABLE), {"num_heads": 4}, r"divide the 6 channels, got 4; \[1, 2, 3, 6\]"),
        ((MAP, MAP[:, :3], None, TABLE), {}, "q and k must have the same batch and channels"),
        ((MAP, MAP, MAP[:, :3], TABLE), {}, r"k and v must have one shape, got \[2, 6, 5, 4\] and \[2, 3, 5, 4\]"),
        ((MAP, MAP, MAP.double(), TABLE), {}, "q and v must have one dtype"),
        ((MAP[..., 1:], MAP, MAP, TABLE), {}, "q must measure 5x4, .* got 5x3"),
        ((MAP, MAP, MAP, TABLE[:9]), {}, r"weight must be \[24, 6\], a number for each offset and channel, got \[9, 6"),
        ((MAP, MAP, MAP, TABLE.int()), {}, "weight must be floating point, got torch.int32"),
        ((MAP, MAP, MAP, TABLE), {"bias": torch.zeros(2, 24)}, r"bias must be \[1, 24\], .* head and offset"),
        ((MAP, MAP, MAP, TABLE), {"backend": "cuda"}, "pixel_shift_attention has no backend 'cuda'; it has 'auto'"),
    ],
)
def test_message(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        pixel_shift_attention(*arguments, Neighborhood.directions(), **options)
