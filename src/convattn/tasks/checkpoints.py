"""Checkpoints: written whole or not at all, read without running any code that they may hold."""

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

import convattn
from convattn.data.names import cut, escaped
from convattn.data.writing import whole_file
from convattn.errors import UserError
from convattn.tasks.archives import weights_fault
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import input_settings
from convattn.tasks.shards import read_whole

DESCRIPTION = "convattn"
PROGRESS = "convattn_progress"
SHIPPED = "model."


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the next batch, the time spent, the best epoch so far; 0 is none yet, worse than any."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_loss: float = sys.float_info.max
    best_epoch: int = 0


def write_bytes(path: Path, content: dict[str, Any] | bytes) -> None:
    """Write bytes, or what ``torch.save`` makes of a dictionary, atomically and durably."""
    with whole_file(path) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of ``convattn train`` holds.

    Raises:
        UserError: for a file that is not one.
    """
    remedy = "delete it to start the run from its beginning, or put the right file back"
    content = read_whole(path, remedy)
    fault = _form_fault(content)
    if fault:
        raise UserError(f"{path}: not a checkpoint that convattn train wrote ({fault}); {remedy}")
    return content


FORM = {
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    DESCRIPTION: dict,
    PROGRESS: dict,
}
"""What a checkpoint holds at least."""


def _form_fault(content: Any) -> str:
    """Return the part of a checkpoint that does not have the form which training writes."""
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    for name, kind in FORM.items():
        if not isinstance(content.get(name), kind):
            found = f"is a {type(content[name]).__name__}" if name in content else "is missing"
            return f"{name} {found}, expected a {kind.__name__}"
    if not re.match(r"[2-9]\d*\.\d+", content["pytorch-lightning_version"]):
        return "pytorch-lightning_version is not a version from 2.0 on"
    return weights_fault(content["state_dict"]) or _progress_fault(content[PROGRESS])


def _progress_fault(stored: dict[str, Any]) -> str:
    loss = stored.get("loss_sum")
    if not isinstance(loss, Tensor) or loss.shape != () or loss.layout != torch.strided:
        return f"{PROGRESS}.loss_sum is no number"
    stored = {"best_loss": Progress.best_loss, **stored}  # version 0.1 had none
    if stored.keys() - {"loss_sum"} != {one.name for one in fields(Progress)}:
        return f"{PROGRESS} has other entries than {', '.join(one.name for one in fields(Progress))}"
    for one in fields(Progress):
        value = stored[one.name]
        kinds: Any = int if one.type in (int, "int") else (int, float)
        least = one.default if one.name == "best_score" else 0
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < math.inf:
            return f"{PROGRESS}.{one.name} is {value!r}"
    return ""


def describe(recipe: Recipe, classes: Sequence[str], more: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return what weights need to be used without their run folder, ``more`` of a task's own with it."""
    input_size, mean, std, interpolation = input_settings(recipe)
    return {
        "format": "convattn",
        "task": recipe.task,
        "network": json.dumps(asdict(recipe.network)),
        "evaluation": json.dumps(asdict(recipe.evaluation)),
        "model": recipe.model,
        "model_args": json.dumps(recipe.model_args),
        "classes": escaped(json.dumps(list(classes), ensure_ascii=False)),
        "input_size": json.dumps(input_size),
        "mean": json.dumps(mean),
        "std": json.dumps(std),
        "interpolation": interpolation,
        **({"crop_pct": json.dumps(recipe.data.crop_pct)} if recipe.data.crop_pct is not None else {}),
        **({"convert": json.dumps(asdict(recipe.convert))} if recipe.convert.to is not None else {}),
        "convattn_version": convattn.__version__,
        **{name: json.dumps(value) for name, value in (more or {}).items()},
    }


def check_same_model(stored: dict[str, Any], recipe: Recipe, classes: Sequence[str], path: Path) -> None:
    """Raise unless a checkpoint belongs to this recipe's model and classes."""
    theirs, ours = stored[DESCRIPTION], describe(recipe, classes)
    for key in ("task", "model", "model_args", "convert", "network", "classes"):
        if theirs.get(key) != ours.get(key):
            raise UserError(
                f"{path} was written for {key} {cut(str(theirs.get(key)), 80)}, this run has"
                f" {cut(str(ours.get(key)), 80)};"
                " start a new run, or put back the checkpoint, the config.yaml and the images that belong together"
            )


def shipped_weights(stored: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights for use that a checkpoint holds, by the model's own names."""
    return {
        name.removeprefix(SHIPPED): value.contiguous()
        for name, value in stored["state_dict"].items()
        if name.startswith(SHIPPED)
    }


def write_weights(path: Path, weights: dict[str, Tensor], description: dict[str, str]) -> None:
    """Write the weights as safetensors, describing themselves; equal weights make equal files."""
    content = save(weights, metadata=description)
    size = int.from_bytes(content[:8], "little")
    # the library writes the description in a random order
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    write_bytes(path, len(header).to_bytes(8, "little") + header + content[8 + size :])
