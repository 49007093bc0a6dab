"""Data at a URL, such as ``s3://bucket/shards/``: read through fsspec, by the byte."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from convattn.errors import UserError, first_line, needing, user_path


def is_url(place: str | os.PathLike[str]) -> bool:
    """Tell whether data is at a URL.

    Example:
        >>> is_url("s3://bucket/shards/"), is_url("photos/")
        (True, False)
    """
    return "://" in str(place)


def data_path(place: str | os.PathLike[str]) -> Path:
    """Return where data is: a path as :func:`~convattn.errors.user_path`, of a URL universal_pathlib's ``UPath``.

    A ``UPath`` has the methods of a ``Path`` and is typed as one, but no other package opens it.

    Raises:
        UserError: No such path, or the URL's kind cannot be read here.
    """
    if not is_url(place):
        return user_path(place)
    with needing("data", f"{place}: URLs are read with universal_pathlib"):
        from upath import UPath
    try:
        found = UPath(str(place))
        _ = found.fs  # imports what reads this kind of URL
    except (ImportError, ValueError) as error:
        raise UserError(f"{place}: this kind of URL cannot be read: {first_line(error)}") from error
    return cast(Path, found)


def facts(file: Path) -> Mapping[str, Any]:
    """Return what the storage says of a file: its size, and whatever changes with its content."""
    return cast(Any, file).fs.info(cast(Any, file).path)


def read_ranges(ranges: Sequence[tuple[Path, int, int]]) -> list[bytes]:
    """Return parts of files, each from an offset on and of a size; all are asked for at once.

    Raises:
        UserError: A part cannot be read.
    """
    import fsspec

    if not ranges:
        return []

    first = cast(Any, ranges[0][0])
    # not first.fs: a worker's process needs a connection of its own, which fsspec keeps for each process
    storage = fsspec.filesystem(first.protocol, **first.storage_options)
    paths = [cast(Any, file).path for file, _, _ in ranges]
    starts, ends = [offset for _, offset, _ in ranges], [offset + size for _, offset, size in ranges]
    try:
        found = storage.cat_ranges(paths, starts, ends)
    except Exception as error:  # every storage's package raises types of its own
        raise _unread(*ranges[0], error) from error
    for (file, offset, size), part in zip(ranges, found, strict=True):
        if isinstance(part, BaseException):
            raise _unread(file, offset, size, part) from part
        if len(part) != size:
            raise _unread(file, offset, size, f"{len(part):,} bytes came")
    return found


def _unread(file: Path, offset: int, size: int, why: object) -> UserError:
    return UserError(
        f"{file}: {size:,} bytes from byte {offset} on cannot be read: {first_line(why)}; check that the file is as it"
        " was and that the network answers, then go on with: convattn train --resume"
    )
