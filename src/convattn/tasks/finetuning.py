"""Fine-tuning: what of a network is not trained, and batch norms that are estimated anew before it is."""

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from convattn.convert.selection import is_meant, whole_name
from convattn.detection.backbone import first_stages
from convattn.errors import UserError, did_you_mean
from convattn.layers import ACmix
from convattn.tasks.config import Places, Recipe
from convattn.tasks.module import TrainingModule
from convattn.tasks.randomness import Stream, seed_all
from convattn.tasks.task import Task

NORM_IMAGES = 512
"""Images that batch norms are estimated on, where the recipe leaves it to the network."""


def freeze(task: Task, model: nn.Module, places: Places) -> None:
    """Turn off the gradients of what a recipe's ``freeze`` means in its ``model``.

    Raises:
        UserError: a place that the network does not have, or nothing is left to train.
    """

    def change(backbone: nn.Module) -> nn.Module:
        for place in places if isinstance(places, tuple) else (places,):
            for parameter in _at(backbone, place):
                parameter.requires_grad_(False)
        return backbone

    task.with_backbone(model, change)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"freeze: {places!r} leaves nothing to train: name less of the network")


def _at(backbone: nn.Module, place: str | int) -> list[nn.Parameter]:
    if isinstance(place, int):
        try:
            modules = list(first_stages(backbone, place, type(backbone).__name__))
        except (AttributeError, ValueError) as error:
            raise UserError(f"freeze: no stage {place}: {str(error).removeprefix('frozen_stages: ')}") from error
        return [parameter for module in modules for parameter in module.parameters()]
    # by every module that a parameter is inside of: a glob of modules means all that they hold
    around = {
        parameter: list(accumulate(whole_name(backbone, name).split("."), "{}.{}".format))
        for name, parameter in backbone.named_parameters()
    }
    found = [parameter for parameter, names in around.items() if any(is_meant(place, name) for name in names)]
    if not found:
        parts = list(dict.fromkeys(name for names in around.values() for name in names[:-1]))
        where = did_you_mean(place, parts).strip() or f"it has {', '.join(parts[:5])} ..."
        raise UserError(f"freeze: nothing in {type(backbone).__name__} is called {place!r}: {where}")
    return found


def norm_images(recipe: Recipe, model: nn.Module) -> int:
    """Return on how many training images the batch norms are to be estimated before the first epoch.

    An ACmix that starts from a convolution (α = 0) holds an approximation of it, which the norms do not know yet.
    """
    if recipe.norm_images is not None:
        return recipe.norm_images
    mixes = [module.mix for module in model.modules() if isinstance(module, ACmix)]
    return NORM_IMAGES if any(mix.alpha is not None and not mix.alpha.any() for mix in mixes) else 0


class NormEstimate(Callback):
    """Estimates the batch norms of a network anew before its first step; those that are frozen stay.

    A resumed run has them in its checkpoint.

    Args:
        batches: Gives the training batches to estimate on, the same in every process.
    """

    def __init__(self, batches: Callable[[], Iterable[Any]]) -> None:
        self.batches = batches

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Estimate them, where nothing is trained yet."""
        if pl_module.step:
            return
        pl_module.train()
        norms = [one for one in pl_module.trained.modules() if isinstance(one, _BatchNorm) and one.training]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        seed_all(pl_module.recipe.seed, Stream.NORMS)
        for batch in self.batches():
            with trainer.precision_plugin.forward_context():
                pl_module.loss(pl_module.transfer_batch_to_device(batch, pl_module.device, 0))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        pl_module.follow_anew()
