"""Image files checked in numbers, before training reads them one by one."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TypeVar

from PIL import TiffImagePlugin

from convattn.data.folder import Progress
from convattn.data.images import ImageError, check_image, open_file, read_header
from convattn.data.packed import ImageFile, file_status
from convattn.data.pixels import orientation

T = TypeVar("T")
R = TypeVar("R")

FULL_CHECK_BYTES = 500_000_000
"""Data sets up to this size are decoded whole when they are opened; of larger ones JPEGs are checked by their marks."""

SIDEWAYS = (5, 6, 7, 8)
"""The EXIF orientations that exchange width and height."""


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return (width, height) of a good image file, turned upright; a JPEG is measured before it is read smaller.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = os.path.join(tempfile.mkdtemp(), "a.png")
        >>> Image.new("L", (4, 3)).save(path)
        >>> upright_size(path)
        (4, 3)
    """
    with open_file(path) as file:
        image = read_header(file, path)
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow gives the upright size
            return width, height
        return (height, width) if orientation(image) in SIDEWAYS else (width, height)


def readable_size(path: ImageFile) -> tuple[int, int] | None:
    """Return the upright (width, height) of an image file, None where it cannot be read."""
    try:
        return upright_size(path)
    except ImageError:
        return None


def image_fault(path: str | os.PathLike[str], *, decode: bool) -> tuple[str, str] | None:
    """Return what is wrong with an image file, and what to do; None where it is good."""
    try:
        check_image(path, decode=decode)
    except ImageError as error:
        return error.reason, error.remedy
    return None


def decode_all(paths: Iterable[str | os.PathLike[str]]) -> bool:
    """Tell whether that many bytes are decoded whole when a data set is opened."""
    return all(total <= FULL_CHECK_BYTES for total in accumulate(map(_bytes, paths)))


def in_threads(work: Callable[[T], R], items: Sequence[T], progress: Progress | None = None) -> list[R]:
    """Return ``work`` of every item, in their order, done in threads.

    Example:
        >>> in_threads(str, [1, 2, 3])
        ['1', '2', '3']
    """
    step = min(256, 1 + len(items) // 64)
    chunks = [items[start : start + step] for start in range(0, len(items), step)]
    done: list[R] = []
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        for results in pool.map(lambda chunk: [work(item) for item in chunk], chunks):
            done += results
            if progress is not None:
                progress(len(done), len(items))
    return done


def _bytes(path: str | os.PathLike[str]) -> int:
    try:
        return file_status(path).st_size
    except OSError:
        return 0
