"""Files inside larger files, such as the members of a tar shard: opened, measured and compared as paths are."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias
from zlib import crc32


class Pack(Protocol):
    """A container of files."""

    @property
    def path(self) -> Path:
        """What errors name."""

    def place(self, name: str) -> tuple[int, int] | None:
        """Return a number that is a member's own and its size in bytes, None where there is no such member."""

    def read(self, name: str) -> bytes:
        """Return the content of a member."""

    def fetch(self, names: Sequence[str]) -> None:
        """Have the members at hand that are read next, where several are read faster together."""

    def __truediv__(self, name: str) -> PackedFile:
        """Return a member by name, as a folder returns a path."""


@dataclass(frozen=True)
class PackedFile(os.PathLike[str]):
    """A member of a pack, with what image readers ask of a path."""

    pack: Pack
    name: str

    def __fspath__(self) -> str:
        return f"{self.pack.path}/{self.name}"

    def __str__(self) -> str:
        return self.__fspath__()

    def open(self) -> BinaryIO:
        """Return its content as an open file."""
        return io.BytesIO(self.pack.read(self.name))

    def is_file(self) -> bool:
        """Tell whether there is such a member."""
        return self.pack.place(self.name) is not None

    def stat(self) -> os.stat_result:
        """Return its size, and numbers that tell it from all other files.

        Raises:
            FileNotFoundError: There is no such member.
        """
        place = self.pack.place(self.name)
        if place is None:
            raise FileNotFoundError(str(self))
        number, size = place
        device = -1 - crc32(os.fsencode(str(self.pack.path)))  # no disk has a negative one
        return os.stat_result((stat.S_IFREG | 0o444, number, device, 1, 0, 0, size, 0, 0, 0))


Folder: TypeAlias = Path | Pack
"""Where images lie: ``folder / name`` is a file."""

ImageFile: TypeAlias = Path | PackedFile


def file_in(folder: Folder, name: str) -> PackedFile | str:
    """Return a file of a folder or pack; of a folder as text, which is made faster than a path.

    Example:
        >>> file_in(Path("photos"), "cat/1.jpg")
        'photos/cat/1.jpg'
    """
    return os.path.join(folder, name) if isinstance(folder, Path) else folder / name


def file_status(file: str | os.PathLike[str]) -> os.stat_result:
    """Return what is known of a file without opening it.

    Raises:
        OSError: There is no such file.
    """
    return file.stat() if isinstance(file, PackedFile) else os.stat(file)
