"""Names beside objects: fonts that have the characters, and places that hide neither small objects nor other names."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import ImageDraw, ImageFont

from convattn.report.palette import Color, readable_on
from convattn.report.text import visible

FONTS = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "msyh.ttc",
    "PingFang.ttc",
    "Arial Unicode.ttf",
)
"""Looked for in this order, the first that has every character of a text is taken."""

COVER_LIMIT = 0.5
"""The largest part of any object that a name may hide; where there is no such place the name is left out."""

HIDDEN_LIMIT = 0.25
"""The part of the picture that all names together may hide; those after it are left out, but never the first."""

OVERLAP_LIMIT = 0.3
"""The largest part of an earlier name that a later one may hide, or else it is left out."""

LETTERS_LIMIT = 48
WIDTH_LIMIT = 0.6
"""The part of the picture's width that a name may take; a longer one is cut, its score is not."""

_ELLIPSIS = "…"
_NOWHERE = "\U0010ffff"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass
class TagWriter:
    """Writes names on a picture, one after another; ``boxes`` [N, 4] are all its objects, in the picture's pixels."""

    draw: ImageDraw.ImageDraw
    size: tuple[int, int]
    boxes: np.ndarray
    font_size: int
    placed: list[np.ndarray] = field(default_factory=list)
    hidden: float = 0.0

    def write(self, name: str, score: str, box: np.ndarray, color: Color) -> bool:
        """Write a name and score beside their box, on a ground of the colour; False where there is no place."""
        text, font = self._fit(visible(" ".join(name.split())), score)
        pad = max(1, self.font_size // 6)
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=font)
        # Without descenders the ground is as high as with them, so that a row of names is even.
        line = self.draw.textbbox((0, 0), "Ág", font=font)
        top, bottom = min(top, line[1]), max(bottom, line[3])
        size = np.array([right - left + 2 * pad, bottom - top + 2 * pad])
        if self.placed and self.hidden + size.prod() > HIDDEN_LIMIT * self.size[0] * self.size[1]:
            return False
        place = self._place(size, box)
        if place is None:
            return False
        self.hidden += float(size.prod())
        self.placed.append(np.concatenate([place, place + size]))
        x, y = (int(value) for value in place)
        self.draw.rectangle((x, y, x + int(size[0]) - 1, y + int(size[1]) - 1), fill=color)
        self.draw.text((x + pad - left, y + pad - top), text, font=font, fill=readable_on(color))
        return True

    def _fit(self, name: str, score: str) -> tuple[str, Font]:
        """Return the text, its name shortened to a part of the picture's width, and the font that has its letters."""
        font = font_for(name + score, self.font_size)
        room = WIDTH_LIMIT * self.size[0]
        shown = name if len(name) <= LETTERS_LIMIT else name[:LETTERS_LIMIT] + _ELLIPSIS
        while len(shown) > 2 and self.draw.textlength(f"{shown} {score}", font=font) > room:
            shown = shown.removesuffix(_ELLIPSIS)[:-1] + _ELLIPSIS
        return f"{shown} {score}".strip(), font

    def _place(self, size: np.ndarray, box: np.ndarray) -> np.ndarray | None:
        """Return the corner of the best place: it hides no object and no name, and is the nearest to the usual."""
        width, height = size
        x1, y1, x2, y2 = box
        places = np.array(
            [
                (x1, y1 - height),
                (x1, y2),
                (x2 - width, y1 - height),
                (x2 - width, y2),
                (x1, y1),
                (x2, y1),
                (x1 - width, y1),
                (x1, y2 - height),
                (x2, y2 - height),
                (x1 - width, y2 - height),
            ]
        )
        places = np.clip(places.round(), 0, np.maximum(np.array(self.size) - size, 0))
        tags = np.concatenate([places, places + size], 1)
        hidden = _covered(tags, self.boxes).max(1)
        overlap = _covered(tags, np.stack(self.placed)).max(1) if self.placed else np.zeros(len(tags))
        cost = 2 * overlap + hidden + 0.02 * np.arange(len(tags))
        cost[(hidden > COVER_LIMIT) | (overlap > OVERLAP_LIMIT)] = np.inf
        best = int(cost.argmin())
        return places[best] if np.isfinite(cost[best]) else None


def _covered(tags: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the part of each box [N, 4] that each tag [M, 4] hides, [M, N]."""
    low = np.maximum(tags[:, None, :2], boxes[None, :, :2])
    high = np.minimum(tags[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area = np.clip(boxes[:, 2:] - boxes[:, :2], 1, None).prod(-1)
    return common / area


def font_for(text: str, size: int) -> Font:
    """Return the first of ``FONTS`` that has every character of the text; the first of all where none has."""
    fallback: Font | None = None
    for name, font in _fonts(size):
        if fallback is None:
            fallback = font
        if all(_has(name, char) for char in set(text)):
            return font
    return ImageFont.load_default(size) if fallback is None else fallback


def _fonts(size: int) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    for name in FONTS:
        font = _load(name, size)
        if font is not None:
            yield name, font


@lru_cache(maxsize=64)
def _load(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    for place in _places(name):
        with suppress(OSError):
            return ImageFont.truetype(place, size)
    return None


def _places(name: str) -> Sequence[str]:
    """Return where a font may lie: among the system's, and the first of them inside matplotlib."""
    found = find_spec("matplotlib") if name == FONTS[0] else None
    folders = found.submodule_search_locations if found is not None else None
    return [*(str(Path(folder) / "mpl-data" / "fonts" / "ttf" / name) for folder in folders or ()), name]


@lru_cache(maxsize=4096)
def _has(name: str, char: str) -> bool:
    font = _load(name, 16)
    if font is None:
        return False
    return bytes(font.getmask(char)) != bytes(font.getmask(_NOWHERE))
