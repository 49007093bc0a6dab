"""Files of every mode and depth that Pillow opens, each of one row of pixels, and by hand what they mean.

A case gives the photo's pixels (a number is a grey, three are RGB) and the ids of a label map; a text in place of
either is part of the message that refuses it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from tests.data.bitmaps import write_bmp, write_gif, write_pnm, write_tga
from tests.data.jpeg import write_jpeg
from tests.data.png import write_png
from tests.data.tiff import CMYK, FLOAT, LAB, MIN_IS_WHITE, PALETTE, RGB, SIGNED, YCBCR, Tiff, write_tiff

Colour = tuple[int, int, int]
Meant = list[int] | list[Colour] | str

NO_IDS = "expected one channel that holds the class of each pixel"
FROM_WHITE = "numbers count from white down"
LOSSY = "changes numbers as it stores them"
RANGE = "which of them is white is not known"
NO_IMAGE = "not an image that Pillow can read"
GREYS = "a BMP of few greys"
PAGES = "found 2 pages, expected one label map"

OLD_PILLOW = int(PIL.__version__.partition(".")[0]) < 13
"""It reads less of TIFF."""

BLACK, RED, GREEN, BLUE, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
PALE = [(10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120)]
"""A palette that is no ramp of greys."""
RAMP = [(grey, grey, grey) for grey in range(256)]


@dataclass(frozen=True)
class Case:
    """A file, and what it means; ``within`` is by how much a photo's colours may be off."""

    name: str
    write: Callable[[Path], None]
    photo: Meant
    ids: list[int] | str
    within: int = 0

    def file(self, folder: Path) -> Path:
        """Write the file; its ending is the first word of its name."""
        path = folder / f"a.{self.name.partition('-')[0]}"
        self.write(path)
        return path


def row(*pixels: float | tuple[float, ...]) -> np.ndarray:
    return np.array(pixels).reshape(1, len(pixels), -1)


def tif(name: str, bits: int, pixels: np.ndarray, photo: Meant, ids: list[int] | str, kind: Tiff = Tiff()) -> Case:  # noqa: B008  frozen
    return Case(f"tif-{name}", lambda path: write_tiff(path, pixels, bits, kind), photo, ids, within=2)


def png(
    name: str, colour_type: int, bits: int, pixels: np.ndarray, photo: Meant, ids: list[int] | str, clear: bytes = b""
) -> Case:
    palette = b"".join(bytes(colour) for colour in PALE) if colour_type == 3 else b""

    def write(path: Path) -> None:
        write_png(path, pixels, colour_type, bits, palette, [(b"tRNS", clear)] if clear else [])

    return Case(f"png-{name}", write, photo, ids, within=2 if bits == 16 else 0)


def pnm(kind: str, most: int | None, pixels: np.ndarray, photo: Meant, ids: list[int] | str) -> Case:
    ending = {"1": "pbm", "4": "pbm", "2": "pgm", "5": "pgm"}.get(kind[1], "ppm")
    return Case(f"{ending}-{kind}-{most}", lambda path: write_pnm(path, kind, pixels, most), photo, ids)


def bmp(name: str, bits: int, palette: list[Colour], ids: list[int], refused: str = "") -> Case:
    pixels = row(*ids)[..., 0]
    meant = refused or [palette[id] for id in ids]
    return Case(f"bmp-{name}", lambda path: write_bmp(path, pixels, bits, palette), meant, refused or ids)


def jpg(name: str, blocks: np.ndarray, adobe: int | None, photo: list[Colour] | list[int]) -> Case:
    each_pixel = [pixel for pixel in photo for _ in range(8)]
    return Case(f"jpg-{name}", lambda path: write_jpeg(path, blocks, adobe), each_pixel, LOSSY, within=1)  # type: ignore[arg-type]


def pillow(name: str, image: Image.Image, photo: Meant, ids: list[int] | str, **options: object) -> Case:
    """Return a case of a format that only Pillow writes here; it keeps the numbers as they are."""
    return Case(name, lambda path: image.save(path, **options), photo, ids)  # type: ignore[arg-type]


def tiff_greys() -> list[Case]:
    made = []
    few = {1: [0, 1, 1], 2: [0, 1, 3], 4: [0, 7, 15], 8: [0, 7, 255], 16: [0, 7, 65535]}
    light = {1: [0, 255, 255], 2: [0, 85, 255], 4: [0, 119, 255], 8: [0, 7, 255], 16: [0, 0, 255]}
    for bits, ids in few.items():
        grey, dark = light[bits], [255 - value for value in light[bits]]
        made += [
            tif(f"grey-{bits}", bits, row(*ids), grey, ids),
            tif(f"grey-{bits}-deflated", bits, row(*ids), grey, ids, Tiff(compression="deflate")),
            tif(f"grey-{bits}-from-white", bits, row(*ids), dark, FROM_WHITE, Tiff(MIN_IS_WHITE)),
        ]
        if bits < 16:
            made += [
                tif(f"grey-{bits}-big-endian", bits, row(*ids), grey, ids, Tiff(order=">")),
                tif(f"grey-{bits}-bits-reversed", bits, row(*ids), grey, ids, Tiff(fill_order=2)),
                tif(
                    f"from-white-{bits}-deflated",
                    bits,
                    row(*ids),
                    dark,
                    FROM_WHITE,
                    Tiff(MIN_IS_WHITE, compression="deflate"),
                ),
            ]
    middle = [0, 4095, 2048]
    unread = (NO_IMAGE, NO_IMAGE)
    mixed = unread if OLD_PILLOW else ([7, 255, 204], NO_IDS)
    more = unread if OLD_PILLOW else ([7, 9], [7, 9])
    return [
        *made,
        tif("grey-12", 12, row(*middle), [0, 255, 128], middle),
        tif("grey-16-big-endian", 16, row(0, 32768, 65535), [0, 128, 255], [0, 32768, 65535], Tiff(order=">")),
        tif("grey-32", 32, row(0, 7, 2**32 - 1), RANGE, [0, 7, 2**32 - 1]),
        tif("signed-8", 8, row(-3, 0, 7), RANGE, [-3, 0, 7], Tiff(sample_format=SIGNED)),
        tif("signed-16", 16, row(-3, 0, 700), RANGE, [-3, 0, 700], Tiff(sample_format=SIGNED)),
        tif("signed-32", 32, row(-3, 0, 70_000), RANGE, [-3, 0, 70_000], Tiff(sample_format=SIGNED, order=">")),
        tif(
            "signed-16-big-endian-deflated",
            16,
            row(-3, 0, 700),
            "compressed numbers in big-endian order",
            "compressed numbers in big-endian order",
            Tiff(sample_format=SIGNED, order=">", compression="deflate"),
        ),
        tif("float", 32, row(0, 0.5, 1), [0, 128, 255], NO_IDS, Tiff(sample_format=FLOAT)),
        tif("float-from-white", 32, row(0, 0.2, 1), [255, 204, 0], NO_IDS, Tiff(MIN_IS_WHITE, sample_format=FLOAT)),
        tif(
            "float-of-another-range",
            32,
            row(0, 255.0),
            "grey values from 0 to 255; 0 to 1 is known",
            NO_IDS,
            Tiff(sample_format=FLOAT),
        ),
        tif("float-16", 16, row(0, 0.5), NO_IMAGE, NO_IMAGE, Tiff(sample_format=FLOAT)),
        tif("float-64", 64, row(0, 0.5), NO_IMAGE, NO_IMAGE, Tiff(sample_format=FLOAT)),
        tif("grey-alpha", 8, row((7, 255), (7, 0), (0, 51)), [7, 255, 204], NO_IDS, Tiff(extra=(2,))),
        tif("grey-alpha-multiplied", 8, row((7, 255), (0, 0), (0, 51)), *mixed, Tiff(extra=(1,))),
        tif("grey-and-more", 8, row((7, 255), (9, 0)), *more, Tiff(extra=(0,))),
        tif("pages", 8, row(7, 9), [7, 9], PAGES, Tiff(pages=2)),
    ]


def tiff_colours() -> list[Case]:
    made = []
    for bits in (8, 16):
        most = 2**bits - 1
        colours = row((most, 0, 0), (0, most, 0), (0, 0, most))
        seen = row((most, 0, 0, most), (0, most, 0, 0))
        made += [
            tif(f"rgb-{bits}", bits, colours, [RED, GREEN, BLUE], NO_IDS, Tiff(RGB)),
            tif(f"rgb-{bits}-big-endian", bits, colours, [RED, GREEN, BLUE], NO_IDS, Tiff(RGB, order=">")),
            tif(f"rgb-{bits}-deflated", bits, colours, [RED, GREEN, BLUE], NO_IDS, Tiff(RGB, compression="deflate")),
            tif(f"rgba-{bits}", bits, seen, [RED, WHITE], NO_IDS, Tiff(RGB, extra=(2,))),
            tif(f"rgb-and-more-{bits}", bits, seen, [RED, GREEN], NO_IDS, Tiff(RGB, extra=(0,))),
            tif(f"cmyk-{bits}", bits, row((0, most, most, 0), (0, 0, 0, most)), [RED, BLACK], NO_IDS, Tiff(CMYK)),
        ]
    colours = row((255, 0, 0), (0, 255, 0), (0, 0, 255))
    apart = "each in a plane of its own"
    return [
        *made,
        tif("rgb-planes", 8, colours, [RED, GREEN, BLUE], NO_IDS, Tiff(RGB, planes="apart")),
        tif("rgb-16-planes", 16, colours * 257, apart, apart, Tiff(RGB, planes="apart")),
        tif("rgb-32", 32, colours, NO_IMAGE, NO_IMAGE, Tiff(RGB)),
        tif(
            "rgba-multiplied",
            8,
            row((51, 0, 0, 51), (0, 0, 0, 0)),
            [(255, 204, 204), WHITE],
            NO_IDS,
            Tiff(RGB, extra=(1,)),
        ),
        tif("palette-1", 1, row(0, 1), PALE[:2], [0, 1], Tiff(PALETTE, palette=PALE[:2])),
        tif("palette-2", 2, row(0, 1, 3), [PALE[0], PALE[1], PALE[3]], [0, 1, 3], Tiff(PALETTE, palette=PALE)),
        tif("palette-4", 4, row(0, 1, 15), [PALE[0], PALE[1], PALE[3]], [0, 1, 15], Tiff(PALETTE, palette=PALE * 4)),
        tif("palette-8", 8, row(0, 1, 255), [PALE[0], PALE[1], PALE[3]], [0, 1, 255], Tiff(PALETTE, palette=PALE * 64)),
        tif(
            "ycbcr",
            8,
            row((76, 85, 255), (150, 44, 21), (29, 255, 107)),
            "which Pillow before 13 takes for RGB" if OLD_PILLOW else [RED, GREEN, BLUE],
            "which Pillow before 13 takes for RGB" if OLD_PILLOW else NO_IDS,
            Tiff(YCBCR),
        ),
        # lightness in 255 steps, a and b with a sign, white as in print (D50)
        tif(
            "lab",
            8,
            row((255, 0, 0), (150, 29, 36), (136, 255, 220)),
            [WHITE, (200, 120, 80), (90, 130, 190)],
            NO_IDS,
            Tiff(LAB),
        ),
    ]


def pngs() -> list[Case]:
    few = {1: [0, 1], 2: [0, 1, 3], 4: [0, 1, 15], 8: [0, 1, 255], 16: [0, 257, 65535]}
    light = {1: [0, 255], 2: [0, 85, 255], 4: [0, 17, 255], 8: [0, 1, 255], 16: [0, 1, 255]}
    made = []
    for bits, ids in few.items():
        hidden = [255 if id == ids[1] else grey for id, grey in zip(ids, light[bits], strict=True)]
        made += [
            png(f"grey-{bits}", 0, bits, row(*ids), light[bits], ids),
            png(f"grey-{bits}-one-clear", 0, bits, row(*ids), hidden, ids, clear=ids[1].to_bytes(2, "big")),
        ]
        if bits < 16:
            indices = [min(id, 3) for id in ids]
            made.append(png(f"palette-{bits}", 3, bits, row(*indices), [PALE[id] for id in indices], indices))
    half = (132, 137, 142)  # half of the palette's first colour over white
    return [
        *made,
        png("palette-one-clear", 3, 8, row(0, 1), [WHITE, PALE[1]], [0, 1], clear=b"\0"),
        png("palette-half-clear", 3, 8, row(0, 1), [half, PALE[1]], [0, 1], clear=b"\x80\xff"),
        png("rgb-8", 2, 8, row(RED, (0, 7, 9)), [RED, (0, 7, 9)], NO_IDS),
        png("rgb-8-one-clear", 2, 8, row(RED, (0, 7, 9)), [RED, WHITE], NO_IDS, clear=b"\0\0\0\7\0\x09"),
        png("rgb-16", 2, 16, row((65535, 0, 32768), (0, 257, 0)), [(255, 0, 128), (0, 1, 0)], NO_IDS),
        png(
            "rgb-16-one-clear", 2, 16, row((65535, 0, 0), (0, 257, 0)), "is transparent", NO_IDS, clear=b"\0\0\1\1\0\0"
        ),
        png("grey-alpha-8", 4, 8, row((7, 255), (7, 0), (0, 51)), [7, 255, 204], NO_IDS),
        png("grey-alpha-16", 4, 16, row((257, 65535), (0, 0)), [1, 255], NO_IDS),
        png("rgba-8", 6, 8, row((255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)), [RED, WHITE, (204, 204, 204)], NO_IDS),
        png("rgba-16", 6, 16, row((65535, 0, 0, 65535), (0, 0, 0, 0)), [RED, WHITE], NO_IDS),
    ]


def pnms() -> list[Case]:
    bits = row(0, 1, 1)
    return [
        pnm("P1", None, bits, [255, 0, 0], FROM_WHITE),
        pnm("P4", None, bits, [255, 0, 0], FROM_WHITE),
        *(pnm(kind, 1, bits, [0, 255, 255], [0, 1, 1]) for kind in ("P2", "P5")),
        *(pnm(kind, 5, row(0, 1, 5), [0, 51, 255], [0, 1, 5]) for kind in ("P2", "P5")),
        *(pnm(kind, 255, row(0, 7, 255), [0, 7, 255], [0, 7, 255]) for kind in ("P2", "P5")),
        *(pnm(kind, 1000, row(0, 200, 999), [0, 51, 255], [0, 200, 999]) for kind in ("P2", "P5")),
        *(pnm(kind, 65535, row(0, 257, 65535), [0, 1, 255], [0, 257, 65535]) for kind in ("P2", "P5")),
        *(pnm(kind, 5, row((5, 0, 1), (0, 5, 0)), [(255, 0, 51), GREEN], NO_IDS) for kind in ("P3", "P6")),
        pnm("P6", 65535, row((65535, 0, 257), (0, 65535, 0)), [(255, 0, 1), GREEN], NO_IDS),
    ]


def bmps() -> list[Case]:
    two = [BLACK, WHITE]
    return [
        bmp("1", 1, two, [0, 1, 1]),
        bmp("1-white-first", 1, two[::-1], [0, 1, 1]),
        bmp("4", 4, PALE * 4, [0, 1, 15]),
        bmp("4-greys-of-17", 4, [(17 * id, 17 * id, 17 * id) for id in range(16)], [0, 1, 15]),
        bmp("4-ramp", 4, RAMP[:16], [0, 1, 15], refused=GREYS),
        bmp("4-black-and-white", 4, two, [0, 1, 1], refused=GREYS),
        bmp("8", 8, PALE * 64, [0, 1, 255]),
        bmp("8-ramp", 8, RAMP, [0, 1, 255]),
        bmp("8-ramp-of-three", 8, RAMP[:3], [0, 1, 2]),
        bmp("8-black-and-white", 8, two, [0, 1, 1], refused=GREYS),
    ]


def others() -> list[Case]:
    ids, colours = row(0, 1, 3), [PALE[0], PALE[1], PALE[3]]
    frames = [ids[..., 0], ids[..., 0][:, ::-1]]
    bgra = row((0, 0, 255, 255), (0, 0, 255, 0))
    grey = np.array([[0, 7, 255]], np.uint8)
    return [
        Case("gif-palette", lambda path: write_gif(path, frames[:1], PALE), colours, [0, 1, 3]),  # type: ignore[arg-type]
        Case("gif-ramp", lambda path: write_gif(path, frames[:1], RAMP[:128]), [0, 1, 3], [0, 1, 3]),
        Case("gif-clear", lambda path: write_gif(path, frames[:1], PALE, 0), [WHITE, *colours[1:]], [0, 1, 3]),  # type: ignore[list-item]
        Case("gif-moving", lambda path: write_gif(path, frames, PALE), colours, PAGES),  # type: ignore[arg-type]
        Case("tga-grey", lambda path: write_tga(path, 3, ids), [0, 1, 3], [0, 1, 3]),
        Case("tga-grey-from-the-right", lambda path: write_tga(path, 3, ids, flags=0x30), [3, 1, 0], [3, 1, 0]),
        Case("tga-palette", lambda path: write_tga(path, 1, ids, PALE), colours, [0, 1, 3]),  # type: ignore[arg-type]
        Case("tga-rgb", lambda path: write_tga(path, 2, row((0, 0, 255))), [RED], NO_IDS),
        Case("tga-rgba", lambda path: write_tga(path, 2, bgra, flags=0x28), [RED, WHITE], NO_IDS),
        Case("tga-rgb-and-a-byte", lambda path: write_tga(path, 2, bgra * [1, 1, 1, 0]), [RED, RED], NO_IDS),
        jpg("grey", row(7, 255), None, [7, 255]),
        jpg("ycbcr", row((76, 85, 255), (150, 44, 21)), None, [RED, GREEN]),
        jpg("rgb", row((255, 0, 0), (5, 6, 250)), 0, [RED, (5, 6, 250)]),
        jpg("cmyk-of-adobe", row((255, 0, 0, 255), (255, 255, 255, 0)), 0, [RED, BLACK]),
        jpg("cmyk-without-a-marker", row((255, 0, 0, 255), (255, 255, 255, 0)), None, [RED, BLACK]),
        jpg("ycck", row((179, 171, 1, 255), (150, 44, 21, 0)), 2, [RED, BLACK]),
        pillow("webp-lossless", Image.fromarray(grey), [0, 7, 255], LOSSY, lossless=True),
        pillow("tif-grey-as-jpeg", Image.new("L", (3, 1), 7), [7, 7, 7], f"TIFF of jpeg {LOSSY}", compression="jpeg"),
        pillow("jp2-8", Image.fromarray(grey), [0, 7, 255], LOSSY, irreversible=False),
        pillow("jp2-16", Image.fromarray(grey.astype(np.uint16) * 257), [0, 7, 255], LOSSY, irreversible=False),
    ]


CASES = [*tiff_greys(), *tiff_colours(), *pngs(), *pnms(), *bmps(), *others()]
