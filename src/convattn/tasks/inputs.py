"""What ``convattn predict`` answers on: image files, folders, patterns, addresses, stdin, frames of videos."""

from __future__ import annotations

import glob
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from convattn.data.folder import list_images
from convattn.data.images import EXTENSIONS, open_image
from convattn.data.video import Video, is_video
from convattn.errors import UserError

STDIN = "-"
SECONDS = 30
LARGEST_DOWNLOAD = 2**30


@dataclass(frozen=True)
class Input:
    """An image to answer on: a file, or one frame of a video.

    ``name`` is what a person knows it by, ``stem`` the name of what is written of it.
    """

    path: Path
    name: str
    video: Video | None = None
    frame: int = 0

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return self.path.stem if self.video is None else f"{self.path.stem}-{self.frame:06}"

    @property
    def place(self) -> Path:
        """The file; for a frame, that of the video with the frame's number behind it."""
        return self.path if self.video is None else Path(f"{self.path}#{self.frame}")


@dataclass(frozen=True)
class Inputs:
    """Images to answer on, in order."""

    entries: Sequence[Input]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.entries)

    def image(self, index: int) -> Image.Image:
        """Return image ``index`` as RGB."""
        one = self.entries[index]
        return open_image(one.path) if one.video is None else one.video.image(one.frame)

    def name(self, index: int) -> str:
        """Return what a person knows it by."""
        return self.entries[index].name

    @property
    def in_order(self) -> bool:
        """Whether the images have to be read one after the other, in this process."""
        return any(one.video is not None for one in self.entries)


def find_inputs(wanted: Sequence[str | Path], stdin: Iterable[str], downloads: Path) -> Inputs:
    """Return the images that are meant by files, folders, patterns (``*.jpg``), addresses (``https://``) and ``-``.

    Args:
        wanted: What a person typed.
        stdin: The lines that ``-`` stands for.
        downloads: The folder for what is fetched.

    Raises:
        UserError: A folder or pattern without images, or an address from which nothing comes.
    """
    lines = (line.strip() for line in stdin)
    texts = [one for text in map(str, wanted) for one in (filter(None, lines) if text == STDIN else [text])]
    if not texts:
        raise UserError("-: no line came from stdin; write the path of an image a line")
    found: list[Input] = []
    for text in texts:
        if urlsplit(text).scheme in ("http", "https"):
            found += _files([_fetched(text, downloads / str(len(found)))], text)
        else:
            found += _files(_matching(text))
    return Inputs(found)


def _matching(text: str) -> list[Path]:
    """Return the files that a path or a pattern names."""
    path = Path(text)
    if path.is_dir():
        videos = [file.relative_to(path).as_posix() for file in path.rglob("*") if is_video(file) and file.is_file()]
        found = sorted([*list_images(path), *(name for name in videos if not name.startswith("."))])
        if not found:
            raise UserError(f"{path}: no images in this folder; name images, or a folder that holds some")
        return [path / name for name in found]
    if os.path.lexists(path) or not glob.has_magic(text):
        return [path]
    files = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if os.path.isfile(name)]
    files = [file for file in files if file.suffix.lower() in EXTENSIONS or is_video(file)]
    if not files:
        raise UserError(f"{text}: no image has such a name; put a pattern in quotes, as in 'photos/**/*.jpg'")
    return files


def _files(paths: Sequence[Path], name: str | None = None) -> list[Input]:
    found: list[Input] = []
    for path in paths:
        shown = name or str(path)
        if is_video(path) and path.is_file():
            video = Video(path)
            found += [
                Input(path, f"{shown} at {video.seconds(frame):.2f} s", video, frame) for frame in range(len(video))
            ]
        else:
            found.append(Input(path, shown))
    return found


def _fetched(address: str, folder: Path) -> Path:
    """Fetch a file, and return where it lies, under the name that it has there."""
    name = Path(unquote(urlsplit(address).path)).name or "image"
    folder.mkdir(parents=True, exist_ok=True)
    request = urllib.request.Request(address, headers={"User-Agent": "convattn"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer, (folder / name).open("wb") as file:
            if int(answer.headers.get("Content-Length") or 0) > LARGEST_DOWNLOAD:
                raise UserError(f"{address}: larger than {LARGEST_DOWNLOAD >> 30} GB; fetch it, and give the file")
            shutil.copyfileobj(answer, file)
    except UserError:
        raise
    except (urllib.error.URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise UserError(f"{address}: cannot be fetched: {why}; check the address, or give a file") from error
    return folder / name
