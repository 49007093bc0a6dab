"""Pictures inside the page."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from convattn.errors import UserError

THUMBNAIL = 176
SMALL = 64

UNREADABLE = (UserError, OSError, ValueError, LookupError)
"""What reading and drawing an image raise where it is gone, broken or of another size than its labels."""


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it.

    Args:
        alt: What it shows, in words.
        source: The data, None where the picture could not be made.
        label: The text under it.
        is_tiny: The page enlarges its pixels as squares.
    """

    alt: str
    source: str | None
    label: str = ""
    is_tiny: bool = False


def thumbnail(make: Callable[[], Image.Image], alt: str) -> Picture:
    """Return a small picture of what ``make`` reads."""
    try:
        image = make().convert("RGB")
    except UNREADABLE:
        return Picture(alt, None)
    tiny = max(image.size) <= SMALL
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    source = data_url(image, "PNG", optimize=True) if tiny else data_url(image, "JPEG", quality=82)
    return Picture(alt, source, is_tiny=tiny)


def drawing(make: Callable[[], Image.Image], alt: str, label: str) -> Picture:
    """Return the picture that ``make`` draws, as large as it is."""
    try:
        image = make().convert("RGB")
    except UNREADABLE:
        return Picture(alt, None, label)
    # Full colour resolution: thin coloured lines and letters would blur.
    return Picture(alt, data_url(image, "JPEG", quality=85, subsampling=0), label)


def data_url(image: Image.Image, format: str, **options: Any) -> str:
    """Return an image as the ``src`` of a picture; ``options`` are those of Pillow's writer."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
