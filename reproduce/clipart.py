"""The clip art of Debian's package ``openclipart-png`` as class folders: the pictures of ``--scale clipart``.

The pictures are in the public domain. They are read where the package is installed and made small; the small copies
are kept in :data:`FOLDER`, which git ignores. Of pictures that look alike one is kept, so none is both learnt from and
held out.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from convattn.data.digits import SPLIT_SEED, VAL_FRACTION
from convattn.data.folder import list_images
from convattn.data.images import ImageError, open_image
from convattn.errors import UserError

PACKAGE = "openclipart-png"
INSTALLED = Path("/usr/share/openclipart/png")
FOLDER = Path("reproduced/clipart")
"""Where the recipe ``reproduce/clipart.yaml`` reads them."""

CLASSES = (
    *("animals", "buildings", "food", "geography", "office"),
    *("people", "plants", "recreation", "tools", "transportation"),
)
"""The package's folders of pictures of things; the others hold icons, signs, shapes and textures."""

SIZE = 48
MOST_PIXELS = 4_000_000
"""Fourteen of 2,333 pictures are larger, up to 623 million pixels, which take a minute to open."""

INK = 200
"""A picture has something darker than that: a few are white on transparent, of which nothing is left on white."""

ALIKE_SIZE, ALIKE = 16, 0.9
"""Pictures are taken for one where their copies of that size correlate as much: a playing card with another border, a
sign in another colour."""


def prepare_clipart(source: Path = INSTALLED, folder: Path = FOLDER) -> Path:
    """Return the folder of the small pictures, written when it is first asked for.

    Raises:
        UserError: The package is not installed.
    """
    if folder.is_dir():
        return folder
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; the clip art comes with Debian: apt install {PACKAGE}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".clipart-", dir=folder.parent, ignore_cleanup_errors=True) as place:
        draft = Path(place) / folder.name
        write_clipart(source, draft)
        shutil.move(draft, folder)
    return folder


def write_clipart(source: Path, folder: Path) -> None:
    """Write ``train/CLASS/*.png`` and ``val/CLASS/*.png``: a fifth of each class is held out; it never changes."""
    from sklearn.model_selection import train_test_split

    names, images = read_small(source)
    labels = [name.partition("/")[0] for name in names]
    kept = distinct(images, labels)
    train, _ = train_test_split(
        kept, test_size=VAL_FRACTION, random_state=SPLIT_SEED, stratify=[labels[index] for index in kept]
    )
    learnt = set(train)
    for index in kept:
        target = folder / ("train" if index in learnt else "val") / labels[index]
        target.mkdir(parents=True, exist_ok=True)
        images[index].save(target / names[index].partition("/")[2].replace("/", "-"))


def read_small(source: Path) -> tuple[list[str], list[Image.Image]]:
    """The pictures' paths below the package's folder, and the pictures: squares on white of :data:`SIZE` pixels.

    Links to a picture, pictures of more than :data:`MOST_PIXELS` and pictures without :data:`INK` are left out.
    """
    names, images = [], []
    for label in CLASSES:
        for name in list_images(source / label):
            path = source / label / name
            if path.is_symlink():
                continue
            try:
                image = open_image(path, max_pixels=MOST_PIXELS)
            except ImageError:
                continue
            small = ImageOps.pad(image, (SIZE, SIZE), Image.Resampling.LANCZOS, color="white")
            if np.asarray(small).min() < INK:
                names.append(f"{label}/{name}")
                images.append(small)
    return names, images


def distinct(images: list[Image.Image], labels: list[str]) -> list[int]:
    """Return which pictures to keep: the first of all that look alike, none where they are of several classes.

    Example:
        >>> ramp = Image.linear_gradient("L").convert("RGB")
        >>> distinct([ramp, ramp.resize((64, 64)), ramp.rotate(90)], ["food", "food", "tools"])
        [0, 2]
    """
    from scipy.sparse.csgraph import connected_components

    side = (ALIKE_SIZE, ALIKE_SIZE)
    small = np.stack([np.asarray(one.resize(side, Image.Resampling.BOX), np.float32).ravel() for one in images])
    _, groups = connected_components(np.corrcoef(small) >= ALIKE, directed=False)
    classes: dict[int, set[str]] = {}
    for group, label in zip(groups, labels, strict=True):
        classes.setdefault(group, set()).add(label)
    firsts = np.unique(groups, return_index=True)[1]
    return sorted(int(first) for first in firsts if len(classes[groups[first]]) == 1)
