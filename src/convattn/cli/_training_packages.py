"""Advice where a package of an extra is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from convattn.errors import UserError

TRAIN = ("lightning", "torchmetrics", "matplotlib", "tensorboard", "sklearn", "pycocotools", "jinja2", "scipy")
EXTRAS = {**dict.fromkeys(TRAIN, "train"), "gradio": "demo"}
"""The extra that brings a package."""


@contextmanager
def training_packages(what: str = "training") -> Iterator[None]:
    """Turn a missing package into advice."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise UserError(
            f'{what} needs {error.name}, which is not installed: pip install "convattn[{extra}]"'
        ) from error
