"""An operator of torch, derived from its inputs, its implementations and its gradient.

From these follow the schema, the shape and layout of the output, tracing, first and second derivatives, and which
implementation runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, get_origin

import torch
from torch import Tensor

from convattn.ops import _dispatch, _recording
from convattn.ops._autograd import second_derivatives
from convattn.ops._checks import check_gradient, check_stored, flat, unflat
from convattn.ops._inputs import Inputs, is_tensor
from convattn.ops._layout import memory_format_of
from convattn.ops._prepared import Prepared
from convattn.ops.neighborhood import Neighborhood

Gradient: TypeAlias = Callable[[Tensor, Any, Sequence[bool], str], tuple[Tensor | None, ...]]
"""The output's gradient, the inputs, which tensors need theirs, the backend -> the gradients of the tensors."""

AUTOCAST = 3
"""How many tensors ``torch.autocast`` casts: the maps and what multiplies them come first, tables stay as they are."""

I = TypeVar("I", bound=Inputs)  # noqa: E741 - of inputs


class Operator(Generic[I]):
    """One operator; ``operator(inputs, backend)`` is its output.

    Args:
        name: the name in ``torch.ops.convattn``.
        inputs: the kind of its inputs.
        composed: the same out of operators that are differentiable to any order, for second derivatives.
        backends: its implementations, those that ``"auto"`` prefers first; None: they are registered elsewhere.
        portable: the same out of standard operators alone, for whoever knows no others: exporters, ``torch.func``,
            forward-mode differentiation. None: ``composed``, in which the operators of ours are portable then too.
        gradient: the gradient out of operators. None: it is an operator of its own, ``<name>_backward``, which the
            backends implement.
    """

    def __init__(
        self,
        name: str,
        inputs: type[I],
        composed: Callable[[I], Tensor],
        *,
        backends: Mapping[str, _dispatch.Backend] | None = None,
        portable: Callable[[I], Tensor] | None = None,
        gradient: Gradient | None = None,
    ) -> None:
        hints = inputs.hints
        self.name, self.kind, self.composed, self.gradient = name, inputs, composed, gradient
        self.portable = portable or composed
        for key, backend in (backends or {}).items():
            _dispatch.register_backend(name, key, backend)
        self.num_tensors, self.keeps = inputs.num_tensors, "keep" in hints
        self.num_saved = 1 + 2 * self.keeps  # what the gradient's operator gets before the inputs
        self.options = list(hints.values())[self.num_tensors :]
        arguments = ", ".join([*(_schema(field, hint) for field, hint in hints.items()), "str backend"])
        returns = "(Tensor, Tensor)" if self.keeps else "Tensor"
        self._define(name, f"({arguments}) -> {returns}", self._forward, self._fake, self._backward, self._save)
        self.torch_op = getattr(torch.ops.convattn, name).default
        if gradient is None:
            saved = "Tensor out, Tensor kept, " if self.keeps else ""
            returns = ", ".join(["Tensor"] * self.num_tensors)
            self._define(
                f"{name}_backward",
                f"(Tensor grad, {saved}{arguments}) -> ({returns})",
                self._first_derivative,
                self._fake_first_derivative,
                self._second_derivative,
                self._save_for_second,
            )
            self.torch_backward = getattr(torch.ops.convattn, f"{name}_backward").default

    @staticmethod
    def _define(name: str, schema: str, run: Any, fake: Any, backward: Any, save: Any) -> None:
        op = torch.library.custom_op(f"convattn::{name}", run, mutates_args=(), schema=schema)
        op.register_fake(fake)
        op.register_autograd(backward, setup_context=save)

    def __call__(self, inputs: I, backend: str = "auto") -> Tensor:
        """The output, in the dtype that ``torch.autocast`` asks for.

        Raises:
            ValueError: inputs that do not fit together, or a backend that cannot run.
        """
        if torch._C._is_any_autocast_enabled():
            cast = _dispatch.autocast(*inputs.tensors[:AUTOCAST])
            inputs = self.kind(*cast, *tuple(inputs)[len(cast) :])  # type: ignore[arg-type]
        return self.apply(inputs, backend)

    def apply(self, inputs: I, backend: str = "auto") -> Tensor:
        """The output, whatever ``torch.autocast`` asks for: for use inside another operator."""
        if backend == _dispatch.PORTABLE:
            with _dispatch.backend(backend):
                return self.apply(inputs)
        if _dispatch.needs_standard_operators():
            inputs.check()
            recorded = _recording.recorded(self.name, inputs, lambda: self.through_torch(inputs, "native"))
            return self.portable(inputs.on_its_map()) if recorded is None else recorded
        if backend == "auto" and _dispatch.is_portable_wanted():
            inputs.check()
            return _laid_out(self.portable(inputs.on_its_map()), inputs.map)
        backend = _dispatch.chosen(self.name, backend, inputs)
        if not _dispatch.is_unwatched(*inputs.tensors):
            return self.through_torch(inputs, backend)
        inputs.check()
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs.tensors):
            found: Tensor | tuple[Tensor, ...] = _Recorded.apply(*inputs.tensors, self, inputs, backend)
            return found[0] if self.keeps else found  # type: ignore[return-value]
        return self._run(inputs, backend)[0]

    def prepared(self, inputs: I, tables: Sequence[Tensor | None], options: tuple[object, ...]) -> Prepared | None:
        """The call with these inputs, kept for the next ones; None where there is none to keep.

        Args:
            inputs: of a call in inference.
            tables: all their tensors save the map, as their owner holds them.
            options: what the owner made all else of.
        """
        if not _dispatch.is_undisturbed(*inputs.tensors):
            return None
        inputs.check()
        check_stored(*inputs.tensors)
        near = inputs.on_its_map()
        prepare = _dispatch.select(self.name, "auto", near).prepare
        return None if prepare is None else Prepared(prepare(near), inputs.map, tables, options)

    def through_torch(self, inputs: I, backend: str) -> Tensor:
        """The output by torch's dispatcher, which checks the inputs too."""
        out = self.torch_op(*self._flat(inputs), backend)
        return out[0] if self.keeps else out

    def first_derivative(self, grad: Tensor, inputs: I) -> tuple[Tensor, ...]:
        """The gradients of the tensors, from the output's; an empty tensor for one that is not there."""
        return self.torch_backward(grad, *self._flat(inputs), "auto")

    def _flat(self, inputs: I) -> Iterator[Any]:
        """The inputs as the plain arguments that a schema allows."""
        yield from inputs.tensors
        for value in tuple(inputs)[self.num_tensors :]:  # type: ignore[arg-type, var-annotated]
            if isinstance(value, Neighborhood):
                yield from flat(value)
            else:
                yield list(value) if isinstance(value, tuple) else value

    def inputs_of(self, arguments: Sequence[Any]) -> I:
        """The inputs from the arguments of torch's operator: the inverse of :meth:`_flat`."""
        given, options = iter(arguments[self.num_tensors :]), []
        for kind in self.options:
            value = next(given)
            if kind is Neighborhood:
                value = unflat(value, next(given), next(given))
            options.append(tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)
        return self.kind(*arguments[: self.num_tensors], *options)

    def _checked(self, arguments: Sequence[Any]) -> I:
        _dispatch.refuse_forward_mode(self.name)
        inputs = self.inputs_of(arguments)
        inputs.check()
        return inputs

    def _run(self, inputs: I, backend: str) -> tuple[Tensor, ...]:
        """The output, then what is kept."""
        check_stored(*inputs.tensors)
        near = inputs.on_its_map()
        found = _dispatch.select(self.name, backend, near).run(near)
        out, *kept = found if self.keeps else (found,)
        return _laid_out(out, inputs.map), *kept

    def _forward(self, *arguments: Any) -> Any:
        outputs = self._run(self._checked(arguments[:-1]), arguments[-1])
        return outputs if self.keeps else outputs[0]

    def _fake(self, *arguments: Any) -> Any:
        inputs: Any = self._checked(arguments[:-1])
        out = _laid_out(inputs.map.new_empty(inputs.output_shape), inputs.map)
        if not self.keeps:
            return out
        kept = inputs.map.new_empty(inputs.kept_shape)
        return out, kept.contiguous(memory_format=torch.channels_last) if kept.dim() == 4 else kept

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.options, tensors = inputs[self.num_tensors :], inputs[: self.num_tensors]
        if not self.keeps:
            return ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        given: Any = self.inputs_of(inputs)
        return ctx.save_for_backward(*given.saved(*output), *tensors)

    def _backward(self, ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        saved, others = ctx.saved_tensors, [None] * len(ctx.options)  # read once, as checkpointing asks
        tensors = saved[-self.num_tensors :]
        if grad is None:
            return *[None] * self.num_tensors, *others
        if self.gradient is None:
            direct = _dispatch.runs_directly(grad, *saved)
            found = (self._first_derivative if direct else self.torch_backward)(grad, *saved, *ctx.options)
        else:
            *options, backend = ctx.options
            found = self.gradient(grad, self.inputs_of((*tensors, *options)), ctx.needs_input_grad, backend)
        return *(None if x is None else d for x, d in zip(tensors, found, strict=True)), *others

    def _first_derivative(self, *arguments: Any) -> tuple[Tensor, ...]:
        grad, saved, inputs, backend = self._checked_backward(arguments)
        check_stored(grad, *saved, *inputs.tensors)
        near = inputs.on_its_map()
        backward: Any = _dispatch.select(self.name, backend, near).backward
        found = backward(grad, near, *saved)
        return tuple(
            grad.new_empty(0) if d is None or x is None else _laid_out(d.to(x.dtype), x)
            for d, x in zip(found, inputs.tensors, strict=True)
        )

    def _fake_first_derivative(self, *arguments: Any) -> tuple[Tensor, ...]:
        grad, _, inputs, _ = self._checked_backward(arguments)
        return tuple(grad.new_empty(0) if x is None else _laid_out(x.new_empty(x.shape), x) for x in inputs.tensors)

    def _checked_backward(self, arguments: Sequence[Any]) -> tuple[Tensor, Sequence[Tensor], Any, str]:
        """The output's gradient, what the forward pass kept, its inputs and the backend."""
        first = self.num_saved
        grad, saved, inputs = arguments[0], arguments[1:first], self._checked(arguments[first:-1])
        check_gradient(grad, inputs.map, inputs.output_shape)
        if self.keeps:
            inputs.check_saved(*saved)  # type: ignore[attr-defined]
        return grad, saved, inputs, arguments[-1]

    def _save_for_second(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        first = self.num_saved
        ctx.save_for_backward(inputs[0], *inputs[first : first + self.num_tensors])
        ctx.options = inputs[first + self.num_tensors :]

    def _second_derivative(self, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        options = ctx.options[:-1]

        def forward(*tensors: Tensor | None) -> Tensor:
            return self.composed(self.inputs_of((*tensors, *options)))

        of_grad, *of_inputs = second_derivatives(forward, ctx.saved_tensors, grads)
        return of_grad, *[None] * (2 * self.keeps), *of_inputs, *[None] * len(ctx.options)


class _Recorded(torch.autograd.Function):
    """An operator with gradients past torch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        """The outputs. The tensors come first, apart from the inputs that hold them, for autograd to see."""
        operator, inputs, backend = arguments[-3:]
        outputs = operator._run(inputs, backend)
        given = outputs if operator.keeps else outputs[0]
        ctx.operator = operator
        operator._save(ctx, (*operator._flat(inputs), backend), given)
        return given

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the tensors."""
        operator: Operator[Any] = ctx.operator
        return *operator._backward(ctx, *grads)[: operator.num_tensors], None, None, None


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    """A map in the memory layout of another, anything else contiguous."""
    return x.contiguous(memory_format=memory_format_of(like)) if x.dim() == like.dim() == 4 else x.contiguous()


_TYPES = {
    int: "SymInt",
    float: "float",
    bool: "bool",
    str: "str",
    tuple[int, int]: "SymInt[]",
    tuple[int, ...]: "SymInt[]",
}


def _schema(name: str, hint: Any) -> str:
    """One input in the language of torch's schemas."""
    if hint is Neighborhood:
        return "SymInt[] offsets, SymInt[] stride, str border"
    if is_tensor(hint):
        return f"{'Tensor' if hint is Tensor else 'Tensor?'} {name}"
    return f"{'SymInt[]' if get_origin(hint) is tuple else _TYPES[hint]} {name}"
