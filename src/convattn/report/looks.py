"""What a network looked at in an image, as pictures: a card of a run's page, and a page of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image

from convattn.data.writing import write_text
from convattn.errors import UserError
from convattn.report.drawing import fitted
from convattn.report.heat import ATTENTION, CONVOLUTION, Heat, heat_over, marked, share_over
from convattn.report.pictures import Picture, drawing
from convattn.report.task import Card, Gallery, Key, Table
from convattn.report.templates import render
from convattn.report.text import percent

SIDE = 320
LARGE = 640
TELLING = 6
"""Pixels of a map's shorter side from which on it tells more than left or right."""

CAM_INTRO = (
    "Bright: what raised the score of the answer (Grad-CAM). It tells where the network looked, not whether it was "
    "right to."
)
PIXEL_INTRO = (
    "Bright: the pixels that the marked one reads, by their weight; the mean over the heads, the brightest made 1. "
    "One map for each size of map in the network, the last layer of that size."
)
PATHS_INTRO = (
    "How much the attention and the convolution of a layer add to its output at each pixel: the norm over the "
    "channels, with α and β or the batch norms counted, on one scale."
)
SIGN = "written by convattn"


Shown = TypeVar("Shown")


@dataclass(frozen=True)
class PathHeats:
    """The two paths of a layer on one scale, and the attention's share of both."""

    attention: Heat
    convolution: Heat
    share: Heat


@dataclass(frozen=True)
class Look:
    """What a network answers on an image, and what it looked at.

    Args:
        name: The image's name.
        answer: The answer, drawn.
        said: The answer in words.
        seen: What the network saw of the image, which the maps lie over.
        cam: Grad-CAM; None where there is none.
        cam_of: What it is of: a class, or the objects.
        pixel: The pixel whose attention is shown, as the photograph counts it: x and y.
        mark: The same in ``seen``, in parts of its width and height.
        attention: A map for each attention layer that is shown.
        paths: The paths of each layer that is shown.
        remark: What there is to say of maps that are not there.
    """

    name: str
    answer: Image.Image
    said: str
    seen: Image.Image
    cam: Heat | None
    cam_of: str
    pixel: tuple[int, int]
    mark: tuple[float, float]
    attention: Sequence[Heat] = ()
    paths: Sequence[PathHeats] = ()
    remark: str = ""

    def cam_picture(self, side: int = LARGE) -> Image.Image:
        """Return the image under Grad-CAM, as it is where there is none."""
        if self.cam is None:
            return fitted(self.seen, side)
        return heat_over(self.seen, self.cam, side)

    def attention_picture(self, heat: Heat, side: int = SIDE) -> Image.Image:
        """Return the image under an attention map, the pixel marked."""
        return marked(heat_over(self.seen, heat, side), *self.mark)


@dataclass(frozen=True)
class LookPage:
    """A page on one image: the look, who answered, the answer as a table, and commands to go on with."""

    look: Look
    network: str
    table: Table
    commands: Sequence[tuple[str, str]] = field(default_factory=list)


def look_gallery(looks: Sequence[Look]) -> Gallery | None:
    """Return the images of a run's page: answer, Grad-CAM, a pixel's attention and the paths in the last layer."""
    if not looks:
        return None
    intro = f"{CAM_INTRO} Of a deep attention layer: what the marked pixel, where Grad-CAM is highest, attends to"
    keys: list[Key] = []
    if any(look.paths for look in looks):
        intro += ", and which of its paths adds more at each pixel"
        keys = share_keys()
    remark = next((look.remark for look in looks if look.remark), "")
    intro = f"{intro}." if any(look.attention for look in looks) else f"{CAM_INTRO} {remark}"
    return Gallery(intro, keys, [_card(look) for look in looks], len(looks))


def share_keys() -> list[Key]:
    """Return the legend of a map of shares."""
    return [
        Key("attention adds four times as much or more", f"background-color:rgb{ATTENTION}"),
        Key("convolution does", f"background-color:rgb{CONVOLUTION}"),
    ]


def _card(look: Look) -> Card:
    pictures = [
        drawing(lambda: fitted(look.answer, SIDE), f"{look.name}: {look.said}", "answer"),
        _cam(look, SIDE, "Grad-CAM"),
    ]
    pictures += [_attention(look, heat) for heat in _telling(look.attention, lambda heat: heat)]
    pictures += [_share(look, paths) for paths in _telling(look.paths, lambda paths: paths.share)]
    return Card(look.name, pictures, look.said, f"Grad-CAM of {look.cam_of}", layout="four")


def _telling(found: Sequence[Shown], heat: Callable[[Shown], Heat]) -> list[Shown]:
    """Return the deepest layer whose map has some pixels, in a list; the first one where none has."""
    large = [one for one in found if min(heat(one).values.shape) >= TELLING]
    return large[-1:] or list(found[:1])


def _cam(look: Look, side: int, label: str) -> Picture:
    where = f"of {look.cam_of}, layer {look.cam.name}" if look.cam is not None else "none"
    return drawing(lambda: look.cam_picture(side), f"{look.name}: Grad-CAM {where}", label)


def _attention(look: Look, heat: Heat, side: int = SIDE) -> Picture:
    alt = f"{look.name}: what the pixel ({look.pixel[0]}, {look.pixel[1]}) attends to in {heat.name}"
    return drawing(lambda: look.attention_picture(heat, side), alt, heat.name)


def _share(look: Look, paths: PathHeats) -> Picture:
    label = f"{paths.share.name}: attention {percent(float(paths.share.values.mean()), 0)} of both"
    return drawing(lambda: share_over(look.seen, paths.share, SIDE), f"{look.name}: {label}", label)


def write_look(path: Path, page: LookPage) -> None:
    """Write the page of one image.

    Raises:
        UserError: The path is another file, or no HTML file.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path}: the explanation is an HTML page; give --out a name that ends in .html")
    if path.exists() and not (path.is_file() and SIGN in path.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"{path}: is another file, which would be written over; give --out another name")
    look = page.look
    content = {
        "title": look.name,
        "page": page,
        "look": look,
        "answer": drawing(lambda: fitted(look.answer, LARGE), f"{look.name}: {look.said}", "answer"),
        "cam": _cam(look, LARGE, f"Grad-CAM of {look.cam_of}") if look.cam is not None else None,
        "cam_intro": f"{CAM_INTRO} Of the layer {look.cam.name}." if look.cam is not None else "",
        "pixel_intro": PIXEL_INTRO,
        "marked": drawing(lambda: marked(fitted(look.seen, SIDE), *look.mark), f"{look.name}: the pixel", "the pixel"),
        "attention": [_attention(look, heat) for heat in look.attention],
        "paths_intro": PATHS_INTRO,
        "paths": [_paths(look, one) for one in look.paths],
        "keys_of_shares": share_keys(),
    }
    write_text(path, render("look.html", content))


def _paths(look: Look, paths: PathHeats) -> list[Picture]:
    both = (("attention", paths.attention), ("convolution", paths.convolution))
    pictures = [
        drawing(
            lambda heat=heat: heat_over(look.seen, heat, SIDE),
            f"{look.name}: what the {what} of {heat.name} adds",
            f"{heat.name}: {what}",
        )
        for what, heat in both
    ]
    return [*pictures, _share(look, paths)]
