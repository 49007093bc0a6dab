"""Files of ``torch.save`` read whole: never code, never what a flipped bit has changed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convattn.errors import UserError, first_line


def read_archive(path: Path, remedy: str) -> Any:
    """Return what a file of ``torch.save`` holds: tensors and plain values.

    Raises:
        UserError: It is no such file, is damaged, or holds other objects; the message ends with the remedy.
        OSError: The disk does not give it.
    """
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not a checkpoint that convattn train wrote; {remedy}")
    fault = _damage(path)
    if fault:
        raise UserError(f"{path}: not a checkpoint, or is damaged ({fault}); {remedy}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds Python objects besides weights, which could run code when loaded, so it is refused;"
            f" {remedy}"
        ) from error
    except Exception as error:  # the reader raises nearly every built-in type on what torch.save did not write
        raise UserError(f"{path}: not a checkpoint, or is damaged ({first_line(error)}); {remedy}") from error


def _damage(path: Path) -> str:
    """Return what is wrong with the archive as such. torch.load itself does not compare the check sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch.save compresses nothing: what does could unpack to any size
            if any(one.compress_type != zipfile.ZIP_STORED for one in entries):
                return "compressed"
            if sum(one.file_size for one in entries) > path.stat().st_size:
                return "its parts overlap"
            broken = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # as above
        return first_line(error)
    return f"the check sum of {broken} is wrong" if broken else ""


def weights_fault(weights: Any) -> str:
    """Return what is wrong with weights by name, an empty text where they are some.

    Example:
        >>> weights_fault({"a": torch.zeros(2)}), weights_fault({"a": 3})
        ('', "'a' is a int, expected a tensor")
    """
    if not isinstance(weights, Mapping):
        return f"the weights are a {type(weights).__name__}, expected tensors by name"
    for name, value in weights.items():
        if not isinstance(name, str):
            return f"a weight is called {name!r}, expected a text"
        if not isinstance(value, Tensor):
            return f"{name!r} is a {type(value).__name__}, expected a tensor"
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            return f"{name!r} is not an ordinary tensor"
    return ""


def optimizer_fault(stored: Any, optimizer: torch.optim.Optimizer) -> str:
    """Return why an optimizer's stored state is not this one's, an empty text where it is."""
    own = optimizer.state_dict()["param_groups"]
    groups = stored.get("param_groups") if isinstance(stored, dict) else None
    state = stored.get("state") if isinstance(stored, dict) else None
    if not isinstance(groups, list) or not isinstance(state, dict):
        return "it has no state and param_groups"
    if [_numbers(group) for group in groups] != [group["params"] for group in own]:
        return "it is for other parameters"
    if any(group.keys() != theirs.keys() for group, theirs in zip(own, groups, strict=True)):
        return "its settings are others"
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in state.items():
        if not isinstance(number, int) or not 0 <= number < len(parameters) or not isinstance(values, dict):
            return f"its state has a wrong entry {number!r}"
        for name, value in values.items():
            is_like_weights = name.startswith(("exp_avg", "momentum_buffer")) and isinstance(value, Tensor)
            if is_like_weights and value.ndim == parameters[number].ndim and value.shape != parameters[number].shape:
                return f"{name} of parameter {number} has the shape {tuple(value.shape)}"
    return ""


def _numbers(group: Any) -> Any:
    return group.get("params") if isinstance(group, dict) else None
