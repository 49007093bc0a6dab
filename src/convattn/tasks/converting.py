"""A run, or a network by its name, with operators in place of its convolutions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from json import dumps
from pathlib import Path

import timm
import torch
from torch import nn

from convattn.convert import Budget, ConvertReport
from convattn.convert.selection import whole_name
from convattn.errors import UserError
from convattn.tasks.building import converted
from convattn.tasks.checkpoints import write_weights
from convattn.tasks.config import ConvertConfig
from convattn.tasks.exporting import network_by_name
from convattn.tasks.hub import why_no_weights
from convattn.tasks.inference import EXPORTED, LoadedModel, load_model, run_of
from convattn.tasks.task import task_of


@dataclass(frozen=True)
class Conversion:
    """A converted network.

    Args:
        model: with its weights and what it says of itself; its recipe says how it was converted.
        report: of the layers.
        has_weights: whether these are trained weights, not random ones.
    """

    model: LoadedModel
    report: ConvertReport
    has_weights: bool = True

    @property
    def is_exact(self) -> bool:
        """Whether it computes what the network did."""
        return all(layer.relative_error is not None and layer.relative_error < 1e-6 for layer in self.report.replaced)

    def default_file(self, source: str) -> Path:
        """Return where the weights go unless a person says: into the run's folder, or here."""
        name = f"{self.model.recipe.convert.to}.safetensors"
        if not Path(source).exists():
            return Path(f"{source}-{name}")
        folder = run_of(self.model.source)
        return folder / f"weights-{name}" if folder.is_dir() else folder.with_name(f"{folder.stem}-{name}")

    def write(self, file: Path) -> None:
        """Write the weights, which say how the network is converted."""
        kept = {key: value for key, value in self.model.description.items() if self.is_exact or key != "min_score"}
        tensors = {name: value.contiguous() for name, value in self.model.model.state_dict().items()}
        write_weights(file, tensors, kept | {"convert": dumps(asdict(self.model.recipe.convert))})


def convert_run(
    source: str, wanted: ConvertConfig, *, dry_run: bool = False, trust: bool = False, budget: Budget | None = None
) -> Conversion:
    """Convert the network of a run folder, of a weights file, or one of timm's registry with its pretrained weights.

    Args:
        source: The run, the file or the network's name.
        wanted: What becomes of the convolutions.
        dry_run: Whether a network by its name may do without its weights, and is not fetched.
        trust: As for :func:`~convattn.tasks.inference.load_model`.
        budget: How long the converted ``model`` of the recipe may take, measured on one image of the recipe's size. The
            layers that fit are the ``where`` of the conversion's recipe.

    Raises:
        UserError: no such run or network, no weights to convert, or nothing in it can be converted.
    """
    missing = ""
    if not Path(source).exists() and timm.is_model(source):
        missing = why_no_weights(source, fetching=not dry_run)
        if missing and not dry_run:
            raise UserError(
                f"{missing}; to convert the network before it is trained on your images: convattn train --model"
                f" {source} convert.to={wanted.to}; to see what would be converted: --dry-run"
            )
        loaded = network_by_name(source, pretrained=not missing)
    else:
        loaded = load_model(source, trust=trust)
    if loaded.source.suffix in EXPORTED:
        raise UserError(f"{loaded.source}: this is an exported file; give the run folder that it was made of")
    if loaded.recipe.convert.to is not None:
        raise UserError(f"{loaded.source}: it is converted to {loaded.recipe.convert.to} already")
    recipe, reports = replace(loaded.recipe, convert=wanted), list[ConvertReport]()
    example, places = torch.rand(1, 3, *recipe.data.height_and_width), wanted.where

    def change(backbone: nn.Module) -> nn.Module:
        nonlocal places
        made = converted(backbone, recipe, example, reports.append, budget)
        if budget is not None:
            places = tuple(whole_name(backbone, layer.name) for layer in reports[0].replaced)
        return made

    model = task_of(recipe).with_backbone(loaded.model, change)
    recipe = replace(recipe, convert=replace(wanted, where=places))
    return Conversion(replace(loaded, model=model, recipe=recipe), reports[0], has_weights=not missing)
