"""A shortened fuzz of all operators on every instruction set, and that the fuzzer finds what is wrong."""

import ctypes
import faulthandler
import os
import random
import subprocess
import sys

import pytest
import torch

from convattn import ops
from convattn.ops import Neighborhood, _native, attend
from tests.ops.cases import (
    GEOMETRIES,
    Acmix,
    Aggregate,
    Attend,
    Correlate,
    DynamicConv,
    GroupConvolution,
    OffsetConvolution,
    PixelShift,
    Scatter,
)
from tests.ops.fuzz import truth
from tests.ops.fuzz.check import check, draw_case
from tests.ops.fuzz.draw import Dice
from tests.ops.fuzz.layouts import draw_layout
from tests.ops.fuzz.operators import OPERATORS
from tests.ops.guarded import Guard

NATIVE = pytest.mark.skipif(bool(_native.reasons()), reason=f"no CPU kernels here: {_native.reasons()}")
ACMIX = ("x", "projection_weight", "projection_bias", "position", "weight", "scale", "bias")


def kernel_of(nbhd):
    """The neighbourhood of a 3x3 kernel with zeros beyond the border."""
    return Neighborhood.window(3, stride=nbhd.stride, border="zeros")


TRUTH = {
    Attend: lambda t, n, g: truth.attend(*t[:3], n, Attend.heads, Attend.head_dim**-0.5, *t[3:]),
    Correlate: lambda t, n, g: truth.correlate(*t, n, Correlate.heads),
    Aggregate: lambda t, n, g: truth.aggregate(*t, n),
    Scatter: lambda t, n, g: truth.scatter(*t, n, (g.height, g.width)),
    PixelShift: lambda t, n, g: truth.pixel_shift_attention(*t, n, PixelShift.heads),
    DynamicConv: lambda t, n, g: truth.dynamic_conv(t[1], t[0], n, DynamicConv.groups),
    OffsetConvolution: lambda t, n, g: truth.offset_convolution(*t, n),
    Acmix: lambda t, n, g: truth.acmix(dict(zip(ACMIX, t, strict=True)), n, kernel_of(n), Acmix.heads),
    GroupConvolution: lambda t, n, g: truth.group_convolution(*t, kernel_of(n)),
}
SQUARE = [g for g in GEOMETRIES if g.neighborhood.stride[0] == g.neighborhood.stride[1]]


@pytest.mark.parametrize("operator", TRUTH, ids=lambda o: o.name)
def test_the_gathered_form_is_the_reference(operator):
    geometries = SQUARE if operator is GroupConvolution else GEOMETRIES
    for geometry in (g for g in geometries if g.height < 17):
        inputs = operator.draw(geometry, torch.Generator().manual_seed(0))
        expected = operator.reference(inputs, geometry)
        got = TRUTH[operator](inputs, geometry.neighborhood, geometry)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("border", ["reflect", "zeros", "replicate"])
def test_far_positions_read_what_the_neighbourhood_says(border):
    nbhd = Neighborhood(((-100, 3), (7, -55), (10**6, 0)), (3, 2), border)
    for axis, size in ((0, 5), (1, 1), (1, 8)):
        along = [offset[axis] for offset in nbhd.offsets]
        found = truth.sources(along, nbhd.stride[axis], size, border)
        outputs = range((size - 1) // nbhd.stride[axis] + 1)
        expected = [[nbhd.source(i * nbhd.stride[axis] + o, size) for i in outputs] for o in along]
        assert found.tolist() == [[-1 if p is None else p for p in row] for row in expected]


def test_a_layout_holds_the_numbers_and_nothing_else():
    for seed in range(300):
        dice = Dice(seed)
        shape = tuple(dice.randint(1, 4) for _ in range(dice.randint(1, 5)))
        x, layout = torch.randn(shape), draw_layout(dice, shape)
        placed, memory = layout.place(x)
        for dim in layout.expanded:
            x = x.narrow(dim, 0, 1).expand(placed.shape)
        assert torch.equal(placed, x), layout
        held = x.numel()
        for dim in layout.expanded:
            held //= shape[dim]
        assert int(memory.isfinite().sum()) == held, layout


def test_dimensions_are_drawn_one_by_one():
    drawn = [draw_case(seed, "group_convolution").call.said for seed in range(400)]
    sizes = [(said["T"], said["N"], said["d"], said["H"], said["W"]) for said in drawn]
    for one in range(5):
        for other in range(one):
            assert any(s[one] > s[other] > 0 for s in sizes)
            assert any(0 < s[one] < s[other] for s in sizes)


def test_every_operator_is_drawn():
    no_tensors = {"BackendUse", "Border", "Neighborhood", "ShiftForm", "backend", "backends", "one_hot_kernel"}
    drawn = {draw_case(seed).operator for seed in range(400)}
    assert drawn == set(OPERATORS) == set(ops.__all__) - no_tensors


def plain_seed():
    """The first seed of a shift in float32 that moves a whole map a little."""
    for seed in range(1000):
        case = draw_case(seed, "shift")
        said = case.call.said
        inside = 0 < abs(said["dy"]) < said["H"] and abs(said["dx"]) < said["W"] and said["B"] and said["C"]
        if inside and case.dtype == torch.float32 and case.mode == "no_grad":
            return seed
    raise AssertionError("no such case")


FAULTS = {
    "error ": lambda x, dy, dx: 1.01 * x,
    "output is [": lambda x, dy, dx: x[..., :0],
    "output is torch.float64": lambda x, dy, dx: x.double(),
    "is not finite": lambda x, dy, dx: x * float("nan"),
    "was written to": lambda x, dy, dx: x.detach().add_(1),
    "AttributeError": lambda x, dy, dx: x.no_such_name,
}


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_found(monkeypatch, message):
    seed = plain_seed()
    assert check(seed, "shift")[0] is None
    monkeypatch.setattr(ops, "shift", FAULTS[message])
    assert message in check(seed, "shift")[0]


def test_a_case_that_ends_its_process_is_one_wrong_case(tmp_path):
    aborts = (
        "import os, sys\nif '--child' in sys.orig_argv:\n    import convattn.ops as ops\n"
        "    ops.shift = lambda x, dy, dx: os.abort() if x.shape[0] == 2 else x * float('nan')\n"
    )
    (tmp_path / "sitecustomize.py").write_text(aborts)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    batches = [draw_case(seed, "shift").call.said["B"] for seed in range(1000)]
    seed = next(s for s in range(1000) if batches[s : s + 2] == [2, 3])
    command = [sys.executable, "-m", "tests.ops.fuzz", "--operator", "shift", "--cases", "2", "--seed", str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    first, _, _, last = done.stdout.splitlines()
    assert first.startswith(f"seed {seed} shift: ")
    assert "SIGABRT" in first
    assert f"seed {seed + 1} shift: " in done.stdout
    assert "2 cases, 2 wrong" in last


def test_a_case_is_the_same_whenever_it_is_drawn():
    for seed in random.Random(0).sample(range(10**6), 20):
        assert str(draw_case(seed)) == str(draw_case(seed))


@pytest.mark.parametrize(("side", "beyond"), [("behind", 20), ("before", -4)])
def test_a_guard_page_stops_a_read(side, beyond):
    x = torch.arange(5.0)
    guard = Guard(side)
    address = guard.address_of(x)
    assert [ctypes.c_float.from_address(address + 4 * i).value for i in range(5)] == x.tolist()
    child = os.fork()
    if not child:
        faulthandler.disable()
        os.close(2)  # the sanitizers would say much
        os._exit(int(ctypes.c_float.from_address(address + beyond).value == 1e9))
    _, status = os.waitpid(child, 0)
    assert status
    guard.close_regions()


@NATIVE
@pytest.mark.parametrize("side", ["behind", "before"])
def test_what_a_kernel_writes_comes_back_from_between_the_guards(monkeypatch, side):
    q = torch.randn(2, 32, 9, 7, generator=torch.Generator().manual_seed(0))

    def run():
        return attend(q, q, q, Neighborhood.window(5), num_heads=2, backend="native")

    expected, guard = run(), Guard(side)
    guard.install(monkeypatch.setattr)
    assert torch.equal(run(), expected)
    assert guard.calls == 1
    assert not guard.regions


@pytest.mark.slow
@NATIVE
@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512", "avx2", "baseline"])
def test_fuzz_on_every_instruction_set(isa):
    seed = {"avx512": 1_000_000, "avx2": 2_000_000, "baseline": 3_000_000, "avx512_bf16": 4_000_000}[isa]
    command = [sys.executable, "-m", "tests.ops.fuzz", "--cases", "1000", "--seed", str(seed), "--isa", isa]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "1000 cases, 0 wrong" in done.stdout
