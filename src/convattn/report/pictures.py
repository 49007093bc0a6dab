"""Pictures inside the page."""

import base64
import io
from collections.abc import Callable

from PIL import Image

from convattn.errors import UserError
from convattn.report.markup import escape

PICTURE_SIZE = 176
SMALL = 64

QUALITY = 82
DRAWN_QUALITY = 85

UNREADABLE = (UserError, OSError, ValueError, LookupError)
"""What reading and drawing an image raise where it is gone, broken or of another size than its labels."""


def embed(image: Image.Image) -> str:
    """Return ``src`` (and a class for tiny images, whose pixels the page enlarges as squares)."""
    image = image.convert("RGB")
    tiny = max(image.size) <= SMALL
    image.thumbnail((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if tiny:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="JPEG", quality=QUALITY)
    kind = "png" if tiny else "jpeg"
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'{"class=pixels " if tiny else ""}src="data:image/{kind};base64,{data}"'


def drawn(make: Callable[[], Image.Image], alt: str, label: str) -> str:
    """Return a picture under its label; one that cannot be made leaves a note in its place.

    Args:
        make: Reads and draws it.
        alt: What it shows, in words.
        label: Stands under it.
    """
    try:
        picture = make()
    except UNREADABLE:
        content = '<div class="lost">cannot be read</div>'
    else:
        buffer = io.BytesIO()
        # Full colour resolution: thin coloured lines and letters would blur.
        picture.convert("RGB").save(buffer, format="JPEG", quality=DRAWN_QUALITY, subsampling=0)
        data = base64.b64encode(buffer.getvalue()).decode()
        content = f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'
    return f"<div>{content}<small>{escape(label)}</small></div>"
