"""What the inputs of every operator have, derived from their fields."""

from __future__ import annotations

from typing import Any, ClassVar, get_args, get_type_hints

from torch import Tensor


class Inputs:
    """What an operator is given. A class of inputs is a NamedTuple of tensors, then options, and this.

    It adds ``check()``, which raises ``ValueError`` where the inputs do not fit together. Of an
    operator whose forward pass may keep a map for the backward, ``keep`` is the last field, and there are
    ``kept_shape``, ``saved(out, kept)``, what the backward gets after the gradient, and ``check_saved(*saved)``.

    Class arguments:
        map: the field whose dtype, device and memory layout the output has.
        reads: the field whose neighbours are read; its size bounds offsets and strides.
    """

    __slots__ = ()
    hints: ClassVar[dict[str, Any]]
    num_tensors: ClassVar[int]
    _map: ClassVar[int]
    _reads: ClassVar[int]
    _fields: Any
    nbhd: Any

    def __init_subclass__(cls, *, map: str, reads: str) -> None:
        super().__init_subclass__()
        cls.hints = {field: get_type_hints(cls)[field] for field in cls._fields}
        cls.num_tensors = sum(is_tensor(hint) for hint in cls.hints.values())
        cls._map, cls._reads = cls._fields.index(map), cls._fields.index(reads)

    @property
    def tensors(self: Any) -> tuple[Tensor | None, ...]:
        """The tensors, in order."""
        return self[: self.num_tensors]

    @property
    def map(self: Any) -> Tensor:
        """The map whose dtype, device and memory layout the output has."""
        return self[self._map]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the output: the map's, unless a class says otherwise."""
        return tuple(self.map.shape)

    def check(self) -> None:
        """Raise ``ValueError`` where the inputs do not fit together."""
        raise NotImplementedError

    def on_its_map(self: Any) -> Any:
        """The same with no offset or stride far beyond the map."""
        if self.nbhd.is_near:
            return self
        return self._replace(nbhd=self.nbhd.on_map(*self[self._reads].shape[-2:]))


def is_tensor(hint: Any) -> bool:
    """Whether a field holds a tensor, or None in place of one.

    Example:
        >>> is_tensor(Tensor | None), is_tensor(int)
        (True, False)
    """
    return hint is Tensor or Tensor in get_args(hint)
