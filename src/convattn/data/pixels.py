"""The numbers of an opened image as they are meant, as colours of 8 bits or ids: Pillow changes some as it loads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

SPREAD = {"L;2": 85, "L;4": 17, "L;2I": 85, "L;4I": 17, "L;2R": 85, "L;4R": 17, "L;2IR": 85, "L;4IR": 17}
"""By what Pillow multiplies grey values of 2 and 4 bits, to fill a byte; by the name it gives the way they lie."""

ID_FORMATS = ("PNG", "TIFF", "BMP", "GIF", "TGA", "PPM")
"""Formats, as Pillow calls them, that keep every number as it is: a label map's."""

YCBCR = 6
"""In a TIFF's tag of what its numbers mean."""
LOSSY = ("jpeg", "tiff_jpeg", "webp", "tiff_sgilog", "tiff_sgilog24")
"""The compressions of a TIFF that change its numbers."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CONVERT = "save it again as an 8-bit PNG, or remove it"
_SAVE_IDS = "save the ids as an 8-bit grey PNG"


class PixelError(ValueError):
    """Numbers whose meaning is not known: what was found, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(reason, remedy)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an opened image as upright 8-bit RGB, transparent pixels laid on white.

    Raises:
        PixelError: The numbers have no range that is known.

    Example:
        >>> to_rgb(Image.fromarray(np.array([[0, 65535]], np.uint16))).getpixel((1, 0))
        (255, 255, 255)
    """
    stored, is_tga = _stored(image), image.format == "TGA"
    image = _upright(image)
    clear = image.info.get("transparency")
    if stored.raw.startswith("RGB;16") and clear is not None:
        raise PixelError("one of its colours of 16 bits is transparent, which Pillow cannot show", _CONVERT)
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or stored.signed:
        image = _eight_bits(image, stored)
    elif stored.raw in SPREAD and clear is not None:
        image.info["transparency"] = clear * SPREAD[stored.raw]
    elif image.mode == "La":
        image = image.convert("LA")
    elif is_tga and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # its fourth byte is unused: TGA has no other way to say so that is kept to
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def to_ids(image: Image.Image) -> np.ndarray:
    """Return the numbers of an opened label map as they stand in its file, upright, int64 [H, W].

    Grey of 1 to 32 bits, or palette indices.

    Raises:
        PixelError: The file has colours in place of ids, or it is not sure that its numbers are the ids.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.fromarray(np.array([[0, 7]], np.uint8)).save(file, "PNG")
        >>> to_ids(Image.open(file)).tolist()
        [[0, 7]]
    """
    compression = image.info.get("compression")
    if image.format not in ID_FORMATS or compression in LOSSY:
        name = f"{image.format} of {compression}" if compression in LOSSY else image.format
        what = f"{name} changes numbers as it stores them, or is not known to keep them"
        raise PixelError(what, f"{_SAVE_IDS}, from what they were made of")
    stored, frames = _stored(image), getattr(image, "n_frames", 1)
    if frames > 1:
        raise PixelError(f"found {frames} pages, expected one label map", "save the one that is meant as a file")
    if not (image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16")):
        what = f"a picture of mode {image.mode}, expected one channel that holds the class of each pixel"
        raise PixelError(what, _SAVE_IDS)
    if stored.white_is_zero:
        raise PixelError("its numbers count from white down, so that it is not sure which class 0 is", _SAVE_IDS)
    ids = np.asarray(_upright(image)).astype(np.int64)
    if stored.signed:
        return ids.astype(np.int8).astype(np.int64) if image.mode == "L" else ids
    if image.mode == "I" and stored.scale == 1:
        ids &= 0xFFFFFFFF  # Pillow has no unsigned 32 bits
    return ids if stored.scale == 1 else np.round(ids / stored.scale).astype(np.int64)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 (upright) where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises nearly every built-in type
        return 1


@dataclass(frozen=True)
class _Stored:
    """How a file holds its numbers, which Pillow forgets as it loads them."""

    raw: str
    """Pillow's name of the way they lie."""
    scale: float
    """By what Pillow multiplies them."""
    white: float | None
    """The largest number of a grey of more than 8 bits; None where it is not known."""
    signed: bool
    white_is_zero: bool


def _stored(image: Image.Image) -> _Stored:
    """Tell how a file holds its numbers; it is opened, and not yet loaded.

    Raises:
        PixelError: Pillow opens it, and then mistakes its numbers.
    """
    decoder, _, _, args = (getattr(image, "tile", None) or [("", None, 0, "")])[0]
    raw, *more = args if isinstance(args, tuple) and isinstance(args[0], str) else (str(args),)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    scale: float = SPREAD.get(raw, 1)
    if decoder.startswith("ppm") and more:
        scale = (65535 if image.mode == "I" else 255) / more[0]
    if image.format == "BMP" and image.mode in ("1", "L") and _bmp_bits(image) != (1 if image.mode == "1" else 8):
        raise PixelError("a BMP of few greys, which Pillow takes for one of another depth", _CONVERT)
    if image.mode == "F":
        white = 1.0
    elif image.mode == "I" and image.format != "PPM":
        white = None
    else:
        white = 4095.0 if raw == "I;12" else 65535.0
    if tags is None:
        return _Stored(raw, scale, white, signed=False, white_is_zero=raw == "1;I")
    apart = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and decoder != "libtiff"
    if apart and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8:
        raise PixelError("colours of 16 bits, each in a plane of its own, which Pillow does not read", _CONVERT)
    if decoder == "libtiff" and raw in ("I;16BS", "I;32BS", "F;32BF"):
        raise PixelError("compressed numbers in big-endian order, which Pillow does not read", _CONVERT)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == YCBCR and raw == "RGBX":
        raise PixelError("lightness and two colours (YCbCr), which Pillow before 13 takes for RGB", _CONVERT)
    signed = 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ())
    from_white = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
    return _Stored(raw, scale, white, signed, from_white)


def _bmp_bits(image: Image.Image) -> int:
    """Return the bits of a BMP's pixel, which Pillow forgets."""
    file: Any = image.fp  # type: ignore[attr-defined]  # an opened file has one
    file.seek(14)
    header = file.read(16)
    return int(header[10] if header[0] == 12 else header[14])  # OS/2's header of 12 bytes is shorter


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turn = _UPRIGHT.get(orientation(image))  # after loading: Pillow turns a TIFF by itself then, and drops the tag
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, stored: _Stored) -> Image.Image:
    """Scale grey values of more than 8 bits by the range of their type: 0..65535 for integers, 0..1 for floats."""
    if stored.white is None or stored.signed:
        raise PixelError("grey values of 32 bits, or with a sign: which of them is white is not known", _CONVERT)
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= stored.white):
        raise PixelError(f"grey values from {low:g} to {high:g}; 0 to {stored.white:g} is known", _CONVERT)
    clear = image.info.get("transparency")
    light = stored.white - values if stored.white_is_zero else values
    grey = Image.fromarray(np.round(light * (255 / stored.white)).astype(np.uint8))
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey
