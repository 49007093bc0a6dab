"""A palette of classes: the same colour for the same class everywhere, apart from each other to every eye."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]

NOT_LABELLED: Color = (128, 128, 128)
"""The grey of pixels that belong to no class; no class has a grey."""

BACKGROUND_NAMES = frozenset(
    {"background", "bg", "ground", "none", "nothing", "void", "empty", "unlabeled", "unlabelled", "notlabelled"}
)
"""What the class that is no thing is called, by its letters in lower case."""

_FIRST: tuple[Color, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
"""Okabe and Ito's palette without its black: told apart by colour-blind people too."""

_LEVELS = 16
_LIGHTNESS = (0.5, 0.88)
_CHROMA = 0.07

# Machado, Oliveira and Fernandes 2009: linear RGB as someone without green cones sees it.
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
# Ottosson 2020: linear RGB to cone responses, their cube roots to Oklab.
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def class_colors(n: int) -> list[Color]:
    """Return ``n`` colours, one for each class: those of ``class_colors(k)`` are the first k of them.

    The first seven are Okabe and Ito's. Each further one is the colour farthest from all before it, in Oklab as most
    people and as people with deuteranopia see it, among those of middle lightness that are no greys: they show on
    light, on dark and on photos. After about two thousand they repeat.

    Raises:
        ValueError: ``n`` is negative.

    Example:
        >>> class_colors(3)
        [(0, 114, 178), (230, 159, 0), (0, 158, 115)]
        >>> len(set(class_colors(150)))
        150
    """
    if n < 0:
        raise ValueError(f"n={n}: a palette has 0 colours or more")
    room = 64
    while room < n:
        room *= 4
    colors = _palette(room)
    return [colors[index % len(colors)] for index in range(n)]


def background_of(classes: Sequence[str]) -> int | None:
    """Return the class that is only what the others lie on, and is not painted; None where there is no such class.

    That is the first class, where it is called so or has no name but "class 0".

    Example:
        >>> [background_of(names) for names in (["_background_", "cat"], ["class 0", "class 1"], ["wall", "sky"])]
        [0, 0, None]
    """
    first = classes[0].lower() if classes else ""
    letters = "".join(char for char in first if char.isalpha())
    return 0 if letters in BACKGROUND_NAMES or first == "class 0" else None


def readable_on(color: Color) -> Color:
    """Return black or white, whichever text stands out more on a colour.

    Example:
        >>> readable_on((240, 228, 66)), readable_on((0, 114, 178))
        ((0, 0, 0), (255, 255, 255))
    """
    luminance = float(_linear(np.array(color)) @ np.array([0.2126, 0.7152, 0.0722]))
    return (0, 0, 0) if luminance > 0.18 else (255, 255, 255)


@lru_cache(maxsize=4)
def _palette(n: int) -> tuple[Color, ...]:
    levels = np.linspace(0, 255, _LEVELS).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(_linear(grid))
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    grid = grid[(lab[:, 0] >= _LIGHTNESS[0]) & (lab[:, 0] <= _LIGHTNESS[1]) & (chroma >= _CHROMA)]
    chosen, place = list(_FIRST), _seen(grid)
    distance = np.full(len(grid), np.inf)
    for color in _FIRST:
        distance = np.minimum(distance, _distance(place, _seen(np.array([color]))))
    while len(chosen) < n and distance.max() > 0:
        best = int(distance.argmax())
        red, green, blue = (int(value) for value in grid[best])
        chosen.append((red, green, blue))
        distance = np.minimum(distance, _distance(place, place[best]))
    return tuple(chosen)


def _seen(colors: np.ndarray) -> np.ndarray:
    """Return [N, 6]: Oklab as most people see it, and as seen with deuteranopia."""
    linear = _linear(colors)
    return np.concatenate([_oklab(linear), _oklab(np.clip(linear @ _DEUTERANOPIA.T, 0, 1))], 1)


def _distance(places: np.ndarray, one: np.ndarray) -> np.ndarray:
    return np.square(places - one).sum(1)


def _linear(colors: np.ndarray) -> np.ndarray:
    value = np.asarray(colors, dtype=np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _oklab(linear: np.ndarray) -> np.ndarray:
    return np.cbrt(linear @ _CONES.T) @ _OKLAB.T
