"""Every kind of image file that people have, made by Pillow and opened as RGB or refused with a reason."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from convattn.data.images import ImageError, check_image, open_image
from tests.data.png import CHANNELS, DEPTHS, write_png


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


class TestModes:
    @pytest.mark.parametrize("kind", ["png", "bmp", "tif", "gif", "webp", "ppm", "jpg", "jp2"])
    def test_formats(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / f"image.{kind}"
        gradient().save(path, **({"lossless": True} if kind == "webp" else {}))
        error = np.abs(pixels(path).astype(int) - np.asarray(gradient())).mean()
        assert error <= {"jpg": 6, "gif": 24}.get(kind, 0)

    @pytest.mark.parametrize("kind", ["png", "tif"])
    def test_16_bit_grey_is_scaled_not_clipped(self, tmp_path: Path, kind: str) -> None:
        values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
        Image.fromarray(values).save(tmp_path / f"deep.{kind}")
        assert np.array_equal(pixels(tmp_path / f"deep.{kind}")[..., 1], np.arange(256).reshape(16, 16))

    @pytest.mark.parametrize(("colour_type", "bits"), [(t, bits) for t in DEPTHS for bits in DEPTHS[t]])
    def test_every_kind_of_png(self, tmp_path: Path, colour_type: int, bits: int) -> None:
        most = 2**bits - 1
        values = np.random.default_rng(bits).integers(0, most + 1, (9, 7, CHANNELS[colour_type]))
        if colour_type in (4, 6):
            values[..., -1] = most
        palette = np.random.default_rng(0).integers(0, 256, (most + 1 if bits < 16 else 0, 3), np.uint8)
        write_png(tmp_path / "a.png", values, colour_type, bits, palette.tobytes() if colour_type == 3 else b"")
        meant = (
            palette[values[..., 0]]
            if colour_type == 3
            else values[..., : 1 if colour_type in (0, 4) else 3] * 255 / most
        )
        # Pillow cuts colours of 16 bits to their first byte
        assert np.abs(pixels(tmp_path / "a.png") - np.broadcast_to(meant, (9, 7, 3))).max() <= (
            1 if bits == 16 else 0.5
        )

    @pytest.mark.parametrize("high", [300.0, float("nan")])
    def test_float_grey_of_unknown_range_is_refused(self, tmp_path: Path, high: float) -> None:
        Image.fromarray(np.array([[0.0, high]], dtype=np.float32)).save(tmp_path / "float.tif")
        with pytest.raises(ImageError, match=r"float\.tif: grey values from .*0 to 1 is known"):
            open_image(tmp_path / "float.tif")

    @pytest.mark.parametrize("kind", ["gif", "webp", "png", "tif"])
    def test_of_an_animation_the_first_frame(self, tmp_path: Path, kind: str) -> None:
        frames = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
        frames[0].save(tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:])
        red, green, blue = pixels(tmp_path / f"moving.{kind}")[8, 8].astype(int)
        assert (red > 245, green < 10, blue < 10) == (True, True, True)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_damaged_exif_does_not_cost_the_image(self, tmp_path: Path) -> None:
        gradient().save(tmp_path / "odd.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff\x01")
        assert pixels(tmp_path / "odd.jpg").shape == (48, 64, 3)


class TestSize:
    def test_a_large_jpeg_is_read_smaller(self, tmp_path: Path) -> None:
        gradient(1001, 801).save(tmp_path / "large.jpg")
        assert open_image(tmp_path / "large.jpg", max_pixels=100_000).size == (251, 201)

    def test_a_jpeg_beyond_pillows_limit_is_read(self, tmp_path: Path) -> None:
        Image.new("L", (20_000, 10_000)).save(tmp_path / "huge.jpg")
        assert open_image(tmp_path / "huge.jpg").size == (10_000, 5_000)

    @pytest.mark.parametrize(("size", "kind"), [((20_000, 10_000), "png"), ((10_000, 8_500), "png")])
    def test_another_large_image_is_refused(self, tmp_path: Path, size: tuple[int, int], kind: str) -> None:
        Image.new("1", size).save(tmp_path / f"bomb.{kind}")
        with pytest.raises(ImageError, match=r"bomb\.png: too (large|many pixels).*save a smaller copy"):
            open_image(tmp_path / f"bomb.{kind}")

    def test_a_jpeg_that_stays_too_large(self, tmp_path: Path) -> None:
        gradient(800, 800).save(tmp_path / "large.jpg")
        with pytest.raises(ImageError, match="too large: 800×800"):
            open_image(tmp_path / "large.jpg", max_pixels=5_000)

    def test_a_single_pixel(self, tmp_path: Path) -> None:
        Image.new("RGB", (1, 1), "blue").save(tmp_path / "dot.png")
        assert pixels(tmp_path / "dot.png").tolist() == [[[0, 0, 255]]]


class TestBadFiles:
    def refuse(self, path: Path, reason: str) -> ImageError:
        with pytest.raises(ImageError) as caught:
            open_image(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert reason in message
        assert "\n" not in message
        assert caught.value.remedy in message
        return caught.value

    @pytest.mark.parametrize("kind", ["jpg", "png", "gif", "tif", "webp", "bmp"])
    @pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
    def test_truncated(self, tmp_path: Path, kind: str, part: float) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        whole, cut = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
        Image.fromarray(noise).save(whole)
        content = whole.read_bytes()
        cut.write_bytes(content[: int(len(content) * part)])
        error = self.refuse(cut, "")
        assert error.reason.startswith("truncated or damaged") or "not an image" in error.reason
        with pytest.raises(ImageError):
            check_image(cut, decode=False)

    def test_a_damaged_middle(self, tmp_path: Path) -> None:
        gradient().save(tmp_path / "worn.png")
        content = bytearray((tmp_path / "worn.png").read_bytes())
        middle = len(content) // 2
        content[middle : middle + 64] = b"\xff" * 64
        (tmp_path / "worn.png").write_bytes(content)
        self.refuse(tmp_path / "worn.png", "truncated or damaged")

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jpg").touch()
        self.refuse(tmp_path / "empty.jpg", "the file is empty")

    def test_no_image(self, tmp_path: Path) -> None:
        (tmp_path / "page.jpg").write_text("<html>404</html>")
        self.refuse(tmp_path / "page.jpg", "not an image that Pillow can read")

    def test_a_format_without_a_decoder(self, tmp_path: Path) -> None:
        (tmp_path / "phone.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(64))
        self.refuse(tmp_path / "phone.heic", "a format that this installation of Pillow cannot read")

    def test_an_open_that_another_package_put_in_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Image.open

        def with_plugin(*args: object) -> Image.Image:
            try:
                return original(*args)
            except UnidentifiedImageError:
                raise ModuleNotFoundError("No module named 'pi_heif'")  # noqa: B904  as ultralytics' import fails

        monkeypatch.setattr(Image, "open", with_plugin)
        (tmp_path / "page.png").write_text("<html>")
        self.refuse(tmp_path / "page.png", "not an image that Pillow can read")

    def test_places_that_hold_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
        (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
        os.mkfifo(tmp_path / "pipe.png")
        self.refuse(tmp_path / "nowhere.png", "no such file")
        self.refuse(tmp_path / "broken.png", "a link to a missing file")
        self.refuse(tmp_path / "loop.png", "cannot be opened")
        self.refuse(tmp_path / "pipe.png", "not a regular file")
        self.refuse(tmp_path, "a folder")

    def test_a_warning_of_pillow_is_no_second_message(self, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
        Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
        recwarn.clear()
        self.refuse(tmp_path / "large.png", "too large")
        assert not recwarn.list

    def test_no_permission(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.png"
        gradient().save(path)
        path.chmod(0)
        root = os.geteuid() == 0
        try:
            if root:  # root reads everything
                os.seteuid(65534)
            self.refuse(path, "no permission to read it")
        finally:
            if root:
                os.seteuid(0)

    def test_the_error_survives_the_way_between_processes(self, tmp_path: Path) -> None:
        error = self.refuse(tmp_path / "nowhere.png", "no such file")
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.path, again.reason) == (str(error), error.path, error.reason)


class TestQuickCheck:
    def test_a_jpeg_with_padding_behind_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "padded.jpg"
        gradient().save(path)
        path.write_bytes(path.read_bytes() + bytes(40))
        check_image(path, decode=False)

    def test_a_jpeg_with_other_data_behind_its_end_is_decoded_to_decide(self, tmp_path: Path) -> None:
        path = tmp_path / "trailer.jpg"
        gradient().save(path)
        path.write_bytes(path.read_bytes() + b"trailer" * 40)
        check_image(path, decode=False)
