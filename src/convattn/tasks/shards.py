"""Checkpoints of sharded weights: a file as every other one, and beside it a folder with each process's part."""

from __future__ import annotations

import shutil
import uuid
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from convattn.errors import UserError
from convattn.tasks.archives import read_archive
from convattn.tasks.processes import Shard, gather_objects

SHARDS = "convattn_shards"
"""The entry of a checkpoint that names its folder and the check sums of the files in it."""

ENDING = ".shards"


@contextmanager
def write_shards(path: Path, checkpoint: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Write the sharded tensors of a checkpoint, each process its part, and yield what the file itself is to hold.

    All processes call this. The folder has a new name each time, so a kill at any moment leaves the former checkpoint
    or this one. When the block ends, the main process removes the folders that no file names any more.

    Raises:
        UserError: The processes do not write to the same disk.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    names = [f"{path.stem}-{uuid.uuid4().hex[:8]}{ENDING}"]
    distributed.broadcast_object_list(names)
    folder, rank = path.parent / names[0], Shard.here().rank
    folder.mkdir(exist_ok=True)
    sharded: dict[str, Tensor] = {}
    rest = _without_shards(checkpoint, "", sharded)
    save(sharded, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    # the writer numbers the processes' files from 1 on
    own = [(file.name, _check_sum(file)) for file in folder.glob(f"shard-{rank + 1:05d}-*")]
    files = dict(gather_objects(own))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {missing[0]}, which another machine wrote: with FSDP --out must be a folder that all share"
        )
    yield {**rest, SHARDS: {"folder": folder.name, "files": files}}
    if rank == 0:
        for other in path.parent.glob(f"{path.stem}-*{ENDING}"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)


def read_whole(path: Path, remedy: str) -> Any:
    """Return what a checkpoint holds, its sharded tensors whole; of any other file of ``torch.save``, what that holds.

    Raises:
        UserError: as :func:`convattn.tasks.archives.read_archive`, and where the shards are missing or damaged.
    """
    content = read_archive(path, remedy)
    if not isinstance(content, dict) or SHARDS not in content:
        return content
    named = content.pop(SHARDS)
    try:
        folder, files = path.parent / Path(named["folder"]).name, dict(named["files"])
    except (TypeError, LookupError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint that convattn train wrote ({SHARDS} {named!r}); {remedy}") from error
    for name, check_sum in files.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise UserError(f"{path}: {file} is missing, which holds a part of its weights; {remedy}")
        if _check_sum(file) != check_sum:
            raise UserError(f"{file}: damaged (its check sum is wrong); {remedy}")
    try:
        return _with_shards(content, _read_tensors(folder))
    except OSError:
        raise
    except Exception as error:  # the reader raises many types on what it did not write
        raise UserError(f"{folder}: not the shards of {path.name}, or damaged ({error}); {remedy}") from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    tensors: dict[str, Tensor] = {}
    for name, stored in HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata.items():
        if sum(chunk.sizes.numel() for chunk in stored.chunks) != stored.size.numel():
            raise ValueError(f"{name} is not whole")
        tensors[name] = torch.empty(stored.size, dtype=stored.properties.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it reads in one process
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return tensors


def _without_shards(part: Any, place: str, found: dict[str, Tensor]) -> Any:
    """Return a part of a checkpoint with names in place of its sharded tensors, which it adds to ``found``."""
    from torch.distributed.tensor import DTensor

    if isinstance(part, Mapping):
        return {key: _without_shards(value, f"{place}/{key}", found) for key, value in part.items()}
    if isinstance(part, list):
        return [_without_shards(value, f"{place}/{number}", found) for number, value in enumerate(part)]
    if not isinstance(part, DTensor):
        return part
    if any(placement.is_partial() for placement in part.placements):
        return part.full_tensor()
    found[place] = part
    return f"{SHARDS}:{place}"


def _with_shards(part: Any, found: Mapping[str, Tensor]) -> Any:
    if isinstance(part, Mapping):
        return {key: _with_shards(value, found) for key, value in part.items()}
    if isinstance(part, list):
        return [_with_shards(value, found) for value in part]
    is_name = isinstance(part, str) and part.startswith(f"{SHARDS}:")
    return found[part.removeprefix(f"{SHARDS}:")] if is_name else part


def _check_sum(file: Path) -> int:
    found = 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            found = zlib.crc32(block, found)
    return found
