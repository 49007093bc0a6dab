"""Open an image file: whatever arrives becomes an upright 8-bit RGB image, or an error that names the file."""

import errno
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from convattn.data.packed import PackedFile, file_status
from convattn.data.pixels import PixelError, to_ids, to_rgb
from convattn.errors import UserError, first_line

Pixels = TypeVar("Pixels")

MAX_PIXELS = 80_000_000
"""The largest image that is decoded, 240 MB of RGB; below the size at which Pillow warns of a decompression bomb."""

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2"}
)
"""File name endings, in lower case, that count as images."""

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the machine has run out of says nothing about the file."""

_CONVERT = "save it again as PNG, or remove it"
_BROKEN = "fetch or save the file again, or remove it"
_SHRINK = "save a smaller copy, or remove it"


class ImageError(UserError):
    """A file that gives no image: which file, why, and what to do about it.

    Example:
        >>> print(ImageError("cat.jpg", "the file is empty", "fetch it again"))
        cat.jpg: the file is empty (fetch it again)
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, remedy: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        self.remedy = remedy
        # The three arguments, not the message: a DataLoader worker pickles the error on its way to the main process.
        super().__init__(self.path, reason, remedy)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} ({self.remedy})"


def is_image_name(name: str) -> bool:
    """Tell whether a file name is that of an image: a known ending in any case, not hidden.

    Example:
        >>> [is_image_name(name) for name in ("cat.JPG", "._cat.jpg", "notes.txt")]
        [True, False, False]
    """
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def is_text(text: str) -> bool:
    r"""Tell whether a text can be written to a file: no NUL, and no half of a character, which JSON and YAML let pass.

    Example:
        >>> is_text("jay"), is_text("a\0"), is_text("\ud800")
        (True, False, False)
    """
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def is_file_name(name: str) -> bool:
    r"""Tell whether a file can have that name; bytes that are no UTF-8 stand in it as Python writes them.

    Example:
        >>> is_file_name("jay.png"), is_file_name("caf\udce9.png"), is_file_name("\ud800.png"), is_file_name("a\0.png")
        (True, True, False, False)
    """
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def open_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file as upright 8-bit RGB.

    Grey of 12 or 16 bits and of floats from 0 to 1 is scaled by the range of its type, never clipped; transparent
    pixels are laid on white; of an animation the first frame is taken, of several pages the first; the camera's
    rotation (EXIF) is applied. A JPEG of more than ``max_pixels`` is decoded at 1/2, 1/4 or 1/8 of its size.

    Raises:
        ImageError: The file is missing, unreadable, empty, truncated, no image, larger than ``max_pixels``, or of
            numbers whose white is not known (32 bits, signed).

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "grey.png")
        >>> Image.new("L", (4, 3)).save(path)
        >>> image = open_image(path)
        >>> image.mode, image.size
        ('RGB', (4, 3))
    """
    return _read(path, to_rgb, max_pixels)


def open_ids(path: str | os.PathLike[str]) -> np.ndarray:
    """Open a label map as the numbers that stand in its file, upright, int64 [H, W]: grey or palette indices.

    Raises:
        ImageError: As :func:`open_image`, or it is not sure that the numbers are the ids.
    """
    return _read(path, to_ids, MAX_PIXELS)


def check_image(path: str | os.PathLike[str], *, decode: bool = True, max_pixels: int = MAX_PIXELS) -> None:
    """Raise :class:`ImageError` where :func:`open_image` would.

    With ``decode=False`` a JPEG that has its header and its end mark counts as good: a truncated one has lost the
    mark, and libjpeg reads over most other damage. That is many times faster.

    Example:
        >>> check_image("nowhere.png")
        Traceback (most recent call last):
        ...
        convattn.data.images.ImageError: nowhere.png: no such file (check the path)
    """
    if not decode:
        with open_file(path) as file:
            image = read_header(file, path)
            _limit_size(image, path, max_pixels)
            if isinstance(image, JpegImagePlugin.JpegImageFile) and _ends_as_jpeg(file):
                return
    open_image(path, max_pixels=max_pixels)


def _read(path: str | os.PathLike[str], meant: Callable[[Image.Image], Pixels], max_pixels: int) -> Pixels:
    """Load an image and return what its numbers mean."""
    with open_file(path) as file:
        image = read_header(file, path)
        _limit_size(image, path, max_pixels)
        try:
            return meant(image)
        except PixelError as error:
            raise ImageError(path, error.reason, error.remedy) from error
        except MemoryError as error:
            raise ImageError(path, "too large for the memory of this machine", _SHRINK) from error
        except Exception as error:  # Pillow's decoders raise nearly every built-in type on damaged data
            raise ImageError(path, f"truncated or damaged: {_said(error)}", _BROKEN) from error


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a non-empty regular file; raise an :class:`ImageError` for anything else."""
    try:
        status = file_status(path)
        if stat.S_ISREG(status.st_mode) and status.st_size:
            return path.open() if isinstance(path, PackedFile) else open(path, "rb")
    except UserError:
        raise  # a pack that cannot be read: nothing is wrong with the image
    except PermissionError as error:
        raise ImageError(
            path, "no permission to read it", "change its permissions, for example with chmod +r"
        ) from error
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise ImageError(path, "a link to a missing file", "mend or remove the link") from error
        raise ImageError(path, "no such file", "check the path") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            raise  # nothing is wrong with the image
        raise ImageError(path, f"cannot be opened: {_said(error)}", "check the path and the disk") from error
    if stat.S_ISREG(status.st_mode):
        raise ImageError(path, "the file is empty", _BROKEN)
    raise ImageError(path, "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file", "name an image file")


def read_header(file: BinaryIO, path: str | os.PathLike[str]) -> Image.Image:
    """Read the size and mode of an open image file.

    JPEGs go past Pillow's limit on pixels, since they can be decoded at a reduced size.
    """
    is_jpeg = file.read(3) == b"\xff\xd8\xff"
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _limit_size gives the answer to it
            return JpegImagePlugin.JpegImageFile(file) if is_jpeg else Image.open(file)
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"too many pixels: {_said(error)}", _SHRINK) from error
    except Exception as error:  # as above: damaged headers raise nearly every built-in type
        if not _unidentified(error):
            raise ImageError(path, f"truncated or damaged: {_said(error)}", _BROKEN) from error
        if Path(path).suffix.lower() in (".heic", ".heif", ".avif"):
            raise ImageError(path, "a format that this installation of Pillow cannot read", _CONVERT) from error
        raise ImageError(path, "not an image that Pillow can read", _CONVERT) from error


def _unidentified(error: BaseException | None) -> bool:
    """Tell whether Pillow knew no format for the file.

    Packages that put their own ``Image.open`` in place (ultralytics') answer that with a plugin, and with an
    ImportError where it is missing: Pillow's answer is then the error's context.
    """
    while error is not None and not isinstance(error, UnidentifiedImageError):
        error = error.__context__
    return error is not None


def _limit_size(image: Image.Image, path: str | os.PathLike[str], max_pixels: int) -> None:
    """Have a JPEG decoded at a reduced size until it fits; refuse any other image that does not."""
    width, height = image.size
    if width * height <= max_pixels:
        return
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        for scale in (2, 4, 8):
            if -(-width // scale) * -(-height // scale) <= max_pixels:
                image.draft(None, (width // scale, height // scale))
                return
    millions = f"{width * height / 1e6:.0f} million pixels, the limit is {max_pixels / 1e6:g}"
    raise ImageError(path, f"too large: {width}×{height} = {millions}", _SHRINK)


def _ends_as_jpeg(file: BinaryIO) -> bool:
    """Tell whether the end-of-image mark stands at the end; cameras and editors may pad it with zeros."""
    file.seek(0, os.SEEK_END)
    file.seek(max(file.tell() - 64, 0))
    return file.read().rstrip(b"\x00\r\n").endswith(b"\xff\xd9")


def _said(error: Exception) -> str:
    """Return the first line of an error's message, without the path that the system puts behind it."""
    return first_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
