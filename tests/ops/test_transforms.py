"""Operators under torch.func, forward mode and torch.jit, and the public choice of a backend."""

from contextlib import nullcontext

import pytest
import torch
from torch.autograd import forward_ad

from convattn import ops
from convattn.ops import Neighborhood
from tests.ops.cases import OPERATORS, WINDOW_OPERATORS, X_VOLUTION_OPERATORS, Acmix, Geometry, Recorder

EVERY_OPERATOR = [*OPERATORS, *X_VOLUTION_OPERATORS, *WINDOW_OPERATORS]
GEOMETRY = Geometry(5, 4, 3, stride=2)
on_every_operator = pytest.mark.parametrize("operator", EVERY_OPERATOR, ids=lambda o: o.name)


def drawn(operator, seed=0):
    return operator.draw(GEOMETRY, torch.Generator().manual_seed(seed))


@on_every_operator
def test_tangents_are_those_of_the_gradients(operator):
    inputs, directions = drawn(operator), drawn(operator, 1)
    run = lambda *xs: operator.run(xs, GEOMETRY)  # noqa: E731
    y, tangent = torch.func.jvp(run, tuple(inputs), tuple(directions))
    u = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    leaves = [x.clone().requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(run(*leaves), leaves, u)
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    torch.testing.assert_close((tangent * u).sum(), expected)
    with forward_ad.dual_level():
        dual = run(*(forward_ad.make_dual(x, d) for x, d in zip(inputs, directions, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)
    found = torch.func.grad(lambda *xs: (run(*xs) * u).sum(), argnums=tuple(range(len(inputs))))(*inputs)
    torch.testing.assert_close(found, gradients)
    with forward_ad.dual_level(), Recorder(calls := []):
        run(*inputs)
    assert not calls


@on_every_operator
def test_many_vectors_at_once(operator):
    """``is_grads_batched`` and ``vmap`` over the first input."""
    inputs = [x.requires_grad_() for x in drawn(operator)]
    y = operator.run(inputs, GEOMETRY)
    u = torch.randn((3, *y.shape), generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    together = torch.autograd.grad(y, inputs, u, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, inputs, v, retain_graph=True) for v in u]
    torch.testing.assert_close(together, tuple(map(torch.stack, zip(*one_by_one, strict=True))))
    first, *others = (x.detach() for x in inputs)
    several = torch.stack([first, 2 * first])
    mapped = torch.func.vmap(lambda x: operator.run([x, *others], GEOMETRY))(several)
    torch.testing.assert_close(mapped, torch.stack([operator.run([x, *others], GEOMETRY) for x in several]))


@on_every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_watched_training_is_the_same(operator, dtype):
    """Gradients to the second order: past torch's dispatcher and, where a mode watches, through it."""
    inputs = [x.to(dtype).requires_grad_() for x in drawn(operator)]

    def gradients(watched):
        with watched:
            y = operator.run(inputs, GEOMETRY)
            u = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
            first = torch.autograd.grad(y, inputs, u, retain_graph=True)
        again = torch.autograd.grad(y, inputs, u, create_graph=True)
        second = torch.autograd.grad(sum((d * d).sum() for d in again), inputs, allow_unused=True)
        return y, first, again, [d for d in second if d is not None]

    past, through = gradients(nullcontext()), gradients(Recorder(calls := []))
    torch.testing.assert_close(past, through, rtol=0, atol=0)
    if operator.name == "dynamic_conv":  # of torch's operators alone
        return
    assert len(calls) >= 2  # the forward and its gradient
    with torch.profiler.profile() as profiled:
        operator.run(inputs, GEOMETRY)
    assert any(event.name.startswith("convattn::") for event in profiled.events())


def test_hessian():
    nbhd = Neighborhood.window((1, 3))
    q, k, v = torch.randn(3, 1, 2, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = lambda q: ops.attend(q, k, v, nbhd).pow(2).sum()  # noqa: E731
    torch.testing.assert_close(torch.func.hessian(loss)(q), torch.autograd.functional.hessian(loss, q))


def test_torchs_operator_refuses_forward_mode():
    q = torch.randn(1, 2, 3, 3)
    options = ([0, 0], [1, 1], "zeros", 1, 1.0, "auto")
    run = lambda q: torch.ops.convattn.attend(q, q, q, None, None, *options)  # noqa: E731
    with pytest.raises(
        NotImplementedError, match=r"convattn\.attend has no forward-mode derivative; call convattn\.ops"
    ):
        torch.func.jvp(run, (q,), (q,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        run(forward_ad.make_dual(q, q))


def test_transforms_inside_a_compiled_function():
    nbhd = Neighborhood.window(3)
    q = torch.randn(1, 4, 5, 6)
    loss = lambda q: ops.attend(q, q, q, nbhd, num_heads=2).square().sum()  # noqa: E731
    compiled = torch.compile(torch.func.grad(loss), backend="eager")
    torch.testing.assert_close(compiled(q), torch.func.grad(loss)(q))


class TestBackend:
    inputs = drawn(Acmix)

    @pytest.mark.parametrize("name", ["eager", "portable"])
    def test_holds_forward_and_backward(self, name):
        inputs = [x.float().requires_grad_() for x in self.inputs]
        with ops.backend(name) as use, Recorder(calls := []):
            y = Acmix.run(inputs, GEOMETRY)
        with Recorder(calls):
            gradients = torch.autograd.grad(y.sum(), inputs)
        assert {args[-1] for _, args in calls} == ({name} if name == "eager" else set())
        assert use.name == name
        assert ("acmix" in use.ops) == (name == "eager")
        expected = torch.autograd.grad(Acmix.run(inputs, GEOMETRY).sum(), inputs)
        torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-3)

    def test_says_where_another_served(self):
        with ops.backend("native") as use:
            Acmix.run(self.inputs, GEOMETRY)
        assert not use.ops
        assert any("acmix: " in refusal for refusal in use.refusals)

    def test_keeps_what_a_call_asks_for(self):
        q = torch.randn(1, 4, 5, 5, requires_grad=True)
        with ops.backend("portable"), Recorder(calls := []):
            ops.attend(q, q, q, Neighborhood.window(3), backend="eager")
        assert [args[-1] for _, args in calls] == ["eager"]

    def test_an_unknown_name(self):
        with pytest.raises(ValueError, match="no operator has a backend 'cuda'; there are"), ops.backend("cuda"):
            pass
