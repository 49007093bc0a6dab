"""Videos by PyAV: frames that are read one after the other, and a file that annotated frames are written to."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from convattn.data.images import ImageError
from convattn.errors import first_line, needing

ENDINGS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts", ".3gp"})
"""File name endings, in lower case, that count as videos."""

_REMEDY = "save it again as MP4, or leave it out"


class Video:
    """The frames of a video file; read in order, and from the beginning again for an earlier one.

    Args:
        path: The file.

    Raises:
        UserError: PyAV is not installed.
        ImageError: The file is missing, or no video.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.av = path, _pyav()
        try:
            with self.av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.rate = Fraction(stream.average_rate or 25)
                self.frames = sum(packet.size > 0 for packet in container.demux(stream))
        except (self.av.FFmpegError, IndexError, OSError) as error:
            raise ImageError(path, f"no video that can be read: {first_line(error)}", _REMEDY) from error
        if not self.frames:
            raise ImageError(path, "a video without frames", _REMEDY)
        self._reader: Any = None
        self._next = 0

    def __len__(self) -> int:
        """Return how many frames there are."""
        return self.frames

    def image(self, index: int) -> Image.Image:
        """Return a frame as RGB.

        Raises:
            ImageError: The frame is damaged, or the video ends before it.
        """
        if self._reader is None or index < self._next:
            self._reader, self._next = self._read(), 0
        try:
            for frame in self._reader:
                self._next += 1
                if self._next > index:
                    return frame.to_image()
        except (self.av.FFmpegError, OSError) as error:
            raise ImageError(self.path, f"frame {index} is damaged: {first_line(error)}", _REMEDY) from error
        raise ImageError(self.path, f"ends before frame {index}", _REMEDY)

    def seconds(self, index: int) -> float:
        """Return when a frame is shown, of a video with a steady rate."""
        return float(index / self.rate)

    def _read(self) -> Any:
        with self.av.open(str(self.path)) as container:
            yield from container.decode(video=0)


class VideoWriter:
    """An MP4 file (H.264) that frames are added to; the first one gives the size, cut to even sides.

    Args:
        path: The file.
        rate: Frames a second.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.path, self.rate, self.av = path, rate, _pyav()
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._container is not None:
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()

    def add(self, image: Image.Image) -> None:
        """Add a frame; one of another size is resized."""
        if self._container is None:
            self._container = self.av.open(str(self.path), "w")
            self._stream = self._container.add_stream("libx264", rate=self.rate)
            self._stream.width, self._stream.height = (max(2, side - side % 2) for side in image.size)
            self._stream.pix_fmt = "yuv420p"
        size = (self._stream.width, self._stream.height)
        even = image.crop((0, 0, *size)) if image.size[0] - size[0] in (0, 1) else image.resize(size)
        frame = self.av.VideoFrame.from_ndarray(np.asarray(even.convert("RGB")), format="rgb24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def is_video(path: Path) -> bool:
    """Tell whether a file's name is that of a video.

    Example:
        >>> is_video(Path("clip.MP4")), is_video(Path("cat.jpg"))
        (True, False)
    """
    return path.suffix.lower() in ENDINGS


def _pyav() -> Any:
    with needing("data", "videos are read with PyAV"):
        import av
    return av
