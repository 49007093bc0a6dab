"""What the colours of a picture mean, on a panel of its own ground below it, so that it can be read on any page."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from convattn.report.palette import Color
from convattn.report.tags import Font, font_for
from convattn.report.text import visible

PANEL: Color = (255, 255, 255)
INK: Color = (22, 32, 44)
FRAME: Color = (91, 103, 117)

KEYS_LIMIT = 24
"""Of more colours the first are named, and how many follow."""

LETTERS_LIMIT = 48
"""Longer names are cut."""


@dataclass(frozen=True)
class Key:
    """A name and its colour; None stands for what is not painted."""

    name: str
    color: Color | None


def with_legend(picture: Image.Image, keys: Sequence[Key]) -> Image.Image:
    """Return a picture with its colours and their names below it, on white, in dark letters.

    The picture itself is not changed; it stands at the top left. A panel is as wide as its longest name asks.

    Example:
        >>> drawn = with_legend(Image.new("RGB", (90, 60)), [Key("cat", (0, 114, 178)), Key("ground", None)])
        >>> drawn.getpixel((0, 59)), drawn.getpixel((0, 60)), drawn.getpixel((9, 69))
        ((0, 0, 0), (255, 255, 255), (0, 114, 178))
    """
    if not keys:
        return picture
    size = max(12, round(8 + max(picture.size) / 60))
    shown = [_cut(key) for key in keys[:KEYS_LIMIT]]
    if len(keys) > KEYS_LIMIT:
        shown.append(Key(f"and {len(keys) - KEYS_LIMIT} more", None))
    pen = ImageDraw.Draw(picture)
    fonts = [font_for(key.name, size) for key in shown]
    widths = [round(2.2 * size + pen.textlength(key.name, font=font)) for key, font in zip(shown, fonts, strict=True)]
    width = max(picture.width, max(widths) + size)
    places, height = _places(widths, width, size)
    panel = Image.new("RGB", (width, picture.height + height), PANEL)
    panel.paste(picture)
    pen = ImageDraw.Draw(panel)
    for key, font, (x, y) in zip(shown, fonts, places, strict=True):
        _write(pen, key, font, (x, picture.height + y), size)
    return panel


def _cut(key: Key) -> Key:
    name = visible(" ".join(key.name.split()))
    if len(name) > LETTERS_LIMIT:
        name = f"{name[: LETTERS_LIMIT // 2]}…{name[-LETTERS_LIMIT // 2 :]}"
    return Key(name if key.color is not None else f"{name} (not painted)", key.color)


def _places(widths: Sequence[int], width: int, size: int) -> tuple[list[tuple[int, int]], int]:
    """Return the keys' corners, line by line, and the height of all lines."""
    places, x, y, line = [], size // 2, size // 2, round(1.7 * size)
    for wide in widths:
        if x > size // 2 and x + wide > width - size // 2:
            x, y = size // 2, y + line
        places.append((x, y))
        x += wide + size
    return places, y + line + size // 4


def _write(pen: ImageDraw.ImageDraw, key: Key, font: Font, place: tuple[int, int], size: int) -> None:
    x, y = place
    pen.rectangle((x, y, x + round(1.5 * size), y + size), fill=key.color or PANEL, outline=FRAME)
    pen.text((x + round(2 * size), y + size // 2), key.name, font=font, fill=INK, anchor="lm")
