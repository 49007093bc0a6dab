"""One scene: real handwritten digits and distractors on a crop of a real photo."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SCAN_SIDE = 8
INK = (0.2, 0.5)
"""Scan values (of 0 to 1) between which a digit goes from see-through to opaque."""

SOLID = 0.5
"""The opacity from which a pixel belongs to a digit."""


@dataclass(frozen=True)
class SceneStyle:
    """How scenes look; lengths are parts of the scene's side.

    Args:
        size: The side of the scenes in pixels.
        digits: The fewest and the most digits of a scene; 0 makes scenes without objects.
        height: The smallest and the largest height of a digit before it is turned.
        rotation: The largest angle, in degrees; below the one that makes a 6 a 9.
        visible: The part of a digit's pixels that must stay in sight under the others.
        contrast: The least distance of a digit's colour to the ground's mean, of 255.
        distractors: The most things drawn that are no digits.
    """

    size: int = 128
    digits: tuple[int, int] = (0, 6)
    height: tuple[float, float] = (0.25, 0.6)
    rotation: float = 15.0
    visible: float = 0.85
    contrast: float = 80.0
    distractors: int = 2


@dataclass(frozen=True)
class Source:
    """What a split's scenes are made of: scans [N, 8, 8] of 0 to 16 with their digits and numbers, parts of photos.

    ``areas`` gives each photo's name, its pixels and the part (left, top, right, bottom) that crops come from.
    """

    scans: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray
    areas: tuple[tuple[str, Image.Image, tuple[int, int, int, int]], ...]


@dataclass(frozen=True)
class Thing:
    """A digit of a scene: which one, from which scan, and the mask [H, W] of its pixels in sight."""

    digit: int
    number: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """The pixels [H, W, 3], the digits from back to front, and where the ground was cropped."""

    pixels: np.ndarray
    things: tuple[Thing, ...]
    photo: str
    crop: tuple[int, int, int, int]

    def label_map(self) -> np.ndarray:
        """Return the class of each pixel, uint8 [H, W]: 0 is the ground, digit d is d + 1."""
        labels = np.zeros(self.pixels.shape[:2], np.uint8)
        for thing in self.things:
            labels[thing.mask] = thing.digit + 1
        return labels


def draw_scene(source: Source, style: SceneStyle, random: np.random.Generator) -> Scene:
    """Draw a scene; the same generator gives the same pixels."""
    photo, crop, pixels = _ground(source, style, random)
    for _ in range(random.integers(0, style.distractors + 1)):
        _blend(pixels, *_place(_distractor(source, style, random), style, random), style, random)
    things: list[Thing] = []
    full: list[int] = []
    for _ in range(random.integers(style.digits[0], style.digits[1] + 1)):
        pick = int(random.integers(len(source.labels)))
        placed = _free_place(_digit(source.scans[pick], style, random), things, full, style, random)
        if placed is None:
            continue
        alpha, corner = placed
        mask = np.zeros(pixels.shape[:2], bool)
        mask[_window(alpha, corner)] = alpha >= SOLID
        _blend(pixels, alpha, corner, style, random)
        things = [Thing(one.digit, one.number, one.mask & ~mask) for one in things]
        things.append(Thing(int(source.labels[pick]), int(source.numbers[pick]), mask))
        full.append(int(mask.sum()))
    return Scene(np.round(pixels).astype(np.uint8), tuple(things), photo, crop)


def _ground(
    source: Source, style: SceneStyle, random: np.random.Generator
) -> tuple[str, tuple[int, int, int, int], np.ndarray]:
    """Crop a square of a photo's area and bring it to the scene's size, as float [H, W, 3]."""
    name, photo, (left, top, right, bottom) = source.areas[random.integers(len(source.areas))]
    most = min(right - left, bottom - top)
    side = int(random.integers(most // 3, most + 1))
    x = int(random.integers(left, right - side + 1))
    y = int(random.integers(top, bottom - side + 1))
    crop = (x, y, x + side, y + side)
    # Cropped before it is resized: the filter must not reach beyond the area.
    ground = photo.crop(crop).resize((style.size, style.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(ground, np.float32)
    return name, crop, pixels[:, ::-1].copy() if random.random() < 0.5 else pixels.copy()


def _digit(scan: np.ndarray, style: SceneStyle, random: np.random.Generator) -> np.ndarray:
    """Return a scan's opacity, scaled and turned, cut to what can be seen: float [h, w] of 0 to 1."""
    grey = np.pad(np.round(scan * (255 / 16)), 1).astype(np.uint8)
    low, high = style.height
    height = style.size * math.exp(random.uniform(math.log(low), math.log(high)))
    scale = SCAN_SIDE / height
    angle = math.radians(random.uniform(-style.rotation, style.rotation))
    aspect = random.uniform(0.8, 1.2)
    side = math.ceil(height * 1.6)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    middle, centre = grey.shape[0] / 2, side / 2
    rows = ((cos / aspect, sin / aspect), (-sin, cos))
    matrix = [value for row in rows for value in (*row, middle - centre * (row[0] + row[1]))]
    turned = Image.fromarray(grey).transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    low, high = INK
    alpha = np.clip((np.asarray(turned, np.float32) / 255 - low) / (high - low), 0, 1)
    rows_in, columns_in = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows_in[0] : rows_in[-1] + 1, columns_in[0] : columns_in[-1] + 1]


def _distractor(source: Source, style: SceneStyle, random: np.random.Generator) -> np.ndarray:
    """Return the opacity of something that is no digit: a triangle, a cross, or a scan with its quarters shuffled."""
    side = int(style.size * random.uniform(0.1, 0.3))
    kind = random.integers(3)
    if kind == 2:
        scan = source.scans[random.integers(len(source.scans))]
        quarters = [scan[y : y + 4, x : x + 4][::-1, ::-1] for y in (0, 4) for x in (0, 4)]
        order = random.permutation(4)
        return _digit(
            np.block([[quarters[order[0]], quarters[order[1]]], [quarters[order[2]], quarters[order[3]]]]),
            style,
            random,
        )
    layer = Image.new("L", (4 * side, 4 * side))
    draw = ImageDraw.Draw(layer)
    centre, radius, turn = 2 * side, 1.9 * side, random.uniform(0, 2 * math.pi)

    def point(part: float) -> tuple[float, float]:
        angle = turn + 2 * math.pi * part
        return centre + radius * math.cos(angle), centre + radius * math.sin(angle)

    if kind == 0:
        draw.polygon([point(0), point(random.uniform(0.2, 0.4)), point(random.uniform(0.55, 0.8))], fill=255)
    else:
        for start in (0.0, 0.25):
            draw.line([point(start), point(start + 0.5)], fill=255, width=max(1, int(0.9 * side)))
    return np.asarray(layer.resize((side, side), Image.Resampling.BOX), np.float32) / 255


def _place(alpha: np.ndarray, style: SceneStyle, random: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
    """Choose where a shape's corner (top, left) goes, the whole shape inside the scene."""
    alpha = alpha[: style.size, : style.size]
    top = int(random.integers(0, style.size - alpha.shape[0] + 1))
    return alpha, (top, int(random.integers(0, style.size - alpha.shape[1] + 1)))


def _free_place(
    alpha: np.ndarray, things: list[Thing], full: list[int], style: SceneStyle, random: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Place a digit where it leaves enough of each other one in sight; None where ten tries find no such place."""
    if not (alpha >= SOLID).any():
        return None
    for _ in range(10):
        placed, corner = _place(alpha, style, random)
        solid, window = placed >= SOLID, _window(placed, corner)
        left = [int(one.mask.sum()) - int((one.mask[window] & solid).sum()) for one in things]
        if all(seen >= style.visible * whole for seen, whole in zip(left, full, strict=True)):
            return placed, corner
    return None


def _blend(
    pixels: np.ndarray, alpha: np.ndarray, corner: tuple[int, int], style: SceneStyle, random: np.random.Generator
) -> None:
    """Lay a shape of one colour, far enough from the ground's mean there, over the pixels."""
    window = _window(alpha, corner)
    mean = pixels[window].mean()
    for _ in range(20):
        color = random.uniform(0, 255, 3)
        if abs(color.mean() - mean) >= style.contrast:
            break
    else:
        color = np.full(3, 255.0 if mean < 128 else 0.0)
    weight = alpha[..., None]
    pixels[window] = pixels[window] * (1 - weight) + color.astype(np.float32) * weight


def _window(alpha: np.ndarray, corner: tuple[int, int]) -> tuple[slice, slice]:
    top, left = corner
    return slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1])
