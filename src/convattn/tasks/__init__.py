"""Training from recipes: :func:`train` does in Python what ``convattn train`` does on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import Callback
    from lightning.pytorch.loggers import Logger
    from torch import nn

    from convattn.tasks.finishing import Result

__all__ = ["resume", "train"]


def train(
    recipe: str,
    settings: Mapping[str, Any] | None = None,
    *,
    model: str | nn.Module | None = None,
    data: str | Path | None = None,
    out: str | Path = "runs",
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Result | None:
    """Train by a recipe, evaluate the best weights and write a report, all in a folder of its own below ``out``.

    Args:
        recipe: The name of a recipe, or the path of a ``.yaml`` file of your own.
        settings: Settings that take the place of the recipe's, by dotted key: ``{"optimizer.lr": 1e-3}``.
        model: The name of a network, or one that you have made: for classification it gives a logit for each class,
            for other tasks it is called as those of :mod:`convattn.detection` and :mod:`convattn.segmentation`. Give
            your own to :func:`resume` and :func:`~convattn.tasks.inference.load_model` again.
        data: Your folder; the recipe's embedded images by default.
        out: Where the run's folder is made.
        callbacks: Callbacks of Lightning's. They may monitor the task's figures, and their state is in the
            checkpoints.
        loggers: Loggers of Lightning's beside those that the recipe names.

    Returns:
        The run's result; None on all processes but the main one.

    Raises:
        UserError: for whatever a person can mend.
        RunInterrupted: after a Ctrl-C or SIGTERM; :func:`resume` goes on.

    Example:
        >>> from convattn.tasks import train
        >>> settings = {"epochs": 20, "accumulate": 2, "patience": 5}
        >>> result = train("folder-small", settings, model="conv_resnet18", data="photos/")  # doctest: +SKIP
    """
    from convattn.tasks.recipes import load_recipe
    from convattn.tasks.training import prepare
    from convattn.tasks.training import train as run

    overrides = dict(settings or {})
    if data is not None:
        overrides["data.folder"] = str(data)
    own = None if model is None or isinstance(model, str) else model
    if model is not None:
        overrides["model"] = model if own is None else type(own).__name__
    return run(prepare(load_recipe(recipe, overrides), Path(out), model=own), callbacks, loggers)


def resume(
    run: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> Result | None:
    """Go on with a run of :func:`train` or ``convattn train`` from its last checkpoint, to the same end.

    Args:
        run: The run's folder.
        settings: Settings that do not change the result, such as ``{"trainer.devices": 2}``.
        model: The network that :func:`train` was given, where it was given one.
        callbacks: As for :func:`train`.
        loggers: As for :func:`train`.
    """
    from convattn.tasks.run_folder import open_run
    from convattn.tasks.training import prepare_resume
    from convattn.tasks.training import train as run_training

    return run_training(prepare_resume(open_run(Path(run)), settings, model=model), callbacks, loggers)
