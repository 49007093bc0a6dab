"""A call of an operator in inference that is kept, with what a next one like it would find out again.

On a small map, choosing and checking takes as long as computing. A kept call asks only what can have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import starmap
from operator import is_

import torch
from torch import Tensor

from convattn.ops import _dispatch
from convattn.ops._checks import check_stored
from convattn.ops._layout import memory_format_of


class Prepared:
    """An operator as a function of its map, for maps like the one that it was made for.

    Args:
        run: map -> output, in any layout. It reads the numbers of the tables anew in every call.
        x: such a map.
        tables: the operator's other tensors as their owner holds them, None for one that is not there.
        options: all else that the output depends on.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        x: Tensor,
        tables: Sequence[Tensor | None] = (),
        options: tuple[object, ...] = (),
    ) -> None:
        self.run, self.facts, self.options = run, _facts(x), options
        self.layout = memory_format_of(x)
        self.state, self.tables = _dispatch.torch_state(), tables
        self.known = [(table, table.detach()) for table in tables if table is not None]

    def fits(self, x: Tensor) -> bool:
        """Whether a map has the type, shape, layout, dtype and device, and torch the number of threads."""
        return _facts(x) == self.facts

    def serves(self, x: Tensor, tables: Sequence[Tensor | None], options: tuple[object, ...]) -> bool:
        """Whether this call would find the same answers: the map fits, and the tables lie where they did."""
        return (
            self.state == _dispatch.torch_state()
            and self.fits(x)
            and options == self.options
            and all(map(is_, tables, self.tables))
            and all(starmap(Tensor.is_set_to, self.known))
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The output for a map that it :meth:`serves`."""
        check_stored(x, *self.tables)
        return self.run(x).contiguous(memory_format=self.layout)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None: who is copied or saved makes a call of its own."""
        return type(None), ()


def _facts(x: Tensor) -> tuple[object, ...]:
    return type(x), x.shape, x.stride(), x.dtype, x.device, torch.get_num_threads()
