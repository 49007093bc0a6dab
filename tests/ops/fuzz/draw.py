"""Random numbers for a case: sizes that are awkward more often than not, within a budget of work."""

import math
import random

from convattn.ops import Neighborhood

BORDERS = ("reflect", "zeros", "replicate")
VECTOR_NEIGHBOURS = (15, 16, 17, 31, 32, 33)
PADDED = 3_000_000
"""How many numbers a map that is extended by its offsets' reach may hold, over all channels."""


class Dice(random.Random):
    """A generator of random sizes; one seed, one case."""

    def chance(self, p):
        """True once in ``1 / p``."""
        return self.random() < p

    def one_of(self, *weighted):
        """One of ``(weight, value)``."""
        return self.choices([value for _, value in weighted], [weight for weight, _ in weighted])[0]

    def batch(self):
        """0 to 4."""
        return self.one_of((1, 0), (10, 1), (8, 2), (4, 3), (3, 4))

    def heads(self):
        """1 to 8, and rarely more than a bit mask or a fixed table would hold."""
        return 70 if self.chance(0.03) else self.randint(1, 8)

    def channels(self):
        """1 to 70 and rarely none; beside the lengths of vectors more often."""
        if self.chance(0.01):
            return 0
        if self.chance(0.4):
            return self.choice(VECTOR_NEIGHBOURS)
        return self.randint(1, 8 if self.chance(0.5) else 70)

    def length(self):
        """Of a map: tiny, odd, any, and rarely long."""
        return self.one_of(
            (35, self.randint(1, 4)),
            (35, 2 * self.randint(0, 19) + 1),
            (28, self.randint(1, 40)),
            (2, self.randint(41, 200)),
        )

    def kernel(self, odd=False):
        """Along one axis."""
        size = self.randint(1, 9) if self.chance(0.5) else self.choice((1, 3, 5, 7, 9))
        return size | 1 if odd else size

    def stride(self):
        """Along one axis."""
        return self.one_of(
            (60, 1), (20, 2), (10, self.randint(3, 5)), (8, self.randint(1, 50)), (2, self.choice((10**6, 2**31 - 1)))
        )

    def pair(self, draw):
        """Of both axes, drawn alone or once for both."""
        return (first := draw(), first if self.chance(0.4) else draw())

    def dilation(self):
        """Along one axis."""
        return self.one_of((60, 1), (30, self.randint(2, 4)), (9, self.randint(5, 50)), (1, self.randint(51, 2000)))

    def table(self, p=0.5):
        """Whether something that may be left out is there."""
        return self.chance(p)


def shrink(dice, dims, cost, least=()):
    """Halve dimensions at random until their cost is within a budget, which is small more often than large."""
    budget = 10 ** dice.uniform(3.0, 5.9)
    least = dict(least)
    while cost(dims) > budget:
        free = [name for name, size in dims.items() if size > least.get(name, 1)]
        if not free:
            return
        name = dice.choice(free)
        dims[name] = max(least.get(name, 1), dims[name] // 2 if dice.chance(0.5) else dice.randint(1, dims[name] - 1))


def window(dice, dims, stride=None, border=None):
    """A window whose kernel is in ``dims``."""
    stride, border = stride or dice.pair(dice.stride), border or dice.choice(BORDERS)
    dilation = dice.pair(dice.dilation)
    return Neighborhood.window((dims["kh"], dims["kw"]), dilation=dilation, stride=stride, border=border)


def offsets(dice, taps):
    """Any offsets, near and far."""
    far = dice.one_of((5, 3), (3, 50), (1, round(10 ** dice.uniform(0, 6))))
    reach = [far, far if dice.chance(0.4) else dice.randint(0, 4)]
    dice.shuffle(reach)
    found = {tuple(dice.randint(-r, r) for r in reach) for _ in range(taps)}
    found = dice.sample(sorted(found), len(found))
    return Neighborhood(tuple(found), dice.pair(dice.stride), dice.choice(BORDERS))


def within(nbhd, dims, planes):
    """The neighbourhood with its far offsets nearer, where the map that it reaches over would not fit the memory."""
    height, width = dims["H"], dims["W"]
    while True:
        rows, columns = (sum(nbhd.reach(axis)) for axis in (0, 1))
        if (height + rows) * (width + columns) * max(1, planes) <= PADDED:
            return nbhd
        axis = int(columns > rows)
        nearer = [tuple(math.trunc(v / 2) if i == axis else v for i, v in enumerate(o)) for o in nbhd.offsets]
        nbhd = Neighborhood(tuple(dict.fromkeys(nearer)), nbhd.stride, nbhd.border)


def neighborhood(dice, dims, kind, planes):
    """What ``kind`` says, for dimensions that :func:`shrink` has had."""
    if kind == "square":
        return Neighborhood.window(dims["kh"], stride=dice.choice((1, 2)))
    if kind == "directions":
        lengths = dice.sample(range(1, 9), dice.randint(1, 3))
        found = Neighborhood.directions(lengths, stride=dice.pair(dice.stride), border=dice.choice(BORDERS))
    elif kind == "offsets":
        found = offsets(dice, dims["kh"] * dims["kw"])
    else:
        found = window(dice, dims)
    return within(found, dims, planes + len(found))


def kind_of_neighborhood(dice, square=0.3):
    """A window that has kernels of its own, any other, directions or a list; and the dimensions of its kernel."""
    kind = dice.one_of((square, "square"), (0.35, "window"), (0.25, "offsets"), (0.1, "directions"))
    size = dice.choice((3, 5, 7, 7))
    sizes = {"square": (size, size), "directions": (3, 3)}.get(kind) or (dice.kernel(), dice.kernel())
    return kind, dict(zip(("kh", "kw"), sizes, strict=True))
