"""Which module alone reads what another one writes."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Asking a tensor these is no use of its values.
_METADATA = {"shape", "dtype", "device", "ndim", "size", "dim", "is_cuda", "layout", "numel", "is_contiguous", "stride"}


def traced_readers(
    model: nn.Module, leaves: Sequence[type[nn.Module]], example: tuple[Any, ...] | None = None
) -> dict[str, str]:
    """The sole readers, found by tracing the network symbolically: for any input, and without one.

    Args:
        model: in eval mode.
        leaves: classes that are not looked into.
        example: the network's inputs; where None, a tensor for every one that has no default.

    Returns:
        for every module that is called once and whose output one other module reads, called once too, and nothing
        else: its name and the reader's.

    Raises:
        Exception: whatever the network raises when it is traced, where it cannot be.
    """
    graph = _Tracer(leaves).trace(
        _Call(model, (torch.empty(0),) * _required_inputs(model) if example is None else example)
    )
    modules = dict(model.named_modules(remove_duplicate=False))
    names = {node: str(node.target).removeprefix("model.") for node in graph.nodes if node.op == "call_module"}
    calls = Counter(id(modules[name]) for name in names.values())
    taken = {str(node.target).removeprefix("model.") for node in graph.nodes if node.op == "get_attr"}
    readers = {}
    for node, name in names.items():
        users = [user for user in node.users if not _asks_metadata(user)]
        if len(users) != 1 or users[0] not in names:
            continue
        (user,) = users
        reader = names[user]
        alone = all(calls[id(modules[name])] == 1 and not _reaches(name, taken) for name in (name, reader))
        if alone and user.args == (node,) and not user.kwargs:
            readers[name] = reader
    return readers


class _Call(nn.Module):
    """Calls a network with symbols in place of tensors, every other input as it is, and its defaults for the rest."""

    def __init__(self, model: nn.Module, example: tuple[Any, ...]) -> None:
        super().__init__()
        self.model, self.example = model, example

    def forward(self, symbols: Any) -> Any:
        """``symbols`` is indexed as the example is."""
        fixed = (type(None), bool, int, float, str)
        return self.model(*(x if isinstance(x, fixed) else symbols[i] for i, x in enumerate(self.example)))


class _Tracer(fx.Tracer):
    def __init__(self, leaves: Sequence[type[nn.Module]]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = (*leaves, *get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == "model":
            return False
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def _required_inputs(model: nn.Module) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters))


def _asks_metadata(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METADATA
    return node.op == "call_function" and node.target is getattr and node.args[1] in _METADATA


def _reaches(name: str, attributes: set[str]) -> bool:
    """Whether the network reads an attribute of the module itself, its weight say."""
    return any(attribute.startswith(f"{name}.") for attribute in attributes)


def observed_readers(model: nn.Module, leaves: Sequence[type[nn.Module]], example: tuple[Any, ...]) -> dict[str, str]:
    """The sole readers in one run of the network: true of inputs that take the same way through it.

    Args:
        model: in eval mode.
        leaves: classes that are not looked into, beside modules without children.
        example: the network's inputs.

    Returns:
        as :func:`traced_readers`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds: tuple[type[nn.Module], ...] = tuple(leaves)
    inner = {child for m in modules.values() if isinstance(m, kinds) for child in m.modules() if child is not m}
    watched = {name: m for name, m in modules.items() if m not in inner and (isinstance(m, kinds) or _childless(m))}
    names = {id(m): name for name, m in watched.items()}
    watch = _Watch(watched.values())
    handles = []
    for module in set(watched.values()):
        handles.append(module.register_forward_pre_hook(watch.enter, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(watch.leave, always_call=True))
    try:
        with watch, torch.no_grad():
            watch.use(model(*example), None)
    finally:
        for handle in handles:
            handle.remove()
    return {names[writer]: names[reader] for writer, reader in watch.sole_readers()}


def _childless(module: nn.Module) -> bool:
    return next(module.children(), None) is None


class _Watch(TorchFunctionMode):
    """Notes which module writes a tensor and what reads it, torch functions outside the modules included.

    Args:
        watched: the modules that are not looked into.
    """

    def __init__(self, watched: Collection[nn.Module]) -> None:
        super().__init__()
        self.inside: list[nn.Module] = []
        self.calls: Counter[int] = Counter()
        self.written: dict[int, tuple[Tensor, int]] = {}
        self.readers: dict[int, list[int | None]] = {}
        self.owners = {id(p): id(m) for m in watched for p in m.parameters()}
        self.opened: set[int] = set()

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.inside:
            self.calls[id(module)] += 1
            self.use((args, kwargs), id(module))
        self.inside.append(module)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self.inside.pop()
        if self.inside or not isinstance(output, Tensor):
            return output
        output = output.view_as(output)  # its own object even where the module returns its input
        self.written[id(output)] = (output, id(module))
        return output

    def use(self, values: Any, reader: int | None) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and id(value) in self.written:
                self.readers.setdefault(id(value), []).append(reader)
            elif reader is None and id(value) in self.owners:
                self.opened.add(self.owners[id(value)])

    def sole_readers(self) -> Iterator[tuple[int, int]]:
        for key, (_, writer) in self.written.items():
            readers = self.readers.get(key, [])
            if len(readers) != 1 or readers[0] is None:
                continue
            pair = writer, readers[0]
            if all(self.calls[module] == 1 and module not in self.opened for module in pair):
                yield pair

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if not self.inside and name not in _METADATA:
            self.use((args, kwargs or {}), None)
        return func(*args, **(kwargs or {}))
