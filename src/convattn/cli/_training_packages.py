"""Advice where a package of the ``train`` extra is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from convattn.errors import UserError

PACKAGES = ("lightning", "torchmetrics", "matplotlib", "tensorboard", "sklearn", "pycocotools", "jinja2", "scipy")


@contextmanager
def training_packages(what: str = "training") -> Iterator[None]:
    """Turn a missing package into advice."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES:
            raise
        raise UserError(f'{what} needs {error.name}, which is not installed: pip install "convattn[train]"') from error
