"""Numbers in any memory layout that a caller may bring, with NaN wherever they are not."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layout:
    """How the dimensions of a tensor lie in memory.

    Args:
        order: the dimensions, the outermost first.
        steps: for every dimension, only each so manieth entry is the tensor's.
        before: how many entries of a larger tensor lie before it, along every dimension.
        after: and how many behind it.
        expanded: dimensions along which there is one number, with a stride of 0.
        odd: the stride of dimensions of size 1, which no entry depends on; None leaves it.
        start: how many numbers lie before the whole.
    """

    order: tuple[int, ...]
    steps: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    expanded: tuple[int, ...] = ()
    odd: int | None = None
    start: int = 0

    def __str__(self):
        plain = {"steps": 1, "before": 0, "after": 0}
        said = {name: getattr(self, name) for name in ("order", *plain, "expanded", "odd", "start")}
        said = {n: v for n, v in said.items() if v and not (n in plain and set(v) == {plain[n]})}
        if said.get("order") == tuple(range(len(self.order))):
            del said["order"]
        return " ".join(f"{n}={''.join(map(str, v)) if isinstance(v, tuple) else v}" for n, v in said.items()) or "-"

    def place(self, x):
        """The numbers of ``x`` in this layout, and the memory around them."""
        shape = x.shape
        for dim in self.expanded:
            x = x.narrow(dim, 0, 1)
        room = [x.shape[d] * self.steps[d] + self.before[d] + self.after[d] for d in self.order]
        total = 1
        for length in room:
            total *= length
        memory = torch.full((self.start + total,), float("nan"), dtype=x.dtype)
        cut = [slice(self.before[d], self.before[d] + x.shape[d] * self.steps[d], self.steps[d]) for d in self.order]
        view = memory[self.start :].view(room)[tuple(cut)]
        view = view.permute([self.order.index(d) for d in range(x.dim())])
        view.copy_(x)
        strides = list(view.stride())
        if self.odd is not None and x.numel():
            strides = [self.odd if size == 1 else step for size, step in zip(x.shape, strides, strict=True)]
            view = memory.as_strided(x.shape, strides, view.storage_offset())
        return view.expand(shape), memory


def draw_layout(dice, shape):
    """One of the layouts above for a tensor of this shape; plain ones are frequent."""
    dims = len(shape)
    in_order, none, ones = tuple(range(dims)), (0,) * dims, (1,) * dims
    channels_last = (0, *range(2, dims), 1) if dims > 2 else in_order
    kind = dice.choices(
        ["contiguous", "channels_last", "strided", "slice", "expanded", "permuted", "anything"], [5, 5, 2, 2, 2, 2, 2]
    )[0]
    order, steps, before, after, expanded = in_order, ones, none, none, ()
    if kind == "channels_last" or (kind != "contiguous" and dice.chance(0.5)):
        order = channels_last
    if kind == "strided":
        before, steps = (*none[:-1], 1), (*ones[:-1], 2)
        order = in_order if dice.chance(0.5) else order
    if kind in ("slice", "anything"):
        before, after = (tuple(dice.choice((0, 0, 1, 2, 3)) for _ in shape) for _ in range(2))
    if kind in ("permuted", "anything"):
        order = tuple(dice.sample(range(dims), dims))
    if kind == "anything":
        steps = tuple(dice.choice((1, 1, 1, 2, 3)) for _ in shape)
    if kind in ("expanded", "anything") and 0 not in shape:
        expanded = tuple(dice.sample(range(dims), 1 if dice.chance(0.8) else dice.randint(0, dims)))
    odd = dice.choice((0, 1, 7, 10**9)) if dice.chance(0.15) else None
    start = dice.choice((1, 3, 16)) if dice.chance(0.2) else 0
    return Layout(order, steps, before, after, expanded, odd, start)
