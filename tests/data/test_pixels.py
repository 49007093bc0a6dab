"""Files of every mode, depth and orientation, written number by number: the colours and the ids that they mean."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.data.files import upright_size
from convattn.data.images import ImageError, open_image
from convattn.data.problems import BadData
from convattn.data.segmentation import read_label_map
from tests.data.image_cases import CASES, Case
from tests.data.jpeg import write_jpeg
from tests.data.png import write_png
from tests.data.tiff import Tiff, write_tiff


def test_no_case_hides_another() -> None:
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_photo_has_the_colours_that_were_written(tmp_path: Path, case: Case) -> None:
    path = case.file(tmp_path)
    if isinstance(case.photo, str):
        with pytest.raises(ImageError, match=re.escape(f"{path}: ") + ".*" + re.escape(case.photo)):
            open_image(path)
        return
    image = open_image(path)
    meant = [(pixel,) * 3 if isinstance(pixel, int) else pixel for pixel in case.photo]
    assert (image.mode, image.size[0]) == ("RGB", len(meant))
    error = np.abs(np.asarray(image, int) - np.array(meant)[None])
    assert error.max() <= case.within, np.asarray(image)[0].tolist()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_label_map_has_the_ids_that_were_written(tmp_path: Path, case: Case) -> None:
    path = case.file(tmp_path)
    if isinstance(case.ids, str):
        with pytest.raises(BadData, match=re.escape(f"{path}: label map: ") + ".*" + re.escape(case.ids)) as refusal:
            read_label_map(path)
        assert "JPEG" not in refusal.value.problems[0].remedy
        return
    found = read_label_map(path)
    assert (found.dtype, found.tolist()) == (np.int64, [case.ids])


# The picture 1 2 3 over 4 5 6 as it is stored in each orientation, by the EXIF standard: 2 has its first column on the
# right, 3 is upside down, 4 has its first row below, 5 to 8 hold columns as rows.
STORED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[3, 6], [2, 5], [1, 4]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[4, 1], [5, 2], [6, 3]],
}


def oriented(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = np.array(STORED[orientation], np.uint8)[..., None]
    if path.suffix == ".tif":
        write_tiff(path, values, 8, Tiff(orientation=orientation))
    elif path.suffix == ".png":
        write_png(path, values, 0, 8, chunks=[(b"eXIf", exif.tobytes()[6:])])
    elif path.suffix == ".jpg":
        write_jpeg(path, values)
        segment = exif.tobytes()
        start, rest = path.read_bytes()[:2], path.read_bytes()[2:]
        path.write_bytes(start + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + rest)
    else:
        options = {"lossless": True} if path.suffix == ".webp" else {"quality": 100}
        Image.fromarray(values[..., 0]).resize((8 * values.shape[1], 8 * values.shape[0]), 0).save(
            path, exif=exif, **options
        )


@pytest.mark.parametrize("kind", ["tif", "png", "jpg", "webp", "avif"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    path = tmp_path / f"turned.{kind}"
    oriented(path, orientation)
    step = 1 if kind in ("tif", "png") else 8
    assert upright_size(path) == (3 * step, 2 * step)
    image = np.asarray(open_image(path))
    assert np.abs(image[step // 2 :: step, step // 2 :: step, 0].astype(int) - STORED[1]).max() <= (kind == "avif")
    if step == 1:
        assert read_label_map(path).tolist() == STORED[1]
