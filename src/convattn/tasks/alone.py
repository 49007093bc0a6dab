"""One process at a time in a folder."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convattn.errors import UserError

_held: set[Path] = set()


@contextmanager
def alone(folder: Path, work: str) -> Iterator[None]:
    """Hold a folder against other processes; the system ends that with the process, however that ends.

    A process may hold a folder it holds already. On a file system or a system without such locks there is none.

    Args:
        folder: what is held.
        work: what is done there, for the other process: "trains".

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder = folder.resolve()
    if folder in _held:
        yield
        return
    # A lock of the process (lockf), not of the open file (flock): the loaders' workers, who would share that, outlive
    # a killed run by some seconds.
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(_refusal(folder, work, os.pread(file, 300, 0))) from error
        with suppress(OSError):  # a full disk: then the refusal names no process
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()} {socket.gethostname()}".encode())
        _held.add(folder)
        yield
    finally:
        _held.discard(folder)
        os.close(file)


def _refusal(folder: Path, work: str, holder: bytes) -> str:
    number, _, host = holder.decode(errors="replace").partition(" ")
    who = f"process {number} on {host}" if number.isdecimal() else "another process"
    end = f" (kill {number})" if number.isdecimal() else ""
    return f"{folder}: {who} {work} there: wait until it ends, or end it first{end}"
