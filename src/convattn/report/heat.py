"""Maps drawn over images: where a network looked, which of two paths was stronger, a mark at a pixel."""

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from convattn.report.drawing import fitted

OPACITY = 0.6

ATTENTION = (37, 99, 235)
CONVOLUTION = (217, 72, 15)


@dataclass(frozen=True)
class Heat:
    """A map over an image.

    Args:
        name: The layer that it is of.
        values: ``[h, w]`` from 0 to 1.
        covered: The parts of its height and of its width that the image fills; what remains is padding.
        blocks: Whether each value is drawn as a block, rather than blended with its neighbours.
    """

    name: str
    values: np.ndarray
    covered: tuple[float, float] = (1.0, 1.0)
    blocks: bool = False


def heat_over(image: Image.Image, heat: Heat, side: int) -> Image.Image:
    """Return an image, its longer side made ``side``, under a map: dark is 0, bright yellow is 1.

    Example:
        >>> drawn = heat_over(Image.new("RGB", (4, 2)), Heat("layer4", np.array([[0.0, 1.0]])), 40)
        >>> drawn.size, drawn.getpixel((0, 9))[0] < drawn.getpixel((39, 9))[0]
        ((40, 20), True)
    """
    return _over(image, heat, side, lambda values: 255 * matplotlib.colormaps["inferno"](values)[..., :3])


def share_over(image: Image.Image, heat: Heat, side: int) -> Image.Image:
    """Return an image under a map of shares: blue from 0.8 on (attention), orange up to 0.2 (convolution)."""
    ends = np.array([CONVOLUTION, (255, 255, 255), ATTENTION], dtype=np.float64)

    def colors(values: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(values, (0.2, 0.5, 0.8), ends[:, channel]) for channel in range(3)], -1)

    return _over(image, heat, side, colors)


def marked(picture: Image.Image, x: float, y: float) -> Image.Image:
    """Return a picture with a ring around a place, in parts of its width and height."""
    drawn, radius = picture.copy(), max(5, max(picture.size) // 40)
    pen, middle = ImageDraw.Draw(drawn), (x * picture.width, y * picture.height)
    for color, width in (((0, 0, 0), 5), ((255, 255, 255), 3), ((235, 60, 150), 2)):
        pen.circle(middle, radius, outline=color, width=width)
    return drawn


def _over(image: Image.Image, heat: Heat, side: int, colors: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    picture = fitted(image, side)
    values = Image.fromarray(np.ascontiguousarray(heat.values, dtype=np.float32))
    box = (0, 0, values.width * heat.covered[1], values.height * heat.covered[0])
    resample = Image.Resampling.NEAREST if heat.blocks else Image.Resampling.BILINEAR
    found = np.clip(np.asarray(values.resize(picture.size, resample, box=box), dtype=np.float64), 0, 1)
    grey = np.asarray(picture.convert("L"), dtype=np.float64)[..., None]
    mixed = grey + OPACITY * (colors(found) - grey)
    return Image.fromarray(mixed.round().astype(np.uint8))
