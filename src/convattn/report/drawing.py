"""Results drawn on images: boxes and masks with their names, label maps in the colours of their classes."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from convattn.report.palette import NOT_LABELLED, Color, class_colors
from convattn.report.tags import TagWriter

__all__ = ["Color", "LineStyle", "class_colors", "draw_detections", "draw_label_map"]

LineStyle = Literal["solid", "dashed", "dotted"]

MASK_OPACITY = 0.4

_DASHES: dict[str, tuple[int, int]] = {"dashed": (5, 3), "dotted": (1, 2)}
"""Length of a dash and of the gap after it, in line widths."""

_HALO: Color = (0, 0, 0)
_NAMED_COLORS = 32


def draw_detections(
    image: Image.Image,
    boxes: ArrayLike,
    labels: Sequence[str],
    scores: Sequence[float] | None = None,
    masks: Iterable[np.ndarray] | None = None,
    *,
    colors: Sequence[Color] | None = None,
    styles: Sequence[LineStyle] | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Return a copy of an image with objects drawn on it, each with its name and score.

    An object with a mask is drawn as that: filled half through, with an outline; one without, or with an empty mask,
    as its box. Line width and letters grow with the picture. A name stands where it hides the least, those of the
    surest first; it is left out where it would hide more than half of an object, another name, or, with those before
    it, a quarter of the picture.

    Args:
        image: Any mode; it is not changed.
        boxes: [N, 4] of x1, y1, x2, y2 in the image's pixels; parts outside are cut off, boxes that are not finite
            are not drawn.
        labels: N names, of any characters.
        scores: N numbers of 0 to 1, written in percent after the name; the higher are drawn over the lower.
        masks: N arrays [H, W] of the image's size, not 0 inside; they are read one at a time.
        colors: N colours; by default a name's own, the same in every image: with few names two may be alike, so give
            ``class_colors(n)[label]`` where the classes are numbered.
        styles: N line styles; by default solid.
        scale: Draw on a picture that many times as large, so that names have room on a small image.

    Raises:
        ValueError: Lengths or shapes that do not fit each other, or a scale that is not above zero.

    Example:
        >>> image = Image.new("RGB", (64, 48), "white")
        >>> drawn = draw_detections(image, [[8, 16, 40, 40]], ["cat"], [0.92], colors=class_colors(1))
        >>> drawn.size, drawn.getpixel((8, 30)), image.getpixel((8, 30))
        ((64, 48), (0, 114, 178), (255, 255, 255))
    """
    corners = _check_boxes(boxes)
    _check_lengths(len(corners), labels=labels, scores=scores, colors=colors, styles=styles)
    picture = enlarged(image, scale)
    colors = [_color_of(name) for name in labels] if colors is None else colors
    styles = ["solid"] * len(labels) if styles is None else styles
    corners = corners * (np.array(picture.size * 2) / np.array(image.size * 2))
    drawable = np.isfinite(corners).all(1)
    corners = np.clip(np.where(drawable[:, None], corners, 0), 0, np.array(picture.size * 2))
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])
    order = [int(index) for index in np.argsort(_ranks(scores, len(corners)), kind="stable") if drawable[index]]
    pen = _Pen(picture, _line_width(picture.size))
    shapes = _shapes(masks, len(corners), image, picture)
    for index in order:
        if index in shapes:
            pen.mask(shapes[index], colors[index], styles[index])
        else:
            pen.box(corners[index], colors[index], styles[index])
    if order:
        writer = TagWriter(ImageDraw.Draw(picture), picture.size, corners[order], _font_size(picture.size))
        for index in reversed(order):
            score = "" if scores is None or not np.isfinite(scores[index]) else f"{100 * scores[index]:.0f}%"
            writer.write(labels[index], score, corners[index], colors[index])
    return picture


def draw_label_map(
    image: Image.Image,
    labels: np.ndarray,
    num_classes: int,
    *,
    opacity: float = 0.6,
    colors: Sequence[Color] | None = None,
    background: int | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Return a copy of an image under the colours of its pixels' classes; pixels of no class are hatched in grey.

    Args:
        image: Any mode; it is not changed.
        labels: [H, W] of the image's size; ids from 0, all others (255 by convention) mean not labelled.
        num_classes: K.
        opacity: 0 shows the image alone, 1 the label map alone.
        colors: K colours; by default ``class_colors(K)``.
        background: A class that is not painted: the image shows there. None paints all.
        scale: Draw on a picture that many times as large.

    Raises:
        ValueError: Labels of another size than the image, an opacity outside 0 to 1, too few colours, or a scale that
            is not above zero.

    Example:
        >>> image = Image.new("RGB", (2, 1), "white")
        >>> drawn = draw_label_map(image, np.array([[0, 1]]), 2, opacity=1)
        >>> [drawn.getpixel((x, 0)) for x in range(2)] == class_colors(2)
        True
    """
    labels = np.asarray(labels)
    if labels.shape != image.size[::-1]:
        raise ValueError(f"labels {list(labels.shape)} for an image of {image.size[::-1]} (height, width)")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity}: it lies between 0 and 1")
    palette = class_colors(num_classes) if colors is None else list(colors)
    if len(palette) < num_classes:
        raise ValueError(f"{len(palette)} colours for {num_classes} classes: give one for each")
    picture = enlarged(image, scale)
    known = (labels >= 0) & (labels < num_classes)
    ids = np.where(known, labels, num_classes).astype(np.int32)
    ids = ids[_nearest(picture.height, image.height)][:, _nearest(picture.width, image.width)]
    table = np.array([*palette[:num_classes], NOT_LABELLED], dtype=np.float32)
    strength = np.full((num_classes + 1, 1), opacity, dtype=np.float32)
    if background is not None:
        strength[background] = 0
    pixels = np.asarray(picture, dtype=np.float32)
    mixed = pixels + strength[ids] * (table[ids] - pixels)
    hatched = (ids == num_classes) & _stripes(picture.size)
    mixed[hatched] *= 1 - 0.55 * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def fit_scale(size: tuple[int, int], side: int) -> float:
    """Return the scale at which the longer side of an image comes to ``side``.

    Example:
        >>> fit_scale((64, 32), 448), fit_scale((4480, 100), 448)
        (7.0, 0.1)
    """
    return side / max(size)


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Return a copy of an image as RGB, its longer side made ``side``."""
    return enlarged(image, fit_scale(image.size, side))


def _stripes(size: tuple[int, int]) -> np.ndarray:
    """Return slanted stripes, bool [H, W], of the width of the picture's lines."""
    width, height = size
    step = 2 * _line_width(size)
    return (np.arange(height)[:, None] + np.arange(width)[None]) // step % 2 == 0


def enlarged(image: Image.Image, scale: float) -> Image.Image:
    """Return a copy of an image as RGB, ``scale`` times as large."""
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale={scale}: it is a number above zero, 1 for a picture of the image's size")
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = image.convert("RGB")
    if size == picture.size:
        return picture.copy()
    return picture.resize(size, Image.Resampling.LANCZOS)


def _nearest(target: int, source: int) -> np.ndarray:
    """Return the source pixel behind each of ``target`` pixels."""
    return np.minimum((np.arange(target) + 0.5) * source / target, source - 1).astype(np.int64)


def _line_width(size: tuple[int, int]) -> int:
    return max(1, round(0.8 + max(size) / 220))


def _font_size(size: tuple[int, int]) -> int:
    """Return the letters' height: it grows with the longer side, bounded where the other one is short."""
    return max(9, min(round(8 + max(size) / 48), min(size) // 6))


def _color_of(name: str) -> Color:
    return class_colors(_NAMED_COLORS)[zlib.crc32(name.encode("utf-8", "replace")) % _NAMED_COLORS]


def _ranks(scores: Sequence[float] | None, count: int) -> np.ndarray:
    """Return what orders the drawing: scores, or the places from the last to the first."""
    if scores is None:
        return -np.arange(count)
    return np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-1.0)


def _check_boxes(boxes: ArrayLike) -> np.ndarray:
    corners = np.asarray(boxes, dtype=np.float64)
    if corners.size == 0:
        return np.zeros((0, 4))
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"boxes are [N, 4] of x1, y1, x2, y2, got {list(corners.shape)}")
    return corners


def _check_lengths(count: int, **given: Sequence[object] | None) -> None:
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise ValueError(f"{len(values)} {name} for {count} boxes: give one for each")


@dataclass(frozen=True)
class _Shape:
    """A mask on the picture: its corner and its pixels, cut to where they are."""

    left: int
    top: int
    pixels: np.ndarray


def _shapes(
    masks: Iterable[np.ndarray] | None, count: int, image: Image.Image, picture: Image.Image
) -> dict[int, _Shape]:
    """Return the masks that are not empty, at the picture's scale."""
    if masks is None:
        return {}
    found, seen = {}, 0
    for index, mask in enumerate(masks):
        mask = np.asarray(mask) > 0
        if mask.shape != image.size[::-1]:
            raise ValueError(f"mask {index} is {list(mask.shape)}, the image {image.size[::-1]} (height, width)")
        seen += 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            continue
        ys, xs = _nearest(picture.height, image.height), _nearest(picture.width, image.width)
        top, bottom = np.searchsorted(ys, rows[0]), np.searchsorted(ys, rows[-1], "right")
        left, right = np.searchsorted(xs, columns[0]), np.searchsorted(xs, columns[-1], "right")
        pixels = mask[ys[top:bottom]][:, xs[left:right]]
        # A shrunk picture may have no pixel left of a tiny mask: its box is drawn.
        if pixels.any():
            found[index] = _Shape(int(left), int(top), pixels)
    if seen != count:
        raise ValueError(f"{seen} masks for {count} boxes: give one for each")
    return found


@dataclass(frozen=True)
class _Pen:
    """Draws lines that stand out on any ground: every one has a dark rim."""

    picture: Image.Image
    width: int

    def box(self, box: np.ndarray, color: Color, style: LineStyle) -> None:
        """Draw the outline of a box."""
        draw = ImageDraw.Draw(self.picture)
        left, top = (int(value) for value in np.floor(box[:2]))
        right = min(max(int(np.ceil(box[2])) - 1, left), self.picture.width - 1)
        bottom = min(max(int(np.ceil(box[3])) - 1, top), self.picture.height - 1)
        left, top = min(left, right), min(top, bottom)
        rim = max(1, self.width // 2)
        for spread, ink in ((rim, _HALO), (0, color)):
            for piece in self._pieces((left, top, right, bottom), style):
                x1, y1, x2, y2 = piece
                draw.rectangle((x1 - spread, y1 - spread, x2 + spread, y2 + spread), fill=ink)

    def _pieces(self, box: tuple[int, int, int, int], style: LineStyle) -> list[tuple[int, int, int, int]]:
        """Return the dashes of an outline as filled rectangles, the line lying inside the box."""
        left, top, right, bottom = box
        thick = min(self.width, right - left + 1, bottom - top + 1) - 1
        across = [(x, end) for x, end in self._dashes(left, right, style)]
        down = [(y, end) for y, end in self._dashes(top, bottom, style)]
        rows = [(x, y, end, y + thick) for x, end in across for y in (top, bottom - thick)]
        return rows + [(x, y, x + thick, end) for y, end in down for x in (left, right - thick)]

    def _dashes(self, first: int, last: int, style: LineStyle) -> list[tuple[int, int]]:
        if style == "solid":
            return [(first, last)]
        dash, gap = (max(2, self.width) * length for length in _DASHES[style])
        return [(start, min(start + dash - 1, last)) for start in range(first, last + 1, dash + gap)]

    def mask(self, shape: _Shape, color: Color, style: LineStyle) -> None:
        """Tint a mask's pixels and draw its outline."""
        rim = max(1, self.width // 2)
        inside = np.pad(shape.pixels, rim)
        height, width = inside.shape
        left, top = shape.left - rim, shape.top - rim
        pixels = np.asarray(self.picture.crop((left, top, left + width, top + height)), dtype=np.float32).copy()
        ink = np.array(color, dtype=np.float32)
        pixels[inside] += MASK_OPACITY * (ink - pixels[inside])
        outline = inside & ~_shrunk(inside, self.width)
        halo = _grown(inside, rim) & ~inside
        if style != "solid":
            dash, gap = (max(2, self.width) * length for length in _DASHES[style])
            drawn = (np.arange(height)[:, None] + np.arange(width)[None]) % (dash + gap) < dash
            outline, halo = outline & drawn, halo & drawn
        pixels[halo] = _HALO
        pixels[outline] = ink
        self.picture.paste(Image.fromarray(pixels.round().astype(np.uint8)), (left, top))


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """Return the pixels that belong to the mask or have one of it at that distance in one of eight directions."""
    height, width = mask.shape
    framed = np.pad(mask, by)
    steps = (0, by, 2 * by)
    near = [framed[down : down + height, right : right + width] for down in steps for right in steps]
    return np.logical_or.reduce(near)


def _shrunk(mask: np.ndarray, by: int) -> np.ndarray:
    """Return the pixels of the mask that have none beside it at that distance in eight directions."""
    return ~_grown(~np.pad(mask, by), by)[by:-by, by:-by]
