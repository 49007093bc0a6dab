"""What every layer shares: the arguments of torch's layers, said once."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, ClassVar, TypedDict, Unpack

import torch
from torch import nn

from convattn.ops.neighborhood import IntPair, as_pair


class Factory(TypedDict, total=False):
    """Device and dtype of the parameters, None by default: every layer takes them, as torch's layers do."""

    device: torch.device | str | None
    dtype: torch.dtype | None


class Geometry(Factory, total=False):
    """The stride and the dilation too, 1 by default, as torch's convolutions take them."""

    stride: IntPair
    dilation: IntPair


CHANNELS = ("channels", "in_channels", "out_channels")
DEFAULTS: dict[str, Any] = {"stride": 1, "dilation": 1, "device": None, "dtype": None}


class Layer(nn.Module):
    """A layer that takes ``**made: Unpack[Factory]`` or ``**geometry: Unpack[Geometry]`` after its own options.

    What ``inspect.signature`` and ``help`` show of a subclass has these arguments by name.
    """

    shown: ClassVar[tuple[str, ...]] = ()
    """The attributes that the layer is printed with; of a neighbourhood, the number of its offsets."""
    _keywords: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        taken = signature(cls.__init__)
        parameters = list(taken.parameters.values())[1:]
        named: Any = {"made": Factory, "geometry": Geometry}.get(parameters[-1].name) if parameters else None
        if named is not None:
            cls._keywords = cls._keywords.union(named.__annotations__)
            parameters[-1:] = [
                Parameter(
                    name,
                    Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=named.__annotations__[name].__forward_arg__,
                )
                for name, default in DEFAULTS.items()
                if name in named.__annotations__
            ]
            cls.__signature__ = taken.replace(parameters=parameters)  # type: ignore[attr-defined]

    def extra_repr(self) -> str:
        """What the layer is printed with: the channels, then the rest by name."""
        values = {name: getattr(self, name) for name in self.shown}
        if "neighborhood" in values:
            values["offsets"] = len(values.pop("neighborhood"))
        return ", ".join(str(value) if name in CHANNELS else f"{name}={value!r}" for name, value in values.items())

    def _factory(self, arguments: Mapping[str, Any]) -> Factory:
        """Device and dtype of those arguments.

        Raises:
            TypeError: an argument that the layer does not take.
        """
        for name in arguments:
            if name not in self._keywords:
                raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}")
        return {"device": arguments.get("device"), "dtype": arguments.get("dtype")}


class StridedLayer(Layer):
    """A layer with a stride and a dilation.

    Raises:
        ValueError: no integers of at least 1.
        TypeError: an unknown argument.
    """

    def __init__(self, **geometry: Unpack[Geometry]) -> None:
        super().__init__()
        self._factory(geometry)
        self.stride = as_pair(geometry.get("stride", 1), "stride")
        self.dilation = as_pair(geometry.get("dilation", 1), "dilation")
