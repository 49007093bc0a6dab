"""The error that a person meets: one message that says what arrived, what was expected and what to do."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from os import PathLike, fspath
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
Place = TypeVar("Place", bound=str | PathLike[str])


class UserError(ValueError):
    """Something that the person can put right; the command prints its message alone and exits with code 2.

    Example:
        >>> raise UserError("no such folder: photos/ (give --data a folder of images)")
        Traceback (most recent call last):
        ...
        convattn.errors.UserError: no such folder: photos/ (give --data a folder of images)
    """


def names_its_file(write: Callable[Concatenate[Place, P], R]) -> Callable[Concatenate[Place, P], R]:
    """Let a function that writes the file of its first argument name it in every :class:`OSError`.

    Example:
        >>> @names_its_file
        ... def fill(path: str) -> None:
        ...     raise OSError(28, "No space left on device")
        >>> fill("run/last.ckpt")
        Traceback (most recent call last):
        ...
        OSError: [Errno 28] No space left on device: 'run/last.ckpt'
    """

    @wraps(write)
    def named(path: Place, *args: P.args, **kwargs: P.kwargs) -> R:
        with naming_file(path):
            return write(path, *args, **kwargs)

    return cast(Callable[Concatenate[Place, P], R], named)


@contextmanager
def naming_file(path: str | PathLike[str]) -> Iterator[None]:
    """Name the file in what reading or writing it raises: a full disk's error comes from ``write``, without a name.

    Raises:
        UserError: the file is no UTF-8 text, where one is read.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text ({error}); put the right file back") from error
    except OSError as error:
        if error.filename is None:
            error.filename = fspath(path)
        raise
    except RuntimeError as error:
        # torch.save's own complaint, "unexpected pos", hides the disk's
        cause = error.__context__
        if "unexpected pos" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        if not isinstance(cause, OSError):
            raise UserError(f"{path}: cannot be written whole; free space on its disk") from error
        cause.filename = fspath(path)
        raise cause from error


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Say of an import in the block that fails which of convattn's extras brings the package.

    Raises:
        UserError: the package is not installed.

    Example:
        >>> with needing("data", "videos are read with PyAV"):
        ...     import no_such_package
        Traceback (most recent call last):
        ...
        convattn.errors.UserError: videos are read with PyAV: pip install "convattn[data]"
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f'{what}: pip install "convattn[{extra}]"') from error


def user_path(path: str | PathLike[str]) -> Path:
    """Return a path that a person gave, with the home folder in place of ``~``.

    Raises:
        UserError: there is no such home folder, or a character that no path has.

    Example:
        >>> user_path("photos/cats").as_posix()
        'photos/cats'
    """
    if "\0" in fspath(path):
        raise UserError(f"{fspath(path)!r}: no path has the character NUL; leave it out")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user on this machine; write the folder in place of ~") from error


def first_line(error: object) -> str:
    """Return the first line of an error's message, the name of its type where it has none.

    Example:
        >>> first_line(ValueError("no such depth: 3\\nknown are 1 and 2")), first_line(KeyError())
        ('no such depth: 3', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """Return the question that follows an unknown word, with a blank behind it; an empty text where none is like it.

    Example:
        >>> did_you_mean("epoch", ["epochs", "seed"]), did_you_mean("x", ["epochs", "seed"])
        ('did you mean epochs? ', '')
    """
    close = get_close_matches(word, known, n=most, cutoff=0.5)
    return f"did you mean {', '.join(close)}? " if close else ""
