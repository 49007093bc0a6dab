"""Checkpoints: written whole or not at all, read without running any code that they may hold."""

import io
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import save
from torch import Tensor

import convattn
from convattn.data.names import escaped
from convattn.errors import UserError
from convattn.tasks.config import Recipe
from convattn.tasks.loaders import input_settings

DESCRIPTION = "convattn"
PROGRESS = "convattn_progress"
SHIPPED = "model."


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints through a temporary file, fsync and rename; read with ``weights_only=True``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; a kill at any moment leaves the former one or this one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain values only, whatever the caller asks."""
        return read_checkpoint(Path(path))


@dataclass(frozen=True)
class Progress:
    """Where a run stands: the next batch, the best epoch so far, the time spent."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_score: float = -1.0
    best_epoch: int = 0


def write_bytes(path: Path, content: dict[str, Any] | bytes) -> None:
    """Write bytes, or what ``torch.save`` makes of a dictionary, atomically and durably."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of ``convattn train`` holds.

    Raises:
        UserError: for a file that is not one.
    """
    remedy = "delete it to start the run from its beginning, or put the right file back"
    try:
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a checkpoint that convattn train wrote; {remedy}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a checkpoint, or is damaged; {remedy}") from error
    if not isinstance(content, dict) or not {"state_dict", "optimizer_states", DESCRIPTION, PROGRESS} <= set(content):
        raise UserError(f"{path} is not a checkpoint that convattn train wrote; {remedy}")
    return content


def describe(recipe: Recipe, classes: Sequence[str]) -> dict[str, str]:
    """Return what weights need to be used without their run folder."""
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
        "convattn_version": convattn.__version__,
    }


def check_same_model(stored: dict[str, Any], recipe: Recipe, classes: Sequence[str], path: Path) -> None:
    """Raise unless a checkpoint belongs to this recipe's model and classes."""
    theirs, ours = stored[DESCRIPTION], describe(recipe, classes)
    nouns = {"task": "task", "model": "model", "model_args": "model_args", "network": "network", "classes": "classes"}
    for key, noun in nouns.items():
        if theirs.get(key) != ours[key]:
            raise UserError(
                f"{path} was written for {noun} {_short(str(theirs.get(key)))}, this run has {_short(ours[key])};"
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


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
