"""What the command says of an error: one line where a person can mend it, nothing of a fault of ours."""

import errno
import os
import re
import sys
import sysconfig
import unicodedata
from pathlib import Path
from types import TracebackType

import convattn
from convattn.errors import UserError, first_line

MACHINE = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space: your share of the disk is used up",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or take a disk that holds larger ones",
    errno.EROFS: "its disk is read-only: take another place, or mount it for writing",
    errno.EIO: "the disk fails: look at its cables and its health, and save what is on it",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or set data.workers lower",
    errno.ENFILE: "the machine has too many open files: end other programs",
    errno.ENOMEM: "free memory: end other programs, or take a smaller batch",
    errno.ESTALE: "mount the network disk again",
    errno.ENODEV: "mount the disk again",
    errno.ENXIO: "mount the disk again",
    errno.ENOTCONN: "mount the network disk again",
}
"""What the machine refuses, whichever file it is about, and the remedy. No program can cause these by a mistake."""

PLACES = {
    errno.ENOENT: "it, or a folder above it, is not there (any more): put it back, or name another",
    errno.EACCES: "change its permissions, or take a place of yours",
    errno.EPERM: "change its permissions, or take a place of yours",
    errno.ENOTDIR: "a part of its path is a file: name another place",
    errno.EISDIR: "it is a folder: name a file",
    errno.EEXIST: "remove it, or name another place",
    errno.ENOTEMPTY: "remove it, or name another place",
    errno.ELOOP: "its links lead in a circle: mend them",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EBUSY: "another program holds it: end that, or take another place",
}
"""What is wrong with a path, and the remedy: a person's where the path is, see :func:`_is_ours`."""

OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory", re.I)
SHARED_MEMORY = re.compile(r"unable to \w+ shared memory|out of shared memory|Too many open files")
IN_WORKER = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.\n")
LONGEST = 2000


def message_of(error: BaseException) -> str | None:
    """Return what to tell a person of an error, None for a fault of this package, which keeps its traceback.

    Example:
        >>> message_of(OSError(28, "No space left on device", "answers.csv"))
        'answers.csv: No space left on device; free space on its disk'
        >>> message_of(ZeroDivisionError("division by zero")) is None
        True
    """
    text = _told(error)
    return None if text is None else _printable(text)


def _told(error: BaseException) -> str | None:
    inner = _of_worker(error)
    if inner is not None:
        return inner
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return _of_system(error)
    first = first_line(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
        return f"out of memory: {first}; take a smaller batch or smaller images, or end other programs"
    if isinstance(error, RuntimeError) and SHARED_MEMORY.search(str(error)):
        return f"{first}; free the shared memory (/dev/shm) and raise ulimit -n, or load without it: data.workers=0"
    return None


def _of_system(error: OSError) -> str | None:
    """Return the message of what the system refused: which file, why, and the remedy."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    remedy = MACHINE.get(error.errno or 0)
    if remedy is None:
        if not name or _is_ours(Path(name)) or _raised_by(error.__traceback__, "subprocess"):
            return None
        remedy = PLACES.get(error.errno or 0)
    if remedy is None:
        return None
    run = _run_above(Path(name)) if name else None
    then = f", then go on with: convattn train --resume {run}" if run is not None else ""
    return f"{name or 'the disk'}: {error.strerror}; {remedy}{then}"


def _is_ours(path: Path) -> bool:
    """Tell whether a file came with this package or with Python: no person is asked to mend that."""
    homes = [Path(convattn.__file__).parent, *map(Path, sysconfig.get_paths().values())]
    return any(path.is_relative_to(home) for home in homes)


def _raised_by(trace: TracebackType | None, module: str) -> bool:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == module


def _run_above(path: Path) -> Path | None:
    """Return the training run that a file belongs to."""
    try:
        return next((folder for folder in path.parents if (folder / "config.yaml").is_file()), None)
    except OSError:
        return None


def _of_worker(error: BaseException) -> str | None:
    """Return the message of an error in a worker of a DataLoader, which arrives as the text of its traceback."""
    found = IN_WORKER.match(str(error)) if isinstance(error, Exception) else None
    if found is None:
        return None
    last = str(error).rstrip().splitlines()[-1]
    name, _, text = last.partition(": ")
    if isinstance(error, UserError) and name.endswith(type(error).__name__):
        return text
    number = re.match(r"\[Errno (\d+)\] (.*)", text)
    if isinstance(error, OSError) and number is not None:
        why, _, place = number[2].partition(": ")
        return _of_system(OSError(int(number[1]), why, place.strip("'") or None))
    return None


def _printable(text: str) -> str:
    """Return a text without the characters that steer a terminal, none too long for a person."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    shown = (c == "\n" or c.isprintable() or unicodedata.category(c) == "Zs" for c in text)
    return "".join(c if is_shown else ascii(c)[1:-1] for c, is_shown in zip(text, shown, strict=True))


def give_up_stdout() -> None:
    """Send what is still to be printed nowhere, so that the interpreter's last flush does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
